package auth_test

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
)

// witness is a transport that holds every answer against the description, and notes which of the
// described ones it has seen.
type witness struct {
	t      *testing.T
	router routers.Router
	doc    *openapi3.T

	mu   sync.Mutex
	seen map[string]bool // "operation status"
}

func newWitness(t *testing.T, w *world) *witness {
	t.Helper()
	served := w.send(http.MethodGet, "/openapi.yaml", "", nil)
	doc, err := openapi3.NewLoader().LoadFromData(served.body)
	if err != nil {
		t.Fatal(err)
	}
	doc.Servers = nil // whatever host is asked
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &witness{t: t, router: router, doc: doc, seen: map[string]bool{}}
}

// RoundTrip implements http.RoundTripper.
func (w *witness) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close() // it was read
	resp.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := w.router.FindRoute(httptest.NewRequest(r.Method, r.URL.RequestURI(), nil))
	if err != nil {
		w.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		return resp, nil
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route},
		Status:                 resp.StatusCode, Header: resp.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	if err := openapi3filter.ValidateResponse(r.Context(), in.SetBodyBytes(body)); err != nil {
		w.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[route.Operation.OperationID+" "+strconv.Itoa(resp.StatusCode)] = true
	return resp, nil
}

// described are all answers of the description, in the same form.
func (w *witness) described() map[string]bool {
	all := map[string]bool{}
	for _, item := range w.doc.Paths.Map() {
		for _, op := range item.Operations() {
			for status := range op.Responses.Map() {
				all[op.OperationID+" "+status] = true
			}
		}
	}
	return all
}

// TestAnswersAreDescribed provokes each answer there is: all of them are in the description, with
// the body that it tells, and all that is in the description is answered.
func TestAnswersAreDescribed(t *testing.T) {
	e, _ := redistest.Embedded(t)
	w := start(t, e.Config(), func(c *auth.Config) { c.Guessing.PerPair = 1 })
	wit := newWitness(t, w)
	w.client.Transport = wit
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)

	id := newID()
	issued := w.enrol(id)
	w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token}, nil)
	w.ok(200, "POST", authapi.PathRotate, gatewaySecret, authapi.RotateRequest{ClientID: id, Token: issued.Token, Owner: "n/1"}, nil)
	w.refused(409, authapi.CodeNotCurrent, "POST", authapi.PathRotate, gatewaySecret, authapi.RotateRequest{ClientID: id, Token: issued.Token, Owner: "n/2"})
	w.ok(200, "GET", authapi.PathClients+id.String(), adminSecret, nil, nil)
	w.ok(200, "POST", authapi.PathRelease, gatewaySecret, []authapi.Release{{ClientID: id, Epoch: issued.Epoch}}, nil)
	w.ok(204, "DELETE", authapi.PathClients+id.String()+"/token", adminSecret, nil, nil)
	w.ok(200, "PUT", authapi.PathDevices+"/"+id.String(), adminSecret, authapi.DeviceChange{}, nil)
	w.ok(200, "GET", authapi.PathDevices, adminSecret, nil, nil)
	blocked := true
	w.ok(200, "PUT", authapi.PathDevices+"/"+id.String(), adminSecret, authapi.DeviceChange{Blocked: &blocked}, nil)
	w.refused(403, wire.CodeUnknownClient, "POST", authapi.PathTokens, gatewaySecret, authapi.IssueRequest{ClientID: id, Owner: "n/1"})
	w.ok(204, "DELETE", authapi.PathDevices+"/"+id.String(), adminSecret, nil, nil)

	stranger := newID()
	w.refused(404, authapi.CodeNotFound, "GET", authapi.PathClients+stranger.String(), adminSecret, nil)
	w.refused(404, authapi.CodeNotFound, "DELETE", authapi.PathClients+stranger.String()+"/token", adminSecret, nil)
	guess := authapi.VerifyRequest{ClientID: stranger, Token: wire.Token{1}, RemoteIP: "192.0.2.7"}
	w.refused(401, wire.CodeBadToken, "POST", authapi.PathVerify, gatewaySecret, guess)
	w.refused(429, wire.CodeRateLimited, "POST", authapi.PathVerify, gatewaySecret, guess)
	w.refused(429, wire.CodeRateLimited, "POST", authapi.PathTokens, gatewaySecret,
		authapi.IssueRequest{ClientID: stranger, Owner: "n/1", RemoteIP: "192.0.2.7"})
	w.refused(400, authapi.CodeBadRequest, "GET", authapi.PathDevices+"?cursor=none", adminSecret, nil)

	large := strings.Repeat(" ", authapi.MaxBody+1)
	for _, r := range routes(id) {
		w.refused(401, authapi.CodeUnauthorized, r.method, r.path, "wrong-secret-of-the-tests", r.body)
		if r.admin {
			w.refused(403, authapi.CodeForbidden, r.method, r.path, gatewaySecret, r.body)
		}
		w.refused(413, authapi.CodeBodyTooLarge, r.method, r.path, adminSecret, strings.NewReader(large))
		if r.body != nil {
			w.refused(400, authapi.CodeBadRequest, r.method, r.path, adminSecret, strings.NewReader("no JSON"))
			w.sendAs("text/plain", 415, r.method, r.path)
		} else if bad := strings.Replace(r.path, id.String(), "x", 1); bad != r.path {
			w.refused(400, authapi.CodeBadRequest, r.method, bad, adminSecret, nil)
		}
	}
	// With a mode that nobody can satisfy here, the last answers that depend on it.
	doc := dynamic.Default()
	doc.Enrolment = dynamic.EnrolMTLS
	w.srv.Apply(doc)
	w.refused(401, wire.CodeBadProof, "POST", authapi.PathTokens, gatewaySecret, authapi.IssueRequest{ClientID: newID(), Owner: "n/1"})
	e.Stop()
	for _, r := range routes(newID()) {
		w.srv.Apply(dynamic.Default())
		w.refused(503, wire.CodeAuthUnavailable, r.method, r.path, adminSecret, r.body)
	}
	if want := wit.described(); !maps.Equal(wit.seen, want) {
		t.Errorf("described and never answered: %v", missing(want, wit.seen))
		t.Errorf("answered and not described: %v", missing(wit.seen, want))
	}
}

func missing(all, from map[string]bool) []string {
	var list []string
	for _, x := range slices.Sorted(maps.Keys(all)) {
		if !from[x] {
			list = append(list, x)
		}
	}
	return list
}

// sendAs sends an empty object as another media type, which must be answered with status.
func (w *world) sendAs(kind string, status int, method, path string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://"+w.srv.Addr()+path, strings.NewReader("{}"))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminSecret)
	req.Header.Set("Content-Type", kind)
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != status {
		w.t.Errorf("%s %s as %s: status %d, want %d", method, path, kind, resp.StatusCode, status)
	}
}
