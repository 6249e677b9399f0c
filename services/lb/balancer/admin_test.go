package balancer

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const adminSecret = "0123456789abcdef"

func secretFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(adminSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (r *rig) call(method, path, secret, body string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	w := httptest.NewRecorder()
	r.mux.ServeHTTP(w, req)
	return w
}

func statusOf(t *testing.T, r *rig, addr string) upstreamStatus {
	t.Helper()
	var answer struct {
		Upstreams []upstreamStatus `json:"upstreams"`
	}
	w := r.call("GET", "/api/upstreams", "", "")
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusOK {
		t.Fatalf("GET /api/upstreams = %d %s, %v", w.Code, w.Body, err)
	}
	for _, s := range answer.Upstreams {
		if s.Address == addr {
			return s
		}
	}
	t.Fatalf("upstream %s is not in %s", addr, w.Body)
	return upstreamStatus{}
}

func TestDrainUpstream(t *testing.T) {
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "[::1]:0")
	cfg := testConfig(a.addr, b.addr)
	cfg.AdminSecretFile = secretFile(t)
	r := start(t, cfg)
	r.waitUp(t, 2)
	var onB *client
	for onB == nil {
		if c, name := r.connect(t); name == "b" {
			onB = c
		}
	}
	set := func(state string) {
		t.Helper()
		if w := r.call("PUT", "/api/upstreams/"+b.addr, adminSecret, `{"state":"`+state+`"}`); w.Code != http.StatusOK {
			t.Fatalf("set %s = %d %s", state, w.Code, w.Body)
		}
		if got := statusOf(t, r, b.addr); string(got.State) != state || got.Health != "up" {
			t.Errorf("status = %+v, want state %s, health up", got, state)
		}
	}
	set("drain")
	if got := r.gatewaysOf(4); got["a"] != 4 {
		t.Errorf("b drains: %v, want all on a", got)
	}
	onB.echo(t)
	if got := statusOf(t, r, b.addr); got.Connections != 1 {
		t.Errorf("connections of b = %d, want 1", got.Connections)
	}
	set("ready")
	if got := r.gatewaysOf(4); got["b"] != 2 {
		t.Errorf("b is ready again: %v, want 2 on each", got)
	}
	onB.echo(t)
	set("down")
	if _, err := onB.r.ReadByte(); err == nil {
		t.Error("b is down and its connection still there")
	}
	if got := r.gatewaysOf(4); got["a"] != 4 {
		t.Errorf("b is down: %v, want all on a", got)
	}
	if got := r.logged("upstream set by an operator"); got != 3 {
		t.Errorf("logged %d changes, want 3", got)
	}
}

func TestAdminRefusals(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	cfg := testConfig(a.addr)
	cfg.AdminSecretFile = secretFile(t)
	r := start(t, cfg)
	readOnly := start(t, testConfig(a.addr))
	for _, tt := range []struct {
		name               string
		r                  *rig
		path, secret, body string
		status             int
		code               string
	}{
		{"no secret file", readOnly, a.addr, adminSecret, `{"state":"drain"}`, 403, "read_only"},
		{"no secret", r, a.addr, "", `{"state":"drain"}`, 401, "unauthorized"},
		{"wrong secret", r, a.addr, adminSecret + "0", `{"state":"drain"}`, 401, "unauthorized"},
		{"no address", r, "gateway", adminSecret, `{"state":"drain"}`, 400, "bad_address"},
		{"unknown address", r, "192.0.2.1:1", adminSecret, `{"state":"drain"}`, 404, "unknown_upstream"},
		{"no state", r, a.addr, adminSecret, `{}`, 400, "bad_state"},
		{"unknown state", r, a.addr, adminSecret, `{"state":"up"}`, 400, "bad_state"},
		{"unknown key", r, a.addr, adminSecret, `{"states":"drain"}`, 400, "bad_body"},
		{"no JSON", r, a.addr, adminSecret, `drain`, 400, "bad_body"},
		{"too long", r, a.addr, adminSecret, `{"state":"` + strings.Repeat("x", maxAdminBody) + `"}`, 400, "bad_body"},
	} {
		w := tt.r.call("PUT", "/api/upstreams/"+tt.path, tt.secret, tt.body)
		var problem struct{ Code string }
		err := json.Unmarshal(w.Body.Bytes(), &problem)
		if w.Code != tt.status || problem.Code != tt.code || err != nil || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s, want %d %s", tt.name, w.Code, w.Body, tt.status, tt.code)
		}
		if strings.Contains(w.Body.String(), adminSecret) {
			t.Errorf("%s: the answer shows the secret", tt.name)
		}
	}
	if got := statusOf(t, r, a.addr).State; got != ready {
		t.Errorf("state after refusals = %s, want ready", got)
	}
}
