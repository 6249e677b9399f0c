package balancer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/services/lb/relay"
)

func TestGate(t *testing.T) {
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name  string
			max   int
			perIP PerIP
			steps string // 1, 2: that address enters; x, y: leaves; s: a second passes
			want  []refusal
		}{
			{"no limits", 100, PerIP{}, "1111", []refusal{"", "", "", ""}},
			{"all together", 2, PerIP{}, "121x1", []refusal{"", "", overConnections, ""}},
			{"connections of an address", 100, PerIP{MaxConnections: 2}, "1112x1", []refusal{"", "", overPerIP, "", ""}},
			{"rate of an address", 100, PerIP{ConnectionsPerSecond: 1, Burst: 2}, "1112s11", []refusal{"", "", overPerIPRate, "", "", overPerIPRate}},
			{"a second's worth of burst", 100, PerIP{ConnectionsPerSecond: 3}, "1111s1111", []refusal{"", "", "", overPerIPRate, "", "", "", overPerIPRate}},
			{"one refused by its address does not count", 2, PerIP{MaxConnections: 1}, "11112", []refusal{"", overPerIP, overPerIP, overPerIP, ""}},
		} {
			g := newGate(tt.max, tt.perIP, nil, noStats)
			var got []refusal
			for _, step := range tt.steps {
				switch step {
				case '1':
					_, why := g.enter(one)
					got = append(got, why)
				case '2':
					_, why := g.enter(other)
					got = append(got, why)
				case 'x':
					g.leave(one, tt.perIP.MaxConnections > 0)
				case 's':
					time.Sleep(time.Second)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		}
	})
}

func TestSourceOf(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"2001:db8::1", "2001:db8::ffff:1", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"0.0.0.0", "::1", false},
	} {
		if got := sourceOf(netip.MustParseAddr(tt.a)) == sourceOf(netip.MustParseAddr(tt.b)); got != tt.same {
			t.Errorf("%s and %s are one client: %t, want %t", tt.a, tt.b, got, tt.same)
		}
	}
}

// Limits that change hold for connections to come; those that are open are counted as they were
// when they came.
func TestGateSet(t *testing.T) {
	one := netip.MustParseAddr("192.0.2.1")
	g := newGate(100, PerIP{}, nil, noStats)
	before, _ := g.enter(one)
	g.set(100, PerIP{MaxConnections: 1})
	counted, why := g.enter(one)
	if before || !counted || why != "" {
		t.Errorf("counted = %t, then %t %q; want one counted from the change on", before, counted, why)
	}
	if _, why := g.enter(one); why != overPerIP {
		t.Errorf("over the new limit: %q, want %q", why, overPerIP)
	}
	g.leave(one, before)
	if _, why := g.enter(one); why != overPerIP {
		t.Errorf("after the uncounted one left: %q, want %q", why, overPerIP)
	}
	g.set(1, PerIP{})
	if _, why := g.enter(one); why != overConnections {
		t.Errorf("over the new limit of all: %q, want %q", why, overConnections)
	}
	g.leave(one, counted)
	if n := g.open.Load(); n != 0 || len(g.shardOf(sourceOf(one)).open) != 0 {
		t.Errorf("%d open, %d of the address; want none", n, len(g.shardOf(sourceOf(one)).open))
	}
}

// However many addresses come, what is kept for them is bounded; and they do
// not help one that is over its limit.
func TestGateMemory(t *testing.T) {
	g := newGate(1<<30, PerIP{ConnectionsPerSecond: 1, Burst: 1, MaxConnections: 1}, nil, noStats)
	greedy := netip.MustParseAddr("203.0.113.1")
	g.enter(greedy)
	g.leave(greedy, true)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range uint32(1_000_000) {
		var b [16]byte
		b[0] = 0x20
		binary.BigEndian.PutUint32(b[4:], i)
		a := netip.AddrFrom16(b)
		if _, why := g.enter(a); why != "" {
			t.Fatalf("address %d refused: %s", i, why)
		}
		g.leave(a, true)
		if i%10_000 == 0 {
			if _, why := g.enter(greedy); why == "" && time.Since(g.start) < 900*time.Millisecond {
				t.Errorf("after %d other addresses one over its rate got in", i)
			} else if why == "" {
				g.leave(greedy, true)
			}
		}
	}
	if grown := heap() - before; grown > 16<<20 {
		t.Errorf("a million addresses left %d KiB, want at most 16 MiB", grown>>10)
	}
	kept := 0
	for i := range g.shards {
		kept += len(g.shards[i].recent) + len(g.shards[i].older)
		if n := len(g.shards[i].open); n != 0 {
			t.Errorf("%d addresses count as connected, want 0", n)
		}
	}
	if limit := gateShards * 2 * bucketsGeneration; kept > limit {
		t.Errorf("%d buckets kept, want at most %d", kept, limit)
	}
}

func TestLimitsRefuse(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	for _, tt := range []struct {
		reason refusal
		set    func(*Config)
	}{
		{overConnections, func(c *Config) { c.MaxConnections = 2 }},
		{overPerIP, func(c *Config) { c.PerIP.MaxConnections = 2 }},
		{overPerIPRate, func(c *Config) { c.PerIP.ConnectionsPerSecond, c.PerIP.Burst = 0.001, 2 }},
	} {
		cfg := testConfig(a.addr)
		tt.set(&cfg)
		r := start(t, cfg)
		r.waitUp(t, 1)
		c1, _ := r.connect(t)
		c2, _ := r.connect(t)
		if got := r.gatewaysOf(3); got[""] != 3 {
			t.Errorf("%s: over the limit: %v, want refusals", tt.reason, got)
		}
		if got := r.sum("goshield_lb_rejected_total", map[string]string{"reason": string(tt.reason)}); got != 3 {
			t.Errorf("%s: counted %v, want 3", tt.reason, got)
		}
		c1.echo(t)
		_ = c2.Close()
		if tt.reason != overPerIPRate {
			eventually(t, "a place is free again", func() bool { return r.gatewaysOf(1)["a"] == 1 })
		} else if got := r.sum("goshield_ratelimit_decisions_total", map[string]string{"scope": "ip", "result": "reject"}); got != 3 {
			t.Errorf("rate decisions = %v, want 3", got)
		}
		r.Kill()
	}
}

// noStats are an engine's that does nothing.
func noStats() relay.Stats { return relay.Stats{} }
