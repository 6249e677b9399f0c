package balancer

// Which upstream gets connections, as gateways die, return, refuse and are
// drained.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/porttest"
)

func TestRoundRobin(t *testing.T) {
	a, b, c := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0"), startGateway(t, "c", "127.0.0.1:0")
	r := start(t, testConfig(a.addr, b.addr, c.addr+" weight=2"))
	r.waitUp(t, 3)
	got := r.gatewaysOf(12)
	if got["a"] != 3 || got["b"] != 3 || got["c"] != 6 {
		t.Errorf("of 12 connections: %v, want a 3, b 3, c 6", got)
	}
	conn, name, seen := tryConnect(r.Addr("device"))
	if conn == nil {
		t.Fatal("no gateway answered")
	}
	defer conn.Close()
	if seen != conn.LocalAddr().String() {
		t.Errorf("gateway %s was told the client is %s, want %s", name, seen, conn.LocalAddr())
	}
}

func TestEveryAlgorithm(t *testing.T) {
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	for _, algorithm := range []string{balance.RoundRobin, balance.LeastConnections, balance.LeastResponseTime, balance.SourceHash} {
		cfg := testConfig(a.addr, b.addr)
		cfg.Algorithm = algorithm
		r := start(t, cfg)
		r.waitUp(t, 2)
		count := map[string]int{}
		for range 10 {
			c, name := r.connect(t)
			c.echo(t)
			count[name]++
		}
		one := count["a"] == 0 || count["b"] == 0
		switch algorithm {
		case balance.SourceHash:
			if !one {
				t.Errorf("%s: one client went to %v, want one gateway", algorithm, count)
			}
		case balance.LeastResponseTime:
			if one {
				t.Errorf("%s: ten open connections are on %v, want some on each", algorithm, count)
			}
		default:
			if count["a"] != 5 || count["b"] != 5 {
				t.Errorf("%s: ten open connections are on %v, want 5 on each", algorithm, count)
			}
		}
		r.Kill()
	}
}

// The seed's health check removed a backend for good.
func TestKilledGatewayLeavesAndReturns(t *testing.T) {
	a, b := startGateway(t, "a", porttest.Held(t)), startGateway(t, "b", "127.0.0.1:0")
	r := start(t, testConfig(a.addr, b.addr))
	r.waitUp(t, 2)
	for round := range 3 {
		a.kill()
		if got := r.gatewaysOf(6); got["b"] != 6 { // at once: those tried on a go to b
			t.Fatalf("round %d, a just killed: %v, want all on b", round, got)
		}
		r.waitUp(t, 1)
		if got := r.gatewaysOf(6); got["b"] != 6 {
			t.Fatalf("round %d, a down: %v, want all on b", round, got)
		}
		a.start(t)
		r.waitUp(t, 2)
		eventually(t, "a gets its half again", func() bool { got := r.gatewaysOf(6); return got["a"] == 3 && got["b"] == 3 })
	}
	for message, want := range map[string]int{"upstream down": 3, "upstream up": 2 + 3} {
		if got := r.logged(message); got != want {
			t.Errorf("%q was logged %d times, want %d", message, got, want)
		}
	}
}

func TestHTTPCheck(t *testing.T) {
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	cfg := testConfig(a.addr, b.addr)
	cfg.Health.HTTP = a.http.URL + "/readyz" // for both: it is the answer that matters
	r := start(t, cfg)
	r.waitUp(t, 2)
	a.ready.Store(false)
	r.waitUp(t, 0)
	reason := r.logs.FilterMessage("upstream down").All()[0].ContextMap()["reason"]
	if want := "answered 503 Service Unavailable: not ready: draining"; reason != want {
		t.Errorf("reason = %v, want %s", reason, want)
	}
	a.ready.Store(true)
	r.waitUp(t, 2)
}

