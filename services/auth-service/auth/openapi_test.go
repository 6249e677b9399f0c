package auth

import (
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/valyala/fasthttp"

	"github.com/goshield/goshield/internal/authapi"
)

// The description of the API is held against the handlers' routes and the bodies' types, and by
// TestAnswersAreDescribed against what is answered.

func description(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestRoutesAreDescribed(t *testing.T) {
	described := map[string]bool{"GET " + pathOpenAPI: true} // the description itself
	for path, item := range description(t).Paths.Map() {
		for method := range item.Operations() {
			described[method+" "+path] = true
		}
	}
	served := map[string]bool{"GET " + pathOpenAPI: true}
	for _, r := range routes {
		served[r.method+" "+r.path] = true
	}
	if !maps.Equal(described, served) {
		t.Errorf("described %v\nserved    %v", slices.Sorted(maps.Keys(described)), slices.Sorted(maps.Keys(served)))
	}
}

// TestFieldsAreDescribed: each body's type has the fields of its schema, and no others; an answer's are
// required where they are always there.
func TestFieldsAreDescribed(t *testing.T) {
	schemas := description(t).Components.Schemas
	requests := map[string]any{
		"IssueRequest": authapi.IssueRequest{}, "Claim": authapi.Claim{}, "VerifyRequest": authapi.VerifyRequest{},
		"RotateRequest": authapi.RotateRequest{}, "Release": authapi.Release{}, "DeviceChange": authapi.DeviceChange{},
	}
	answers := map[string]any{
		"IssueAnswer": authapi.IssueAnswer{}, "VerifyAnswer": authapi.VerifyAnswer{}, "RotateAnswer": authapi.RotateAnswer{},
		"ReleaseAnswer": authapi.ReleaseAnswer{}, "ClientState": authapi.ClientState{}, "DeviceState": authapi.DeviceState{},
		"DeviceList": authapi.DeviceList{}, "Problem": authapi.Problem{},
	}
	check := func(name string, body any, isAnswer bool) {
		var fields, always []string
		for f := range reflect.TypeOf(body).Fields() {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields = append(fields, name)
			if options == "" {
				always = append(always, name)
			}
		}
		schema := schemas[name].Value
		if got := slices.Sorted(maps.Keys(schema.Properties)); !slices.Equal(got, slices.Sorted(slices.Values(fields))) {
			t.Errorf("%s: described %v, has %v", name, got, fields)
		}
		required := slices.Sorted(slices.Values(schema.Required))
		if isAnswer && !slices.Equal(required, slices.Sorted(slices.Values(always))) {
			t.Errorf("%s: required %v, always there %v", name, required, always)
		}
	}
	for name, body := range requests {
		check(name, body, false)
	}
	for name, body := range answers {
		check(name, body, true)
	}
	for name, schema := range schemas {
		if schema.Value.Type.Is("object") && requests[name] == nil && answers[name] == nil {
			t.Errorf("%s: no type of the API is described by it", name)
		}
	}
}

// TestDescriptionIsServed without a secret.
func TestDescriptionIsServed(t *testing.T) {
	ctx := &fasthttp.RequestCtx{}
	ctx.Request.SetRequestURI(pathOpenAPI)
	(&Server{}).handle(ctx)
	if got := &ctx.Response; got.StatusCode() != http.StatusOK || string(got.Body()) != string(openAPI) || string(got.Header.ContentType()) != "application/yaml" {
		t.Errorf("status %d, %d bytes of %s; want the description", got.StatusCode(), len(got.Body()), got.Header.ContentType())
	}
}
