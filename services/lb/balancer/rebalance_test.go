package balancer

// Gateways that are asked to send devices away: because they have too many, and because the balancer ends.

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/secret"
)

// adminPages are the admin servers of all gateways: /{addr}/readyz and /{addr}/api/shed, which ends
// connections, as devices do that have moved.
type adminPages struct {
	*httptest.Server
	gateways []*gateway

	mu    sync.Mutex
	calls []shedCall
	deny  int // this status in place of shedding
}

type shedCall struct {
	upstream, bearer string
	Connections      int
	OverMS           int64 `json:"over_ms"`
	From             []netip.Addr
}

func serveAdmin(t *testing.T, gateways ...*gateway) *adminPages {
	t.Helper()
	a := &adminPages{gateways: gateways}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{addr}/readyz", func(w http.ResponseWriter, r *http.Request) {
		if g := a.gateway(r.PathValue("addr")); g == nil || !g.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /{addr}/api/shed", a.shed)
	a.Server = httptest.NewServer(mux)
	t.Cleanup(a.Close)
	return a
}

func (a *adminPages) gateway(addr string) *gateway {
	for _, g := range a.gateways {
		if g.addr == addr {
			return g
		}
	}
	return nil
}

func (a *adminPages) shed(w http.ResponseWriter, r *http.Request) {
	call := shedCall{upstream: r.PathValue("addr"), bearer: r.Header.Get("Authorization")}
	if err := json.NewDecoder(r.Body).Decode(&call); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	a.calls = append(a.calls, call)
	deny := a.deny
	a.mu.Unlock()
	if deny != 0 {
		w.WriteHeader(deny)
		fmt.Fprint(w, `{"code":"unauthorized"}`)
		return
	}
	g := a.gateway(call.upstream)
	shed := 0
	g.mu.Lock()
	for c := range g.conns {
		if shed < call.Connections {
			_ = c.Close()
			delete(g.conns, c)
			shed++
		}
	}
	g.mu.Unlock()
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"shed":%d}`, shed)
}

func (a *adminPages) made() []shedCall {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

func (a *adminPages) set(deny int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deny = deny
}

func rebalancing(t *testing.T, pages *adminPages, upstreams ...string) Config {
	cfg := testConfig(upstreams...)
	cfg.Health.HTTP = pages.URL + "/{addr}/readyz"
	cfg.AdminSecretFile = secretFile(t)
	cfg.Rebalance = Rebalance{Enabled: true, Pace: 1000}
	return cfg
}

// devices are clients that stay connected, and connect anew when they are sent away.
type devices struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
}

func (r *rig) devices(t *testing.T, n int) *devices {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := &devices{stop: cancel}
	addr := r.Addr("device")
	for range n {
		d.wg.Go(func() {
			for ctx.Err() == nil {
				c, _, _ := tryConnect(addr)
				if c == nil {
					sleep(ctx, 10*time.Millisecond)
					continue
				}
				_ = c.SetDeadline(time.Time{})
				end := context.AfterFunc(ctx, func() { _ = c.Close() })
				_, _ = c.r.ReadByte()
				end()
				_ = c.Close()
			}
		})
	}
	t.Cleanup(d.end)
	eventually(t, "all devices are connected", func() bool { return r.sum("goshield_lb_connections", nil) == float64(n) })
	return d
}

func (d *devices) end() {
	d.stop()
	d.wg.Wait()
}

func TestRebalance(t *testing.T) {
	t.Parallel()
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	b.ready.Store(false)
	pages := serveAdmin(t, a, b)
	r := start(t, rebalancing(t, pages, a.addr, b.addr))
	r.waitUp(t, 1)
	r.devices(t, 40)
	on := func(g *gateway) float64 {
		return r.sum("goshield_lb_connections", map[string]string{"upstream": g.addr})
	}
	if on(a) != 40 {
		t.Fatalf("%v connections on a, want all 40", on(a))
	}
	b.ready.Store(true)
	eventually(t, "connections are even", func() bool { return on(a) >= 18 && on(b) >= 18 })
	eventually(t, "rebalancing ended", func() bool { return r.logged("rebalancing ends") >= 1 })
	if got := r.sum("goshield_lb_rebalance_moved_total", nil); got < 18 {
		t.Errorf("moved = %v, want about 20", got)
	}
	for i, call := range pages.made() {
		// A machine that takes many seconds to let the devices connect again may have too many moved, and some back.
		if (i == 0 && call.upstream != a.addr) || call.bearer != "Bearer "+adminSecret || call.OverMS != 1000 ||
			!slices.Equal(call.From, []netip.Addr{netip.MustParseAddr("127.0.0.1")}) {
			t.Errorf("call = %+v, want one of a, with the secret, over a second, from 127.0.0.1", call)
		}
	}
}

// Gateways that refuse are named in the log, once, without the secret; switching it off ends it.
func TestRebalanceRefused(t *testing.T) {
	t.Parallel()
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	b.ready.Store(false)
	pages := serveAdmin(t, a, b)
	pages.set(http.StatusUnauthorized)
	cfg := rebalancing(t, pages, a.addr, b.addr)
	r := start(t, cfg)
	r.waitUp(t, 1)
	r.devices(t, 4)
	b.ready.Store(true)
	eventually(t, "asked twice", func() bool { return len(pages.made()) >= 2 })
	const message = "cannot ask the gateway to send devices away"
	if got := r.logged(message); got != 1 {
		t.Errorf("logged %d refusals, want 1", got)
	}
	for _, e := range r.logs.All() {
		if text := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(text, adminSecret) {
			t.Errorf("the log shows the secret: %s", text)
		}
	}
	if text := fmt.Sprint(r.logs.FilterMessage(message).All()[0].ContextMap()["error"]); !strings.Contains(text, "401 Unauthorized unauthorized") {
		t.Errorf("error = %s, want what the gateway answered", text)
	}
	cfg.Rebalance.Enabled = false
	r.reload(t, cfg)
	eventually(t, "placement is as configured", func() bool { return !r.pools[0].levelling.Load() })
	if got := r.sum("goshield_lb_rebalance_moved_total", nil); got != 0 {
		t.Errorf("moved = %v, want none", got)
	}
}

// A balancer that ends has the gateways send its devices away, those too that come late, and ends with
// none cut.
func TestShutdownSendsDevicesAway(t *testing.T) {
	t.Parallel()
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	pages := serveAdmin(t, a, b)
	cfg := rebalancing(t, pages, a.addr, b.addr)
	cfg.Drain = Drain{Window: 2 * time.Second, Timeout: time.Hour}
	r := start(t, cfg)
	r.waitUp(t, 2)
	d := r.devices(t, 10)
	var ended atomic.Bool
	d.wg.Go(func() { // devices come back as long as they are let in
		for !ended.Load() {
			if c, _, _ := tryConnect(r.Addr("device")); c != nil {
				_ = c.Close()
			}
		}
	})
	err := r.Shutdown(shutdownContext(t))
	ended.Store(true)
	if err != nil {
		t.Errorf("Shutdown = %v, want nil", err)
	}
	calls := pages.made()
	for _, g := range []*gateway{a, b} {
		if !slices.ContainsFunc(calls, func(c shedCall) bool { return c.upstream == g.addr && c.Connections >= 5 }) {
			t.Errorf("calls %+v; want one of %s for all its devices", calls, g.name)
		}
	}
	d.end()
}

// Where rebalancing is off, or there is no time to go elsewhere, nobody is asked.
func TestShutdownAsksNobody(t *testing.T) {
	t.Parallel()
	a := startGateway(t, "a", "127.0.0.1:0")
	pages := serveAdmin(t, a)
	for _, tt := range []struct {
		enabled bool
		window  time.Duration
	}{{false, time.Second}, {true, 0}} {
		cfg := rebalancing(t, pages, a.addr)
		cfg.Rebalance.Enabled = tt.enabled
		cfg.Drain = Drain{Window: tt.window, Timeout: time.Hour}
		r := start(t, cfg)
		r.waitUp(t, 1)
		r.connect(t)
		ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
		if err := r.Shutdown(ctx); err == nil {
			t.Error("Shutdown = nil, want that a connection was cut")
		}
		cancel()
		if calls := pages.made(); len(calls) != 0 {
			t.Errorf("enabled %t, window %s: calls %+v, want none", tt.enabled, tt.window, calls)
		}
	}
}

func TestShedURL(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ template, upstream, want string }{
		{"http://{host}:9090/readyz", "10.0.0.1:8443", "http://10.0.0.1:9090/api/shed"},
		{"http://{host}:9090/readyz", "[2001:db8::1]:8443", "http://[2001:db8::1]:9090/api/shed"},
		{"http://127.0.0.1:9090/upstreams/{addr}/readyz", "127.0.0.1:8443", "http://127.0.0.1:9090/upstreams/127.0.0.1:8443/api/shed"},
	} {
		if got, err := shedURL(tt.template, tt.upstream); got != tt.want || err != nil {
			t.Errorf("shedURL(%s, %s) = %s, %v; want %s", tt.template, tt.upstream, got, err, tt.want)
		}
	}
}

// A gateway that sends the call elsewhere does not get the secret sent there.
func TestShedFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	gateway := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer gateway.Close()
	addr := netip.MustParseAddrPort(gateway.Listener.Addr().(*net.TCPAddr).String())
	order := shedOrder{template: "http://{addr}/readyz", secret: secret.Static(adminSecret), over: time.Second}
	if _, err := newShedder().ask(t.Context(), order, addr, 1); err == nil || elsewhere.Load() != 0 {
		t.Errorf("error %v, %d calls elsewhere; want an error and none", err, elsewhere.Load())
	}
}
