package auth_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
)

// embedded runs an auth-service over an embedded Redis.
func embedded(t *testing.T, change func(*auth.Config)) *world {
	t.Helper()
	e, _ := redistest.Embedded(t)
	return start(t, e.Config(), change)
}

// routes are all calls, with a body that is right.
func routes(id wire.ClientID) []struct {
	method, path string
	admin        bool
	body         any
} {
	tok := wire.Token{1}
	return []struct {
		method, path string
		admin        bool
		body         any
	}{
		{"POST", authapi.PathTokens, false, authapi.IssueRequest{ClientID: id, Owner: "n/1"}},
		{"POST", authapi.PathVerify, false, authapi.VerifyRequest{ClientID: id, Token: tok}},
		{"POST", authapi.PathRotate, false, authapi.RotateRequest{ClientID: id, Token: tok, Owner: "n/1"}},
		{"POST", authapi.PathRelease, false, []authapi.Release{{ClientID: id, Epoch: 1}}},
		{"GET", authapi.PathClients + id.String(), true, nil},
		{"DELETE", authapi.PathClients + id.String() + "/token", true, nil},
		{"GET", authapi.PathDevices, true, nil},
		{"PUT", authapi.PathDevices + "/" + id.String(), true, authapi.DeviceChange{}},
		{"DELETE", authapi.PathDevices + "/" + id.String(), true, nil},
	}
}

func TestSecrets(t *testing.T) {
	w := embedded(t, nil)
	for _, r := range routes(newID()) {
		for _, wrong := range []string{"", "wrong-secret-of-the-tests", gatewaySecret + "x", gatewaySecret[1:]} {
			w.refused(401, authapi.CodeUnauthorized, r.method, r.path, wrong, r.body)
		}
		if r.admin {
			w.refused(403, authapi.CodeForbidden, r.method, r.path, gatewaySecret, r.body)
		}
		if resp := w.send(r.method, r.path, adminSecret, r.body); resp.status == 403 ||
			strings.Contains(string(resp.body), string(authapi.CodeUnauthorized)) {
			t.Errorf("%s %s with the administrators' secret: status %d %s", r.method, r.path, resp.status, resp.body)
		}
	}
}

func TestNothingIsAdministeredWithoutASecret(t *testing.T) {
	w := embedded(t, func(c *auth.Config) { c.AdminSecretFile = "" })
	w.refused(403, authapi.CodeForbidden, "GET", authapi.PathDevices, gatewaySecret, nil)
	w.refused(401, authapi.CodeUnauthorized, "GET", authapi.PathDevices, "", nil)
	w.enrol(newID())
}

func TestMethodsAndPaths(t *testing.T) {
	w := embedded(t, nil)
	id := newID()
	for _, r := range routes(id) {
		for _, method := range []string{"PATCH", "OPTIONS"} {
			w.refused(405, authapi.CodeMethodNotAllowed, method, r.path, adminSecret, nil)
		}
	}
	w.refused(405, authapi.CodeMethodNotAllowed, "GET", authapi.PathTokens, adminSecret, nil)
	w.refused(405, authapi.CodeMethodNotAllowed, "POST", "/openapi.yaml", adminSecret, nil)
	for _, path := range []string{"/", "/v1", "/v2/tokens", "/v1/tokens/verify/x", authapi.PathClients + id.String() + "/x"} {
		w.refused(404, authapi.CodeNotFound, "GET", path, adminSecret, nil)
	}
}

