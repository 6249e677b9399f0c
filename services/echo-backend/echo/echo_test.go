package echo_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/echo-backend/echo"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const (
	secret = "a-secret-of-these-tests"
	// patience is how long a test waits for what must come.
	patience = time.Minute
)

func wait[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}

// server is an echo backend that runs until the end of its test.
type server struct {
	*echo.Server
	t   *testing.T
	reg *prometheus.Registry
}

func start(t *testing.T, change func(*echo.Config)) *server {
	t.Helper()
	cfg := echo.DefaultConfig()
	cfg.Listen, cfg.HTTP, cfg.GRPC = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.SecretFile = filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(cfg.SecretFile, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	reg := prometheus.NewRegistry()
	srv, err := echo.New(cfg, service.Deps{Log: zap.NewNop(), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Kill)
	return &server{srv, t, reg}
}

// metrics is the page that Prometheus would read.
func (s *server) metrics() string {
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(s.reg, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return rec.Body.String()
}

// has waits for a line of the metrics.
func (s *server) has(line string) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(s.metrics(), line+"\n"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("no %q in\n%s", line, s.metrics())
		}
	}
}

// gateway plays a gateway: every frame it gets is on frames, in words.
type gateway struct {
	*link.Conn
	frames chan string
	ended  chan error
}

func (s *server) dial() *gateway {
	s.t.Helper()
	nc, err := net.Dial("tcp", s.Addr())
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := link.Open(context.Background(), nc, link.Config{Node: "gw", Secret: secret, HandshakeTimeout: patience, PingTimeout: patience})
	if err != nil {
		s.t.Fatal(err)
	}
	g := &gateway{conn, make(chan string, 100), make(chan error, 1)}
	go func() { g.ended <- conn.Serve(g.handle) }() // ends with the link
	s.t.Cleanup(func() { conn.Close(); <-g.ended })
	return g
}

func (g *gateway) handle(f link.Frame) error {
	switch f.Type {
	case link.TypeError:
		e, err := f.Error()
		g.frames <- fmt.Sprintf("%v %v", f.Type, e)
		return err
	case link.TypePush:
		p, err := f.Push()
		g.frames <- fmt.Sprintf("%v %x %s %s", f.Type, p.ClientID[:2], p.Service, p.Body)
		return errors.Join(err, g.PushResult(f.Stream, link.PushAcknowledged))
	}
	g.frames <- strings.TrimSpace(fmt.Sprintf("%v %s", f.Type, f.Payload))
	return nil
}

func (g *gateway) ask(t *testing.T, service, body string, json bool) string {
	t.Helper()
	if err := g.Request(2, &link.Request{ClientID: wire.ClientID{0xab, 0xcd}, Service: service, JSON: json, Body: []byte(body)}); err != nil {
		t.Fatal(err)
	}
	return wait(t, "the answer", g.frames)
}

func TestEcho(t *testing.T) {
	s := start(t, nil)
	g := s.dial()
	for _, service := range []string{"echo", "anything"} {
		if got := g.ask(t, service, `{"hello":"world"}`, true); got != `RESPONSE {"hello":"world"}` {
			t.Errorf("%s: got %s", service, got)
		}
	}
	s.has(`goshield_echo_requests_total{result="answered"} 2`)
	s.has(`goshield_echo_links 1`)
	if ready, text := s.Health().Ready(); !ready {
		t.Errorf("not ready: %s", text)
	}
}

func TestPush(t *testing.T) {
	s := start(t, nil)
	g := s.dial()
	for _, c := range []struct{ request, pushed string }{
		{`{"after_ms":1,"body":{"a":[1]}}`, `PUSH abcd push {"a":[1]}`},
		{`{}`, `PUSH abcd push null`},
	} {
		got := []string{g.ask(t, "push", c.request, true), wait(t, "the push", g.frames)}
		if got[1] == `RESPONSE {"pushing":true}` {
			got[0], got[1] = got[1], got[0] // they race
		}
		if got[0] != `RESPONSE {"pushing":true}` || got[1] != c.pushed {
			t.Errorf("%s: got %q, want the answer and %s", c.request, got, c.pushed)
		}
	}
	s.has(`goshield_echo_pushes_total{result="acknowledged"} 2`)
	for _, c := range []struct {
		request string
		json    bool
		want    string
	}{
		{`[]`, true, "ERROR backend_error: service push takes {"},
		{`{"after_ms":-1}`, true, "ERROR backend_error: after_ms must be"},
		{`{"after_ms":600001}`, true, "ERROR backend_error: after_ms must be"},
		{"\x00", false, "ERROR backend_error: service push takes {"},
	} {
		if got := g.ask(t, "push", c.request, c.json); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: got %s, want %s", c.request, got, c.want)
		}
	}
	// One whose time has not come does not hold up the end; more than so many do not wait.
	for range 1000 {
		if got := g.ask(t, "push", `{"after_ms":600000}`, true); got != `RESPONSE {"pushing":true}` {
			t.Fatal(got)
		}
	}
	if got := g.ask(t, "push", `{"after_ms":600000}`, true); !strings.HasPrefix(got, "ERROR backend_unavailable") {
		t.Errorf("one too many: got %s", got)
	}
}

