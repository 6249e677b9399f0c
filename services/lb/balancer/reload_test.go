package balancer

// Another configuration while connections are open: RELIABILITY row 25, and that no reload touches
// an accepted connection.

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/service"
)

var _ service.Reloader[Config] = (*Server)(nil)

func (r *rig) reload(t *testing.T, cfg Config) {
	t.Helper()
	if err := r.Reload(cfg); err != nil {
		t.Fatalf("Reload = %v", err)
	}
}

// refused reports whether nobody listens at an address.
func refused(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	return err != nil
}

func TestReloadChangesUpstreams(t *testing.T) {
	t.Parallel()
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	r := start(t, testConfig(a.addr))
	r.waitUp(t, 1)
	onA, _ := r.connect(t)
	r.reload(t, testConfig(b.addr))
	r.waitUp(t, 1)
	if got := r.gatewaysOf(4); got["b"] != 4 {
		t.Errorf("after a was replaced by b: %v, want all on b", got)
	}
	onA.echo(t)
	r.reload(t, testConfig(b.addr+" weight=3", a.addr))
	r.waitUp(t, 2)
	if got := r.gatewaysOf(8); got["a"] != 2 || got["b"] != 6 {
		t.Errorf("with a back and b of weight 3: %v, want a 2, b 6", got)
	}
	onA.echo(t)
	if got := statusOf(t, r, a.addr).Connections; got != 1 {
		t.Errorf("connections of a = %d, want that of before", got)
	}
}

// What is known of an upstream outlives a reload.
func TestReloadKeepsWhatIsKnown(t *testing.T) {
	t.Parallel()
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	cfg := testConfig(a.addr, b.addr)
	cfg.AdminSecretFile = secretFile(t)
	r := start(t, cfg)
	r.waitUp(t, 2)
	if w := r.call("PUT", "/api/upstreams/"+b.addr, adminSecret, `{"state":"drain"}`); w.Code != http.StatusOK {
		t.Fatalf("drain = %d %s", w.Code, w.Body)
	}
	since := statusOf(t, r, a.addr).Since
	cfg.Algorithm = balance.LeastConnections
	cfg.Health.SlowStart = time.Hour
	cfg.Health.HTTP = a.http.URL + "/readyz"
	cfg.ConnectTimeout = time.Minute
	r.reload(t, cfg)
	if got := r.gatewaysOf(4); got["a"] != 4 {
		t.Errorf("b still drains: %v, want all on a", got)
	}
	if got := statusOf(t, r, a.addr); got.Health != "up" || !got.Since.Equal(since) {
		t.Errorf("a is %s since %s, want up since %s", got.Health, got.Since, since)
	}
	if joined, up := r.logged("upstream joined"), r.logged("upstream up"); joined != 2 || up != 2 {
		t.Errorf("%d joined, %d came up; want 2 and 2, before the reload", joined, up)
	}
	a.ready.Store(false) // and the new check is in force
	r.waitUp(t, 0)
}

func TestReloadChangesListeners(t *testing.T) {
	t.Parallel()
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	cfg := testConfig(a.addr)
	cfg.Listeners = append(cfg.Listeners, Listener{Name: "own", Address: "127.0.0.1:0", Upstreams: &Upstreams{Static: []string{b.addr}}})
	r := start(t, cfg)
	r.waitUp(t, 2)
	own := r.Addr("own")
	onOwn, name, _ := tryConnect(own)
	if name != "b" {
		t.Fatalf("listener own reached %q, want b", name)
	}
	defer onOwn.Close()
	onDevice, _ := r.connect(t)

	without := testConfig(a.addr)
	without.Listeners[0].Name = "renamed"
	device := r.Addr("device")
	r.reload(t, without)
	if !refused(own) {
		t.Error("the listener that was taken away is still there")
	}
	if got := r.Addr("renamed"); got != device {
		t.Errorf("the renamed listener is at %s, want where it was, %s", got, device)
	}
	onOwn.echo(t)
	onDevice.echo(t)
	if got := r.sum("goshield_lb_connections", map[string]string{"listener": "own"}); got != 1 {
		t.Errorf("connections of the listener that was taken away = %v, want 1", got)
	}
	if _, text := r.Health().Ready(); text != "ready\n" {
		t.Errorf("readiness = %q, want no word of upstreams that nobody uses", text)
	}
	_ = onOwn.Close()
	_ = onDevice.Close()
	eventually(t, "its series are gone", func() bool {
		families, _ := r.reg.Gather()
		for _, f := range families {
			for _, m := range f.Metric {
				for _, l := range m.Label {
					if v := l.GetValue(); v == "own" || v == "device" || strings.Contains(v, "of own") || v == b.addr {
						return false
					}
				}
			}
		}
		return true
	})

	r.reload(t, cfg)
	r.waitUp(t, 2)
	if r.Addr("device") != device {
		t.Errorf("device is at %s, want where it was, %s", r.Addr("device"), device)
	}
	eventually(t, "the listener is back", func() bool {
		c, name, _ := tryConnect(r.Addr("own"))
		if c != nil {
			_ = c.Close()
		}
		return name == "b"
	})
}