func TestBodies(t *testing.T) {
	id := newID().String()
	const tok = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
	good := fmt.Sprintf(`"client_id":%q,"token":%q`, id, tok)
	enrolment := fmt.Sprintf(`"client_id":%q,"owner":"n/1"`, id)
	tests := []struct {
		name, path, body string
		status           int
		code             wire.Code
	}{
		{"empty", authapi.PathVerify, ``, 400, authapi.CodeBadRequest},
		{"no JSON", authapi.PathVerify, `client_id=1`, 400, authapi.CodeBadRequest},
		{"an array", authapi.PathVerify, `[]`, 400, authapi.CodeBadRequest},
		{"an object for releases", authapi.PathRelease, `{}`, 400, authapi.CodeBadRequest},
		{"cut short", authapi.PathVerify, `{` + good, 400, authapi.CodeBadRequest},
		{"something behind", authapi.PathVerify, `{` + good + `} {}`, 400, authapi.CodeBadRequest},
		{"null", authapi.PathVerify, `null`, 400, authapi.CodeBadRequest},
		{"no client_id", authapi.PathVerify, `{"token":"` + tok + `"}`, 400, authapi.CodeBadRequest},
		{"client_id in capitals", authapi.PathVerify, `{"client_id":"` + strings.Repeat("AB", 32) + `","token":"` + tok + `"}`, 400, authapi.CodeBadRequest},
		{"client_id too short", authapi.PathVerify, `{"client_id":"` + id[1:] + `","token":"` + tok + `"}`, 400, authapi.CodeBadRequest},
		{"client_id a number", authapi.PathVerify, `{"client_id":1,"token":"` + tok + `"}`, 400, authapi.CodeBadRequest},
		{"no token", authapi.PathVerify, `{"client_id":"` + id + `"}`, 400, authapi.CodeBadRequest},
		{"token no UUID", authapi.PathVerify, `{"client_id":"` + id + `","token":"` + tok[1:] + `"}`, 400, authapi.CodeBadRequest},
		{"claim without owner", authapi.PathVerify, `{` + good + `,"claim":{}}`, 400, authapi.CodeBadRequest},
		{"claim's remote_ip", authapi.PathVerify, `{` + good + `,"claim":{"owner":"n/1","remote_ip":"x"}}`, 400, authapi.CodeBadRequest},
		{"remote_ip no address", authapi.PathVerify, `{` + good + `,"remote_ip":"example.org"}`, 400, authapi.CodeBadRequest},
		{"remote_ip with port", authapi.PathVerify, `{` + good + `,"remote_ip":"192.0.2.1:80"}`, 400, authapi.CodeBadRequest},
		{"unknown fields", authapi.PathVerify, `{` + good + `,"later":{"version":[1]}}`, 401, wire.CodeBadToken},
		{"no owner", authapi.PathTokens, `{"client_id":"` + id + `"}`, 400, authapi.CodeBadRequest},
		{"owner without session", authapi.PathTokens, `{"client_id":"` + id + `","owner":"n"}`, 400, authapi.CodeBadRequest},
		{"owner without node", authapi.PathTokens, `{"client_id":"` + id + `","owner":"/1"}`, 400, authapi.CodeBadRequest},
		{"owner of two lines", authapi.PathTokens, `{"client_id":"` + id + `","owner":"n\n/1"}`, 400, authapi.CodeBadRequest},
		{"owner too long", authapi.PathTokens, `{"client_id":"` + id + `","owner":"n/` + strings.Repeat("1", 255) + `"}`, 400, authapi.CodeBadRequest},
		{"proof no base64", authapi.PathTokens, `{` + enrolment + `,"proof":"§"}`, 400, authapi.CodeBadRequest},
		{"rotate without owner", authapi.PathRotate, `{` + good + `}`, 400, authapi.CodeBadRequest},
		{"rotate without token", authapi.PathRotate, `{` + enrolment + `}`, 400, authapi.CodeBadRequest},
		{"release of nobody", authapi.PathRelease, `[{"epoch":1}]`, 400, authapi.CodeBadRequest},
		{"longest", authapi.PathVerify, `{` + good + `,"pad":"` + strings.Repeat("x", authapi.MaxBody-len(good)-11) + `"}`, 401, wire.CodeBadToken},
		{"too long", authapi.PathVerify, `{` + good + `,"pad":"` + strings.Repeat("x", authapi.MaxBody-len(good)-10) + `"}`, 413, authapi.CodeBodyTooLarge},
	}
	w := embedded(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := w.refused(tt.status, tt.code, "POST", tt.path, gatewaySecret, strings.NewReader(tt.body))
			if strings.Contains(p.Detail, tok[1:]) {
				t.Errorf("the problem %q repeats the token", p.Detail)
			}
		})
	}
	t.Run("too long, without a length", func(t *testing.T) {
		body := iotest.OneByteReader(strings.NewReader(strings.Repeat(" ", authapi.MaxBody+1)))
		w.refused(413, authapi.CodeBodyTooLarge, "POST", authapi.PathVerify, gatewaySecret, body)
	})
	t.Run("ids in paths", func(t *testing.T) {
		for _, r := range []struct{ method, path string }{
			{"GET", authapi.PathClients + "x"}, {"DELETE", authapi.PathClients + id[1:] + "/token"},
			{"PUT", authapi.PathDevices + "/" + strings.ToUpper(id)}, {"DELETE", authapi.PathDevices + "/" + id + "0"},
		} {
			w.refused(400, authapi.CodeBadRequest, r.method, r.path, adminSecret, nil)
		}
	})
	t.Run("cursor", func(t *testing.T) {
		w.refused(400, authapi.CodeBadRequest, "GET", authapi.PathDevices+"?cursor=x", adminSecret, nil)
	})
}

