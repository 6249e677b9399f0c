package balancer

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// RELIABILITY row 22: a gateway that is frozen, whose kernel goes on accepting, gets no new connections and keeps those it has;
// when it wakes it gets some again. How soon it is left is TestFrozenGatewayIsLeft's.
func TestFrozenGatewayGetsNoneUntilItWakes(t *testing.T) {
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	var mu sync.Mutex
	var frozen chan struct{} // closed when a wakes; nil: it is awake
	pages := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		until := frozen
		mu.Unlock()
		if until != nil && strings.Contains(r.URL.Path, a.addr) {
			select {
			case <-until:
			case <-r.Context().Done():
			}
		}
	}))
	defer pages.Close()
	cfg := testConfig(a.addr, b.addr)
	cfg.Health.HTTP = pages.URL + "/{addr}/readyz"
	cfg.Health.Timeout, cfg.Health.Fall = time.Second, 2
	r := start(t, cfg)
	r.waitUp(t, 2)
	var onA *client
	for onA == nil {
		if c, name := r.connect(t); name == "a" {
			onA = c
		}
	}
	up := func(g *gateway) float64 {
		return r.sum("goshield_lb_upstream_up", map[string]string{"upstream": g.addr})
	}
	until := make(chan struct{})
	mu.Lock()
	frozen = until
	mu.Unlock()
	eventually(t, "a is left, and b is well", func() bool { return up(a) == 0 && up(b) == 1 })
	r.told()
	if got := r.gatewaysOf(4); got["b"] != 4 {
		t.Errorf("a is frozen: %v, want all on b", got)
	}
	onA.echo(t)
	mu.Lock()
	frozen = nil
	mu.Unlock()
	close(until)
	eventually(t, "a gets its half again", func() bool { return r.gatewaysOf(4)["a"] == 2 })
	onA.echo(t)
	if reason := r.logs.FilterMessage("upstream down").All()[0].ContextMap()["reason"]; reason != "no answer within 1s" {
		t.Errorf("reason = %v, want that it did not answer", reason)
	}
}