// With none healthy all are tried, and that is said once.
func TestFloor(t *testing.T) {
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	cfg := testConfig(a.addr, b.addr)
	cfg.Health.HTTP = a.http.URL + "/readyz"
	r := start(t, cfg)
	r.waitUp(t, 2)
	a.ready.Store(false)
	degraded := func() bool { return r.sum("goshield_degraded", map[string]string{"dependency": "upstreams"}) == 1 }
	eventually(t, "degraded", degraded)
	r.told()
	if got := r.gatewaysOf(4); got["a"] != 2 || got["b"] != 2 {
		t.Errorf("with none healthy: %v, want 2 on each", got)
	}
	ready, text := r.Health().Ready()
	if want := "ready\ndegraded: upstreams: none is healthy: all are tried\n"; !ready || text != want {
		t.Errorf("readiness = %t, %q, want %q", ready, text, want)
	}
	a.ready.Store(true)
	eventually(t, "no longer degraded", func() bool { return !degraded() })
	r.waitUp(t, 2)
	for message, want := range map[string]int{
		"upstreams: none is healthy: all are tried": 1, "upstreams: at least one is healthy again": 1, "upstream down": 2,
	} {
		if got := r.logged(message); got != want {
			t.Errorf("%q was logged %d times, want %d", message, got, want)
		}
	}
}

// A gateway whose readiness page is fine but whose port refuses is ejected,
// and pardoned when checks see it fall and rise.
func TestEjection(t *testing.T) {
	a, b := startGateway(t, "a", porttest.Held(t)), startGateway(t, "b", "127.0.0.1:0")
	cfg := testConfig(a.addr, b.addr)
	cfg.Health.HTTP = a.http.URL + "/readyz"
	cfg.Health.EjectAfter = 3
	r := start(t, cfg)
	r.waitUp(t, 2)
	a.kill()
	if got := r.gatewaysOf(10); got["b"] != 10 { // at once: those tried on a go to b
		t.Errorf("connections: %v, want all on b", got)
	}
	ejected := func() float64 { return r.sum("goshield_lb_upstream_ejected", map[string]string{"upstream": a.addr}) }
	eventually(t, "ejected", func() bool { return ejected() == 1 })
	r.told()
	if got := r.logged("upstream ejected"); got != 1 {
		t.Errorf("logged %d ejections, want 1", got)
	}
	if got := r.sum("goshield_lb_upstream_up", map[string]string{"upstream": a.addr}); got != 1 {
		t.Errorf("up = %v, want 1: checks succeed", got)
	}
	a.start(t)
	a.ready.Store(false)
	r.waitUp(t, 0)
	a.ready.Store(true)
	r.waitUp(t, 2)
	eventually(t, "pardoned", func() bool { return ejected() == 0 })
	eventually(t, "a gets connections again", func() bool { return r.gatewaysOf(2)["a"] == 1 })
}

// All ejected is none ejected.
func TestEjectionNeverTakesAll(t *testing.T) {
	a := startGateway(t, "a", porttest.Held(t))
	cfg := testConfig(a.addr)
	cfg.Health.HTTP = a.http.URL + "/readyz"
	cfg.Health.EjectAfter = 2
	r := start(t, cfg)
	r.waitUp(t, 1)
	a.kill()
	if got := r.gatewaysOf(5); got[""] != 5 {
		t.Fatalf("connections: %v, want none answered", got)
	}
	if got := r.sum("goshield_lb_rejected_total", map[string]string{"reason": "connect_failed"}); got != 5 {
		t.Errorf("rejected = %v, want 5", got)
	}
	a.start(t)
	if got := r.gatewaysOf(1); got["a"] != 1 {
		t.Errorf("after a's return, within its ejection: %v, want it to be tried", got)
	}
}

// resolver is a name server under the test's control.
type resolver struct {
	mu    sync.Mutex
	addrs []string
	err   error
}

func (f *resolver) set(err error, addrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addrs, f.err = addrs, err
}

func (f *resolver) lookup(_ context.Context, host string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if host != "gateway" {
		return nil, fmt.Errorf("unexpected name %q", host)
	}
	var list []netip.Addr
	for _, a := range f.addrs {
		list = append(list, netip.MustParseAddr(a))
	}
	return list, f.err
}