func TestContentType(t *testing.T) {
	w := embedded(t, nil)
	for kind, want := range map[string]int{
		"application/json": 201, "application/json; charset=utf-8": 201, "": 415, "text/plain": 415, "application/x-www-form-urlencoded": 415,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+w.srv.Addr()+authapi.PathTokens,
			strings.NewReader(`{"client_id":"`+newID().String()+`","owner":"n/1"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "bearer "+gatewaySecret) // the scheme in any case
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Content-Type %q: status %d, want %d", kind, resp.StatusCode, want)
		}
	}
}

func TestRequestID(t *testing.T) {
	w := embedded(t, nil)
	for _, tt := range []struct {
		sent string
		kept bool
	}{{"abc-1.2_X", true}, {"", false}, {"a b", false}, {"a\"}", false}, {strings.Repeat("a", 65), false}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.srv.Addr()+authapi.PathDevices, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+adminSecret)
		req.Header.Set(authapi.HeaderRequestID, tt.sent)
		req.Header.Set(authapi.HeaderNode, tt.sent)
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		got := resp.Header.Get(authapi.HeaderRequestID)
		if (got == tt.sent) != tt.kept || got == "" {
			t.Errorf("request id %q came back as %q, want it kept: %v", tt.sent, got, tt.kept)
		}
		lines := w.log.lines(t, "audit")
		last := lines[len(lines)-1]
		if last["request_id"] != got || (last["gateway"] == tt.sent) != (tt.kept) && tt.sent != "" {
			t.Errorf("audit line %v, want request id %q", last, got)
		}
	}
}

// TestSecretsAreRotated without a restart: while a file holds two both are good, then the new one only.
func TestSecretsAreRotated(t *testing.T) {
	group := [2][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}
	w := embedded(t, func(c *auth.Config) {
		c.Defaults.Enrolment = dynamic.EnrolKey
		c.GroupKeyFile = writeFile(t, hex.EncodeToString(group[0]))
	})
	const nextGateway, nextAdmin = "next-gateway-secret-of-the-tests", "next-admin-secret-of-the-tests"
	put := func(path string, lines ...string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	status := func(method, path, bearer string, body any) int {
		t.Helper()
		return w.send(method, path, bearer, body).status
	}
	enrols := func(key []byte, bearer string) func() bool {
		return func() bool { return status("POST", authapi.PathTokens, bearer, proven(newID(), key)) == 201 }
	}
	not := func(f func() bool) func() bool { return func() bool { return !f() } }
	lists := func(bearer string) func() bool {
		return func() bool { return status("GET", authapi.PathDevices, bearer, nil) == 200 }
	}
	old := hex.EncodeToString(group[0])
	next := hex.EncodeToString(group[1])

	put(w.cfg.GatewaySecretFile, gatewaySecret, nextGateway)
	put(w.cfg.AdminSecretFile, adminSecret, nextAdmin)
	put(w.cfg.GroupKeyFile, old, next)
	eventually(t, "the next of each is good", func() bool { return enrols(group[1], nextGateway)() && lists(nextAdmin)() })
	if !enrols(group[0], gatewaySecret)() || !lists(adminSecret)() {
		t.Error("the old ones are not good any more")
	}
	put(w.cfg.GatewaySecretFile, nextGateway)
	put(w.cfg.AdminSecretFile, nextAdmin)
	put(w.cfg.GroupKeyFile, next)
	eventually(t, "the old gateway secret is refused", not(enrols(group[1], gatewaySecret)))
	eventually(t, "the old administrators' secret is refused", not(lists(adminSecret)))
	eventually(t, "the old group key is refused", not(enrols(group[0], nextGateway)))
	if !enrols(group[1], nextGateway)() || !lists(nextAdmin)() {
		t.Error("the new ones are not good")
	}
}