func TestDelayAndFailures(t *testing.T) {
	s := start(t, func(cfg *echo.Config) { cfg.Delay, cfg.FailureRate = 30*time.Millisecond, 1 })
	g := s.dial()
	begin := time.Now()
	if got := g.ask(t, "echo", "1", true); !strings.HasPrefix(got, "ERROR backend_error: failed on purpose") {
		t.Errorf("got %s, want backend_error", got)
	}
	if took := time.Since(begin); took < 30*time.Millisecond {
		t.Errorf("answered after %v, want 30ms at least", took)
	}
	s.has(`goshield_echo_requests_total{result="failed"} 1`)
}

func TestFailureRateIsARate(t *testing.T) {
	s := start(t, func(cfg *echo.Config) { cfg.FailureRate = 0.5 })
	g := s.dial()
	failed := 0
	for range 400 {
		if strings.HasPrefix(g.ask(t, "echo", "1", true), "ERROR") {
			failed++
		}
	}
	if failed < 100 || failed > 300 { // ten standard deviations
		t.Errorf("%d of 400 failed, want about half", failed)
	}
}

// The delay ends with the request. One that is cancelled before it has begun is not counted: then another is sent, and left
// alone for longer.
func TestDelayIsCancelled(t *testing.T) {
	s := start(t, func(cfg *echo.Config) { cfg.Delay = 10 * time.Minute })
	g := s.dial()
	deadline := time.Now().Add(patience)
	for stream, pause := uint64(2), time.Millisecond; strings.Contains(s.metrics(), `goshield_echo_requests_total{result="cancelled"} 0`); stream, pause = stream+2, 2*pause {
		if time.Now().After(deadline) {
			t.Fatalf("no request was cancelled:\n%s", s.metrics())
		}
		if err := g.Request(stream, &link.Request{Service: "echo"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause)
		if err := g.Cancel(stream); err != nil {
			t.Fatal(err)
		}
	}
}

func TestShutdown(t *testing.T) {
	s := start(t, func(cfg *echo.Config) { cfg.Delay = 100 * time.Millisecond })
	g := s.dial()
	if err := g.Request(2, &link.Request{Service: "echo", Body: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	s.has(`goshield_echo_links 1`)
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(context.Background()) }()
	got := []string{wait(t, "GOAWAY", g.frames), wait(t, "the answer", g.frames)}
	slices.Sort(got)
	if !slices.Equal(got, []string{"GOAWAY", "RESPONSE 1"}) {
		t.Errorf("got %q, want GOAWAY and the answer", got)
	}
	if ready, text := s.Health().Ready(); ready || !strings.Contains(text, "draining") {
		t.Errorf("during Shutdown: ready %v, %q", ready, text)
	}
	g.Finish()
	if err := wait(t, "the end of Shutdown", ended); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestConfigIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key    string
		change func(*echo.Config)
	}{
		{"listen", func(c *echo.Config) { c.Listen = "9000" }},
		{"admin", func(c *echo.Config) { c.Admin = "" }},
		{"secret_file", func(c *echo.Config) { c.SecretFile = "" }},
		{"secret_file", func(c *echo.Config) { c.SecretFile = file + ".missing" }},
		{"delay", func(c *echo.Config) { c.Delay = -1 }},
		{"failure_rate", func(c *echo.Config) { c.FailureRate = 1.1 }},
		{"failure_rate", func(c *echo.Config) { c.FailureRate = -0.1 }},
	} {
		cfg := echo.DefaultConfig()
		cfg.SecretFile = file
		c.change(&cfg)
		_, err := echo.New(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
		var key *config.Error
		if !errors.As(err, &key) || key.Key != c.key {
			t.Errorf("%s: got %v, want an error of that key", c.key, err)
		}
	}
	s := start(t, nil)
	cfg := echo.DefaultConfig()
	cfg.SecretFile, cfg.Listen = file, s.Addr()
	taken, err := echo.New(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	var key *config.Error
	if err := taken.Start(); !errors.As(err, &key) || key.Key != "listen" {
		t.Errorf("a port that is taken: got %v, want an error of listen", err)
	}
	if err := taken.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// The example configuration loads.
func TestExampleConfiguration(t *testing.T) {
	cfg := echo.DefaultConfig()
	if err := config.Load("../echo-backend.yaml", []string{"GOSHIELD_DELAY=20ms", "GOSHIELD_FAILURE_RATE=0.25"}, &cfg); err != nil {
		t.Fatal(err)
	}
	want := echo.Config{Listen: ":9000", HTTP: ":9001", GRPC: ":9002", Admin: ":9090", SecretFile: "/run/secrets/backend", Delay: 20 * time.Millisecond, FailureRate: 0.25}
	if cfg != want {
		t.Errorf("got %+v, want %+v", cfg, want)
	}
}
