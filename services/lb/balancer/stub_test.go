package balancer

// What the tests share: a balancer on loopback, and gateways to put behind it.

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/internal/service"
)

func TestMain(m *testing.M) {
	if runAsChild() {
		return
	}
	leaktest.Main(m)
}

// patience is how long a test waits for what must happen.
const patience = time.Minute

// eventually polls until ok, and fails the test when it does not come true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// gateway stands for a gateway: it demands a PROXY header, then says its name
// and the client's address on a line, and echoes.
type gateway struct {
	name  string
	addr  string
	ready atomic.Bool // what its readiness page answers
	http  *httptest.Server

	mu    sync.Mutex
	ln    net.Listener // nil while it is dead
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

func startGateway(t *testing.T, name, addr string) *gateway {
	t.Helper()
	g := &gateway{name: name, addr: addr, conns: map[net.Conn]struct{}{}}
	g.ready.Store(true)
	g.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !g.ready.Load() {
			http.Error(w, "not ready: draining", http.StatusServiceUnavailable)
		}
	}))
	g.start(t)
	t.Cleanup(func() { g.kill(); g.http.Close() })
	return g
}

func (g *gateway) start(t *testing.T) {
	t.Helper()
	var ln net.Listener
	eventually(t, g.addr+" can be bound", func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", g.addr)
		return err == nil
	})
	g.mu.Lock()
	g.ln, g.addr = ln, ln.Addr().String()
	g.mu.Unlock()
	policy := func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }
	g.wg.Go(func() { g.serve(&proxyproto.Listener{Listener: ln, ConnPolicy: policy}) })
}

func (g *gateway) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		g.conns[c] = struct{}{}
		g.mu.Unlock()
		g.wg.Go(func() {
			defer func() {
				_ = c.Close()
				g.mu.Lock()
				delete(g.conns, c)
				g.mu.Unlock()
			}()
			r := bufio.NewReader(c)
			if _, err := r.Peek(1); err != nil {
				return // a health check
			}
			if _, err := io.WriteString(c, g.name+" "+c.RemoteAddr().String()+"\n"); err != nil {
				return
			}
			_, _ = io.Copy(c, r)
		})
	}
}

// kill closes its listener and connections, as the end of a process would.
func (g *gateway) kill() {
	g.mu.Lock()
	if g.ln != nil {
		_ = g.ln.Close()
		g.ln = nil
	}
	for c := range g.conns {
		_ = c.Close()
	}
	g.mu.Unlock()
	g.wg.Wait()
}

// rig is a balancer with what it logged and measured.
type rig struct {
	*Server
	reg  *prometheus.Registry
	logs *observer.ObservedLogs
	mux  *http.ServeMux
}

// testConfig has one listener and quick checks.
func testConfig(upstreams ...string) Config {
	cfg := DefaultConfig()
	cfg.Listeners = []Listener{{Name: "device", Address: "127.0.0.1:0"}}
	cfg.Upstreams.Static = upstreams
	cfg.Upstreams.Interval = 100 * time.Millisecond
	cfg.Health.Interval = 100 * time.Millisecond
	cfg.Health.Timeout = patience // a loaded machine is slow
	cfg.ConnectTimeout = patience
	cfg.Health.SlowStart = 0
	cfg.Drain.Window = 0
	return cfg
}

func start(t *testing.T, cfg Config) *rig {
	return startWith(t, cfg, systemLookup)
}

// startWith is start with another resolver. Changes are made before the balancer starts.
func startWith(t *testing.T, cfg Config, lookup lookupFunc, changes ...func(*Server)) *rig {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	r := &rig{reg: prometheus.NewRegistry(), logs: logs, mux: http.NewServeMux()}
	s, err := newServer(cfg, service.Deps{Log: zap.New(core), Metrics: r.reg}, lookup)
	if err != nil {
		t.Fatal(err)
	}
	r.Server = s
	s.RegisterAdmin(r.mux)
	for _, change := range changes {
		change(s)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return r
}

// waitUp waits until so many upstreams are up, and the listeners know.
func (r *rig) waitUp(t *testing.T, n int) {
	t.Helper()
	eventually(t, "upstreams up", func() bool { return r.sum("goshield_lb_upstream_up", nil) == float64(n) })
	r.told()
}

// told returns when the listeners know what can be seen already: metrics and log lines come first, within the
// same lock.
func (r *rig) told() {
	for _, p := range r.pools {
		p.mu.Lock()
		_ = p.closed
		p.mu.Unlock()
	}
}

// sum adds up the series of a metric that have these labels.
func (r *rig) sum(name string, labels map[string]string) float64 {
	families, err := r.reg.Gather()
	if err != nil {
		panic(err)
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			if hasLabels(m, labels) {
				total += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return total
}

func hasLabels(m *dto.Metric, want map[string]string) bool {
	found := 0
	for _, l := range m.Label {
		if want[l.GetName()] == l.GetValue() {
			found++
		}
	}
	return found >= len(want)
}

// client is one connection through the balancer.
type client struct {
	*net.TCPConn
	r *bufio.Reader
}

// tryConnect connects and returns the name of the gateway that answered, "" if
// none did.
func tryConnect(addr string) (c *client, gateway, seen string) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, "", ""
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	c = &client{TCPConn: conn.(*net.TCPConn), r: bufio.NewReader(conn)}
	if _, err := io.WriteString(conn, "!"); err != nil {
		_ = conn.Close()
		return nil, "", ""
	}
	line, err := c.r.ReadString('\n')
	if err == nil {
		_, err = c.r.ReadByte() // the "!"
	}
	if err != nil {
		_ = conn.Close()
		return nil, "", ""
	}
	gateway, seen, _ = strings.Cut(strings.TrimSpace(line), " ")
	return c, gateway, seen
}

// connect is tryConnect where a gateway has to answer.
func (r *rig) connect(t *testing.T) (c *client, gateway string) {
	t.Helper()
	c, gateway, _ = tryConnect(r.Addr("device"))
	if c == nil {
		t.Fatal("no gateway answered")
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, gateway
}

// echo checks that a connection works.
func (c *client) echo(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "ping" {
		t.Fatalf("echo = %q, %v, want ping", got, err)
	}
}

// gatewaysOf connects n times, one after the other, and counts who answered;
// "" is nobody.
func (r *rig) gatewaysOf(n int) map[string]int {
	count := map[string]int{}
	for range n {
		c, name, _ := tryConnect(r.Addr("device"))
		count[name]++
		if c != nil {
			_ = c.Close()
		}
	}
	return count
}

// logged counts the entries with this message.
func (r *rig) logged(message string) int { return r.logs.FilterMessage(message).Len() }

func shutdownContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