func TestDNS(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	port := netip.MustParseAddrPort(a.addr).Port()
	b := startGateway(t, "b", fmt.Sprintf("127.0.0.2:%d", port))
	dns := &resolver{}
	dns.set(nil, "127.0.0.1")
	cfg := testConfig()
	cfg.Upstreams.DNS = fmt.Sprintf("gateway:%d", port)
	r := startWith(t, cfg, dns.lookup)
	r.waitUp(t, 1)

	dns.set(nil, "127.0.0.2", "127.0.0.1") // a replica joins
	r.waitUp(t, 2)
	if got := r.gatewaysOf(4); got["a"] != 2 || got["b"] != 2 {
		t.Errorf("two replicas: %v, want 2 on each", got)
	}
	var onB *client
	for onB == nil {
		if c, name := r.connect(t); name == "b" {
			onB = c
		}
	}

	dns.set(nil, "127.0.0.1") // it leaves: no new connections, the old goes on
	eventually(t, "b left", func() bool { return r.logged("upstream left") == 1 })
	r.told()
	if got := r.gatewaysOf(4); got["a"] != 4 {
		t.Errorf("b has left: %v, want all on a", got)
	}
	onB.echo(t)
	if got := r.sum("goshield_lb_connections", map[string]string{"upstream": b.addr}); got != 1 {
		t.Errorf("connections on b = %v, want 1", got)
	}
	_ = onB.Close()
	eventually(t, "b's series are gone", func() bool {
		families, _ := r.reg.Gather()
		return !strings.Contains(fmt.Sprint(families), b.addr)
	})

	dns.set(errors.New("server misbehaving")) // an outage keeps the last answer
	degraded := func() float64 { return r.sum("goshield_degraded", map[string]string{"dependency": "dns"}) }
	eventually(t, "dns is degraded", func() bool { return degraded() == 1 })
	if got := r.gatewaysOf(2); got["a"] != 2 {
		t.Errorf("without name server: %v, want all on a", got)
	}
	dns.set(nil) // so does an empty answer
	if got := r.gatewaysOf(2); got["a"] != 2 {
		t.Errorf("no address: %v, want all on a", got)
	}

	dns.set(nil, "127.0.0.1", "127.0.0.2") // back
	r.waitUp(t, 2)
	eventually(t, "dns is well", func() bool { return degraded() == 0 })
	eventually(t, "b gets connections", func() bool { return r.gatewaysOf(2)["b"] == 1 })
}

// A balancer that starts before there is anything to resolve gets well by
// itself.
func TestDNSDownAtStart(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	dns := &resolver{}
	dns.set(errors.New("server misbehaving"))
	cfg := testConfig()
	cfg.Upstreams.DNS = fmt.Sprintf("gateway:%d", netip.MustParseAddrPort(a.addr).Port())
	r := startWith(t, cfg, dns.lookup)
	if got := r.gatewaysOf(1); got[""] != 1 {
		t.Errorf("without upstreams: %v, want a refusal", got)
	}
	if got := r.sum("goshield_lb_rejected_total", map[string]string{"reason": "no_upstream"}); got != 1 {
		t.Errorf("rejected = %v, want 1", got)
	}
	dns.set(nil, "127.0.0.1")
	r.waitUp(t, 1)
	if got := r.gatewaysOf(1); got["a"] != 1 {
		t.Errorf("after the name server's return: %v, want a", got)
	}
}

// A static name is one upstream, however many addresses it has; its IPv4
// address comes first.
func TestStaticName(t *testing.T) {
	dns := &resolver{}
	dns.set(nil, "::1", "127.0.0.3", "127.0.0.2")
	var got []candidate
	d := newDiscovery(Upstreams{Static: []string{"gateway:9 weight=2", "10.0.0.1:9", "127.0.0.2:9"}, Interval: time.Second},
		dns.lookup, func(list []candidate) { got = list }, func(error) {})
	d.refresh(t.Context())
	want := []candidate{{netip.MustParseAddrPort("127.0.0.2:9"), 2}, {netip.MustParseAddrPort("10.0.0.1:9"), 1}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("list = %v, want %v", got, want)
	}
}