// A configuration that cannot be used is refused with its key, and nothing changes.
func TestReloadRefusals(t *testing.T) {
	t.Parallel()
	a := startGateway(t, "a", "127.0.0.1:0")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := testConfig(a.addr)
	cfg.AdminSecretFile = secretFile(t)
	r := start(t, cfg)
	r.waitUp(t, 1)
	c, _ := r.connect(t)
	free := porttest.Held(t)
	for _, tt := range []struct {
		key string
		set func(*Config)
	}{
		{"algorithm", func(c *Config) { c.Algorithm = "best" }},
		{"health.interval", func(c *Config) { c.Health.Interval = time.Millisecond }},
		{"upstreams.static[0]", func(c *Config) { c.Upstreams.Static = []string{"nowhere"} }},
		{"admin", func(c *Config) { c.Admin = ":9999" }},
		{"admin_secret_file", func(c *Config) { c.AdminSecretFile = filepath.Join(t.TempDir(), "none") }},
		{"listeners[1].address", func(c *Config) {
			c.Listeners = []Listener{{Name: "free", Address: free}, {Name: "taken", Address: taken.Addr().String()}}
		}},
	} {
		other := testConfig("127.0.0.1:1")
		other.MaxConnections = 1
		other.AdminSecretFile = cfg.AdminSecretFile
		tt.set(&other)
		var ce *config.Error
		if err := r.Reload(other); !errors.As(err, &ce) || ce.Key != tt.key {
			t.Errorf("Reload = %v, want an error of %s", err, tt.key)
		}
		if got := r.gatewaysOf(2); got["a"] != 2 {
			t.Errorf("%s refused, then: %v, want all on a as before", tt.key, got)
		}
	}
	c.echo(t)
	if !refused(free) {
		t.Error("a listener of a refused configuration was left open")
	}
	if w := r.call("PUT", "/api/upstreams/"+a.addr, adminSecret, `{"state":"ready"}`); w.Code != http.StatusOK {
		t.Errorf("the admin secret: %d %s, want it as before", w.Code, w.Body)
	}
	r.Kill()
	if err := r.Reload(cfg); !errors.Is(err, errEnded) {
		t.Errorf("Reload after the end = %v, want %v", err, errEnded)
	}
}

// Limits, timeouts, the secret and the virtual IP of another configuration are in force.
func TestReloadChangesSettings(t *testing.T) {
	t.Parallel()
	a := startGateway(t, "a", "127.0.0.1:0")
	cfg := testConfig(a.addr)
	r := start(t, cfg)
	r.waitUp(t, 1)
	first, _ := r.connect(t)
	cfg.MaxConnections = 1
	cfg.VIP = "127.0.0.1"
	cfg.AdminSecretFile = filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(cfg.AdminSecretFile, []byte(adminSecret+adminSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	r.reload(t, cfg)
	if got := r.gatewaysOf(1); got[""] != 1 {
		t.Errorf("over the new limit: %v, want a refusal", got)
	}
	if got := r.sum("goshield_keepalived_master", nil); got != 1 {
		t.Errorf("goshield_keepalived_master = %v, want 1", got)
	}
	if w := r.call("PUT", "/api/upstreams/"+a.addr, adminSecret+adminSecret, `{"state":"ready"}`); w.Code != http.StatusOK {
		t.Errorf("with the new secret: %d %s", w.Code, w.Body)
	}
	first.echo(t)
	cfg.VIP, cfg.IdleTimeout = "", 100*time.Millisecond
	r.reload(t, cfg)
	if _, err := first.r.ReadByte(); err == nil {
		t.Error("an idle connection outlived the new idle timeout")
	}
	eventually(t, "its place is free", func() bool { return r.gatewaysOf(1)["a"] == 1 })
	if err := gatheredVIP(r); err {
		t.Error("goshield_keepalived_master is there without vip")
	}
}

func gatheredVIP(r *rig) bool {
	families, _ := r.reg.Gather()
	for _, f := range families {
		if f.GetName() == "goshield_keepalived_master" {
			return true
		}
	}
	return false
}

// Reloads under load: every connection, old and new, works.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	r := start(t, testConfig(a.addr, b.addr))
	r.waitUp(t, 2)
	old, _ := r.connect(t)
	var stop atomic.Bool
	var made, failed atomic.Int64
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				c, _, _ := tryConnect(r.Addr("device"))
				made.Add(1)
				if c == nil {
					failed.Add(1)
					continue
				}
				_ = c.Close()
			}
		})
	}
	for i := range 40 {
		cfg := testConfig(a.addr, b.addr)
		switch i % 4 {
		case 0:
			cfg.Upstreams.Static = []string{b.addr, a.addr + " weight=2"}
		case 1:
			cfg.Algorithm = balance.LeastConnections
		case 2:
			cfg.Listeners = append(cfg.Listeners, Listener{Name: "other", Address: "127.0.0.1:0"})
		case 3:
			cfg.Listeners[0].Upstreams = &Upstreams{Static: []string{a.addr}}
		}
		r.reload(t, cfg)
		old.echo(t)
	}
	stop.Store(true)
	clients.Wait()
	if failed.Load() != 0 {
		t.Errorf("%d of %d connections failed during reloads", failed.Load(), made.Load())
	}
}
