package balancer

// What the status page shows, and that it may load nothing from elsewhere.

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	a := startGateway(t, "a", "127.0.0.1:0")
	cfg := testConfig(a.addr)
	cfg.AdminSecretFile = secretFile(t)
	r := start(t, cfg)
	r.waitUp(t, 1)
	c, _ := r.connect(t)
	c.echo(t)
	eventually(t, "bytes are counted, which comes after they were written", func() bool {
		return r.sum("goshield_lb_bytes_total", map[string]string{"direction": "to_upstream"}) == 5
	})
	w := r.call("GET", "/api/status", "", "")
	var got balancerStatus
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusOK {
		t.Fatalf("GET /api/status = %d, %v", w.Code, err)
	}
	if !got.Ready || got.Readiness != "ready\n" || !got.Writable || got.Connections != 1 || got.ConnectionsTotal != 1 ||
		got.MaxConnections != cfg.MaxConnections || got.Bytes.ToUpstream != 5 || got.Now.Before(got.Started) {
		t.Errorf("status = %+v; want it ready, writable, with one connection and five bytes to its upstream", got)
	}
	if len(got.Listeners) != 1 || got.Listeners[0] != (listenerStatus{Name: "device", Address: r.Addr("device"), Connections: 1}) {
		t.Errorf("listeners = %+v, want device with its connection", got.Listeners)
	}
	if len(got.Upstreams) != 1 || got.Upstreams[0].Address != a.addr || got.Upstreams[0].Connections != 1 || got.Upstreams[0].Total != 1 {
		t.Errorf("upstreams = %+v, want a with its connection", got.Upstreams)
	}
	for _, list := range []string{`"rebalancing":[]`, `"max_connections":0`, `"finished":0`} {
		if !strings.Contains(w.Body.String(), list) {
			t.Errorf("status lacks %s: %s", list, w.Body)
		}
	}
	if strings.Contains(w.Body.String(), adminSecret) {
		t.Error("the status shows the secret")
	}
}

func TestStatusPage(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig("127.0.0.1:1"))
	for path, kind := range map[string]string{
		"/status":            "text/html; charset=utf-8",
		"/status/status.css": "text/css; charset=utf-8",
		"/status/status.js":  "text/javascript; charset=utf-8",
	} {
		w := r.call("GET", path, "", "")
		h := w.Header()
		if w.Code != http.StatusOK || h.Get("Content-Type") != kind || h.Get("X-Content-Type-Options") != "nosniff" || w.Body.Len() == 0 {
			t.Errorf("GET %s = %d %v, want 200 and %s", path, w.Code, h, kind)
		}
		policy := h.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
			t.Errorf("GET %s: policy %q, want one that allows nothing by default", path, policy)
		}
	}
	if w := r.call("GET", "/status/", "", ""); w.Code != http.StatusNotFound {
		t.Errorf("GET /status/ = %d, want 404", w.Code)
	}
	// The policy would keep these from working: they would be missed only by who looks at the page.
	forbidden := regexp.MustCompile(`https?://|style=|\son[a-z]+=|innerHTML|<style|<script>|localStorage|sessionStorage|document\.cookie`)
	err := fs.WalkDir(statusFiles, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(statusFiles, path)
		rest := strings.ReplaceAll(string(text), `"http://www.w3.org/2000/svg"`, "") // a name, not an address
		if found := forbidden.FindString(rest); found != "" {
			t.Errorf("%s has %q", path, found)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