func TestListenersOfTheirOwn(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	port := int(netip.MustParseAddrPort(a.addr).Port())
	own := startGateway(t, "own", "127.0.0.1:0")
	dead := "127.0.0.1:1"
	cfg := testConfig(dead)
	cfg.Health.HTTP = a.http.URL + "/readyz"
	cfg.Listeners = []Listener{
		{Name: "device", Address: "127.0.0.1:0"},
		{Name: "websocket", Address: "127.0.0.1:0", Port: port}, // the same upstream, on a port that works
		{Name: "own", Address: "127.0.0.1:0", Upstreams: &Upstreams{Static: []string{own.addr}}},
	}
	cfg.Health.EjectAfter = 1
	r := start(t, cfg)
	r.waitUp(t, 2)
	for _, tt := range []struct{ listener, want string }{
		{"device", ""},
		{"websocket", "a"}, // that device's connections failed does not harm it
		{"own", "own"},
	} {
		c, name, _ := tryConnect(r.Addr(tt.listener))
		if c != nil {
			_ = c.Close()
		}
		if name != tt.want {
			t.Errorf("listener %s reached %q, want %q", tt.listener, name, tt.want)
		}
	}
	if got := r.sum("goshield_lb_connections_total", map[string]string{"listener": "websocket", "upstream": dead}); got != 1 {
		t.Errorf("connections of websocket = %v, want 1, under its upstream's own name", got)
	}
	if got := r.sum("goshield_lb_upstream_ejected", map[string]string{"listener": "websocket"}); got != 0 {
		t.Error("ejected from websocket, want from device alone")
	}
	if r.Addr("nobody") != "" {
		t.Error("an unknown listener has an address")
	}
}

func TestIPv6(t *testing.T) {
	a := startGateway(t, "a", "[::1]:0")
	cfg := testConfig(a.addr)
	cfg.Listeners[0].Address = "[::1]:0"
	r := start(t, cfg)
	r.waitUp(t, 1)
	c, _, seen := tryConnect(r.Addr("device"))
	if c == nil {
		t.Fatal("no gateway answered")
	}
	defer c.Close()
	if seen != c.LocalAddr().String() {
		t.Errorf("the gateway saw %s, want %s", seen, c.LocalAddr())
	}
}

func TestSlowStartShare(t *testing.T) {
	began := time.Now()
	for _, tt := range []struct {
		after, slowStart time.Duration
		want             float64
	}{
		{0, 10 * time.Second, 0.1},
		{5 * time.Second, 10 * time.Second, 0.55},
		{10 * time.Second, 10 * time.Second, 1},
		{time.Hour, 10 * time.Second, 1},
		{0, 0, 1},
	} {
		u := &upstream{upSince: began}
		if got := u.share(began.Add(tt.after), tt.slowStart); got != tt.want {
			t.Errorf("share %s after coming up, slow_start %s = %v, want %v", tt.after, tt.slowStart, got, tt.want)
		}
	}
	if got := (&upstream{}).share(began, time.Hour); got != 1 {
		t.Errorf("share of one that is not up = %v, want 1", got)
	}
}

// An upstream that returns gets few connections at first.
func TestSlowStart(t *testing.T) {
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	cfg := testConfig(a.addr, b.addr)
	cfg.Health.SlowStart = time.Hour
	r := start(t, cfg)
	r.waitUp(t, 2)
	share := func(u *gateway) float64 { return statusOf(t, r, u.addr).Share }
	if s := share(a); s > 0.11 {
		t.Errorf("share after coming up = %v, want 0.1", s)
	}
	r.pools[0].mu.Lock() // b came up long ago
	r.pools[0].upstreams[netip.MustParseAddrPort(b.addr)].upSince = time.Now().Add(-time.Hour)
	r.pools[0].mu.Unlock()
	eventually(t, "b has its whole share", func() bool { return share(b) == 1 })
	if got := r.gatewaysOf(22); got["a"] < 1 || got["a"] > 3 {
		t.Errorf("of 22 connections: %v, want about 2 on a", got)
	}
}
