package auth

import (
	_ "embed"
	"net/http"
)

// pathOpenAPI is where the API's description is served, to anybody: it is in the repository.
const pathOpenAPI = "/openapi.yaml"

//go:embed openapi.yaml
var openAPI []byte

func serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(openAPI) // a caller that is gone learns nothing
}
