package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	sdkbackend "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/wire"
)

// Whole gateways over real sockets.

func TestOneRequestEndToEnd(t *testing.T) {
	w := newWorld(t, rotatingDoc(10*time.Second))
	s := w.gateway("gw-1", nil)
	w.settled(s)
	d := w.enrolled(s, clientID(1))
	for i := range uint32(50) {
		d.roundTrip(i)
	}
	ack := d.beat()
	if ack.Token.IsZero() {
		t.Fatal("ack without a token, want a rotation")
	}
	d.token = ack.Token
	d.roundTrip(50)
	if ready, text := s.Health().Ready(); !ready || text != "ready\n" {
		t.Errorf("readiness = %v %q, want ready", ready, text)
	}
}

func TestConfigurationErrorsNameTheirKey(t *testing.T) {
	w := newWorld(t, testDoc())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		key    string
		change func(*Config)
	}{
		{"listen", func(c *Config) { c.Listen = "8443" }},
		{"listen", func(c *Config) { c.Listen = taken.Addr().String() }},
		{"websocket", func(c *Config) { c.WebSocket = taken.Addr().String() }},
		{"mqtt", func(c *Config) { c.MQTT = taken.Addr().String() }},
		{"push", func(c *Config) { c.Push = taken.Addr().String() }},
		{"tls.mode", func(c *Config) { c.TLS.Mode = "maybe" }},
		{"tls.cert", func(c *Config) { c.TLS.Cert = "" }},
		{"tls.cert", func(c *Config) { c.TLS.Cert = c.TLS.Key }},
		{"tls", func(c *Config) { c.TLS.Key = "/nowhere" }},
		{"trusted_proxies", func(c *Config) { c.TrustedProxies = []string{"10.0.0.0/40"} }},
		{"auth.url", func(c *Config) { c.Auth.URL = "auth-service:8000" }},
		{"auth.secret_file", func(c *Config) { c.Auth.SecretFile = "/nowhere" }},
		{"push_secret_file", func(c *Config) { c.PushSecretFile = "" }},
		{"backend.secret_file", func(c *Config) { c.Backend.SecretFile = "/nowhere" }},
		{"admin_secret_file", func(c *Config) { c.AdminSecretFile = "/nowhere" }},
		{"node", func(c *Config) { c.Node = "a/b" }},
		{"drain.timeout", func(c *Config) { c.Drain.Timeout = c.Drain.Window }},
		{"redis.addresses", func(c *Config) { c.Redis.Addresses = nil }},
		{"defaults.idle_timeout", func(c *Config) { c.Defaults.IdleTimeout = 0 }},
		{"defaults.services.echo.endpoints", func(c *Config) { c.Defaults.Services = map[string]dynamic.Service{"echo": {}} }},
	} {
		s, err := w.tryGateway("gw-1", func(c *Config, _ *timings) { tt.change(c) })
		if err == nil {
			s.Kill()
		}
		if e, ok := err.(*config.Error); !ok || e.Key != tt.key {
			t.Errorf("error = %v, want one of key %s", err, tt.key)
		}
	}
}

