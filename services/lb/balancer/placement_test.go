package balancer

import "testing"

// While connections are evened out, new ones go where the fewest are, whatever algorithm says.
func TestLevellingPlacesByLeastConnections(t *testing.T) {
	a, b := startGateway(t, "a", "127.0.0.1:0"), startGateway(t, "b", "127.0.0.1:0")
	r := start(t, testConfig(a.addr, b.addr)) // round_robin
	r.waitUp(t, 2)
	onA := 0
	for onA < 4 { // kept open
		c, name := r.connect(t)
		if name == "a" {
			onA++
		} else {
			_ = c.Close()
		}
	}
	eventually(t, "none is left on b", func() bool {
		return r.sum("goshield_lb_connections", map[string]string{"upstream": b.addr}) == 0
	})
	r.pools[0].levelling.Store(true)
	for i := range 4 {
		if _, name := r.connect(t); name != "b" {
			t.Errorf("connection %d went to %s, which has more, want b", i, name)
		}
	}
	r.pools[0].levelling.Store(false)
	if got := r.gatewaysOf(4); got["a"] != 2 || got["b"] != 2 {
		t.Errorf("afterwards: %v, want them in turn", got)
	}
}
