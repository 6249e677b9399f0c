package auth

import (
	_ "embed"

	"github.com/valyala/fasthttp"
)

// pathOpenAPI is where the API's description is served, to anybody: it is in the repository.
const pathOpenAPI = "/openapi.yaml"

//go:embed openapi.yaml
var openAPI []byte

func serveOpenAPI(ctx *fasthttp.RequestCtx) {
	if !ctx.IsGet() {
		writeProblem(ctx, problemOf(errMethod))
		return
	}
	ctx.SetContentType("application/yaml")
	ctx.SetBody(openAPI)
}