func TestConfigurationFile(t *testing.T) {
	path := t.TempDir() + "/gateway.yaml"
	text := `
listen: ":8443"
websocket_origins: ["*.example.com"]
tls: {mode: on, cert: /tls/cert.pem, key: /tls/key.pem}
trusted_proxies: [10.0.0.0/8]
auth: {url: "http://auth-service:8000", secret_file: /run/secrets/gateway}
push_secret_file: /run/secrets/push
admin_secret_file: /run/secrets/admin
backend: {secret_file: /run/secrets/backend}
redis: {addresses: ["redis-1:6379", "redis-2:6379"]}
node: gw-1
drain: {window: 10s, timeout: 30s}
defaults:
  heartbeat: {interval: 30s}
  device_limit: {rate: 5, burst: 10, on_limit: wait, bytes: {rate: 100000, burst: 65536}}
  services:
    echo: {dns: "echo-backend:9000", timeout: 2s}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	env := []string{"GOSHIELD_DEFAULTS_IDLE_TIMEOUT=2m", "GOSHIELD_DEFAULTS_DEVICE_LIMIT_RATE=7", "GOSHIELD_TLS_MODE=on"}
	if err := config.Load(path, env, &cfg); err != nil {
		t.Fatal(err)
	}
	doc := cfg.Defaults
	switch {
	case cfg.Push != ":9400", cfg.Drain.Window != 10*time.Second, cfg.TrustedProxies[0] != "10.0.0.0/8":
		t.Errorf("configuration = %+v, want the file's values over the defaults", cfg)
	case doc.Heartbeat.Interval.D() != 30*time.Second, doc.Heartbeat.Missed != 3, doc.IdleTimeout.D() != 2*time.Minute,
		doc.DeviceLimit.Rate != 7, doc.DeviceLimit.OnLimit != dynamic.LimitWait, doc.Services["echo"].Links != 2:
		t.Errorf("defaults = %+v, want the file's and the environment's values over the defaults", doc)
	}
}

// RELIABILITY row 12: a reset in mid-request cancels it; the backend's link lives.
func TestResetCancelsRequests(t *testing.T) {
	w := newWorld(t, testDoc())
	echo := w.doc.Services["echo"]
	echo.Timeout = dynamic.Duration(10 * time.Minute) // its own cancellation comes too late to be taken for this one
	var links atomic.Int64
	ln := countedListener{listenAt(t, "127.0.0.1:0"), &links}
	served := make(chan struct{})
	go func() { defer close(served); _ = w.backend.Serve(ln) }()
	t.Cleanup(func() { _ = ln.Close(); <-served })
	echo.Endpoints, echo.Links = []string{ln.Addr().String()}, 1 // so that what comes after goes over the very same link, or a new one
	w.doc.Services["echo"] = echo
	cancelled := make(chan struct{})
	w.handler = func(ctx context.Context, req sdkbackend.Request) (sdkbackend.Response, error) {
		if string(req.Body) == `"hold"` {
			<-ctx.Done()
			close(cancelled)
		}
		return sdkbackend.Response{Body: req.Body}, nil
	}
	s := w.gateway("gw-1", nil)
	w.settled(s)
	before := links.Load()
	raw := dialRaw(t, s.Addr())
	d := newDevice(t, tls.Client(raw, w.clientTLS()))
	d.hello(clientID(1), wire.Token{})
	d.request(1, `"hold"`)
	eventually(t, "the request is in flight", func() bool {
		ses := s.table.find(clientID(1))
		ses.mu.Lock()
		defer ses.mu.Unlock()
		return len(ses.inflight) == 1
	})
	if err := raw.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = raw.Close()
	select {
	case <-cancelled:
	case <-time.After(patience):
		t.Fatal("the request was not cancelled")
	}
	other := w.enrolled(s, clientID(2))
	other.roundTrip(1)
	if n := links.Load(); before != 1 || n != 1 {
		t.Errorf("links accepted = %d before the reset and %d after it, want the same one", before, n)
	}
}

// countedListener counts what it accepts.
type countedListener struct {
	net.Listener
	accepted *atomic.Int64
}

// Accept implements net.Listener.
func (l countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return conn, err
}

// RELIABILITY row 44: one client_id on two gateways; the older is closed within a second of the newer one's
// WELCOME.
func TestTakeoverAcrossGateways(t *testing.T) {
	promise := patience / 2 // on a machine that is short of time
	if long {
		promise = time.Second
	}
	w := newWorld(t, testDoc())
	a, b := w.gateway("gw-a", nil), w.gateway("gw-b", nil)
	awaitNodes(t, a, "gw-a", "gw-b")
	awaitNodes(t, b, "gw-a", "gw-b")
	first := w.enrolled(a, clientID(1))
	second := w.dial(b)
	second.hello(clientID(1), first.token)
	wantTakenOver(t, first, promise, "takeover_there")
	if b.table.find(clientID(1)) == nil || a.table.find(clientID(1)) != nil {
		t.Error("the session is not on gw-b alone, want it there")
	}
	third := w.dial(a) // and back
	third.hello(clientID(1), first.token)
	wantTakenOver(t, second, promise, "takeover_back")
}

// wantTakenOver wants a device whose successor has just been welcomed to be closed within so long;
// figure is the measurement's name.
func wantTakenOver(t *testing.T, d *device, within time.Duration, figure string) {
	t.Helper()
	begun := time.Now()
	d.wantClosed(wire.CodeTakenOver)
	if took := time.Since(begun); took > within {
		t.Errorf("the older session was closed %v after the newer one's WELCOME, want %v", took, within)
	} else if long {
		t.Attr(figure, took.Round(time.Microsecond).String())
	}
}

func awaitNodes(t testing.TB, s *Server, names ...string) {
	t.Helper()
	for _, name := range names {
		eventually(t, "node "+name+" is known", func() bool {
			_, err := s.registry.Lookup(t.Context(), name)
			return err == nil
		})
	}
}

// RELIABILITY rows 36 and 47, as far as one gateway goes: whatever is away, who is
// connected is served, and it is visible.
func TestDependenciesAway(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	w.settled(s)
	d := w.enrolled(s, clientID(1))
	degraded := func(want string) {
		t.Helper()
		eventually(t, "readiness says "+want, func() bool {
			ready, text := s.Health().Ready()
			return ready && text == "ready\n"+want
		})
	}
	degraded("")
	w.redis.Stop()
	degraded("degraded: redis: unavailable\n")
	d.roundTrip(1)
	addr := w.authHTTP.Listener.Addr().String()
	w.authHTTP.Close()
	late := w.dial(s)
	late.send(&wire.Hello{ClientID: clientID(2)})
	if e := late.wantClosed(wire.CodeAuthUnavailable); e.RetryAfter <= 0 {
		t.Errorf("error = %+v, want retry_after_ms", e)
	}
	degraded("degraded: auth: unavailable\ndegraded: redis: unavailable\n")
	d.roundTrip(2)
	d.beat()
	if err := w.redis.Resume(); err != nil {
		t.Fatal(err)
	}
	degraded("degraded: auth: unavailable\n")
	ln, err := net.Listen("tcp", addr) // of a host of the test's own
	if err != nil {
		t.Fatal(err)
	}
	again := &http.Server{Handler: w.auth, ReadHeaderTimeout: patience}
	served := make(chan struct{})
	go func() { defer close(served); _ = again.Serve(ln) }()
	defer func() { _ = again.Close(); <-served }()
	degraded("") // found out without any device asking
	w.enrolled(s, clientID(2)).roundTrip(1)
}

// A gateway starts without anything it depends on.
func TestStartsWithNothingThere(t *testing.T) {
	w := newWorld(t, testDoc())
	w.redis.Stop()
	w.authHTTP.Close()
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.Redis.Mode = "auto" })
	d := w.dial(s)
	d.send(&wire.Hello{ClientID: clientID(1)})
	d.wantClosed(wire.CodeAuthUnavailable)
	if err := w.redis.Resume(); err != nil {
		t.Fatal(err)
	}
	awaitNodes(t, s, "gw-1")
}

// A killed gateway says nothing to anybody; its node key lapses by itself.
func TestKill(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	awaitNodes(t, s, "gw-1")
	d := w.enrolled(s, clientID(1))
	w.redis.SetTime(time.Now()) // nothing lapses before it was looked at
	s.Kill()
	if f, ok := d.next(); ok {
		t.Errorf("got %s, want no words", f.Type)
	}
	other := w.gateway("gw-2", nil)
	awaitNodes(t, other, "gw-2", "gw-1")
	s.Kill() // again does no harm
}

// A gateway that ends takes its node key with it.
func TestShutdownForgetsTheNode(t *testing.T) {
	w := newWorld(t, testDoc())
	other := w.gateway("gw-2", nil)
	s, err := w.tryGateway("gw-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	awaitNodes(t, other, "gw-1")
	d := w.enrolled(s, clientID(1))
	done := make(chan error)
	go func() { done <- s.Shutdown(t.Context()) }()
	var g wire.Goaway
	d.want(&g)
	d.send(&wire.Bye{})
	d.wantEnd()
	if err := <-done; err != nil {
		t.Errorf("shutdown = %v, want nil", err)
	}
	if _, err := other.registry.Lookup(t.Context(), "gw-1"); err == nil {
		t.Error("the node is still known, want its key deleted")
	}
	if n := w.auth.releasedCount(); n != 1 {
		t.Errorf("sessions released = %d, want 1", n)
	}
	if n := testutil.ToFloat64(s.metrics.active); n != 0 {
		t.Errorf("connections{active} = %v, want 0", n)
	}
}
