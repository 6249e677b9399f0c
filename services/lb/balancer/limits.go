package balancer

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/internal/bucket"
	"github.com/goshield/goshield/services/lb/relay"
)

// refusal is why a connection was not taken, a metric's label; "" is no refusal.
type refusal string

const (
	overConnections   refusal = "max_connections"
	overPerIP         refusal = "per_ip_connections"
	overPerIPRate     refusal = "per_ip_rate"
	noUpstream        refusal = "no_upstream"
	connectFailed     refusal = "connect_failed"
	shortOfResources  refusal = "resources" // of this machine: descriptors, ports, memory
	gateShards                = 16
	bucketsGeneration         = 4096 // per shard
)

var refusals = [...]refusal{overConnections, overPerIP, overPerIPRate, noUpstream, connectFailed, shortOfResources}

// gate counts the connections that are open and refuses those over the
// limits. Its memory is bounded: what it keeps for an address that has connections open
// by max_connections, and the buckets of others by forgetting those not asked
// about for longest, which were full or nearly so.
type gate struct {
	// Static after construction.
	seed     maphash.Seed
	start    time.Time
	observer func(allowed bool) // hears of each decision of the rate; may be nil
	memory   *memory

	limits   atomic.Pointer[limits] // never nil
	open     atomic.Int64
	admitted atomic.Uint64 // since the start
	shards   [gateShards]gateShard
}

// limits never change once they are in force; set puts others in their place.
type limits struct {
	max   int64
	perIP int32 // connections; 0: no limit
	rate  bucket.Limit
}

type gateShard struct {
	mu   sync.Mutex
	open map[source]int32
	// Buckets of two generations: when recent is full it becomes older, and
	// what was older is forgotten.
	recent, older map[source]bucket.Bucket
}

// source is what is limited as one client: an IPv4 address, or the /64 that
// an IPv6 subscriber has to himself.
type source struct {
	bits uint64
	v4   bool
}

func sourceOf(a netip.Addr) source {
	if a.Is4() {
		b := a.As4()
		return source{bits: uint64(binary.BigEndian.Uint32(b[:])), v4: true}
	}
	b := a.As16()
	return source{bits: binary.BigEndian.Uint64(b[:8])}
}

func newGate(maxConnections int, p PerIP, observer func(allowed bool), stats func() relay.Stats) *gate {
	g := &gate{seed: maphash.MakeSeed(), start: time.Now(), observer: observer, memory: newMemory(stats)}
	for i := range g.shards {
		g.shards[i].open = map[source]int32{}
		g.shards[i].recent = map[source]bucket.Bucket{}
	}
	g.set(maxConnections, p)
	return g
}

// set changes the limits for connections to come.
func (g *gate) set(maxConnections int, p PerIP) {
	burst := float64(p.Burst)
	if burst == 0 {
		burst = p.ConnectionsPerSecond
	}
	g.limits.Store(&limits{
		max:   int64(maxConnections),
		perIP: int32(p.MaxConnections),
		rate:  bucket.NewLimit(p.ConnectionsPerSecond, burst),
	})
}

func (g *gate) shardOf(s source) *gateShard {
	return &g.shards[maphash.Comparable(g.seed, s)%gateShards]
}

// enter counts a connection in. If it is not refused it must leave again, with what was told of
// counted: whether it was counted for its address, too.
func (g *gate) enter(a netip.Addr) (counted bool, why refusal) {
	if g.memory.short() {
		return false, shortOfResources
	}
	l := g.limits.Load()
	if g.open.Add(1) > l.max {
		g.open.Add(-1)
		return false, overConnections
	}
	if l.perIP > 0 || !l.rate.Unlimited() {
		if why := g.enterAddress(l, sourceOf(a)); why != "" {
			g.open.Add(-1)
			return false, why
		}
	}
	g.admitted.Add(1)
	return l.perIP > 0, ""
}

func (g *gate) enterAddress(l *limits, s source) refusal {
	shard := g.shardOf(s)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if l.perIP > 0 && shard.open[s] >= l.perIP {
		return overPerIP
	}
	if !l.rate.Unlimited() {
		allowed := shard.take(l.rate, s, int64(time.Since(g.start)))
		if g.observer != nil {
			g.observer(allowed)
		}
		if !allowed {
			return overPerIPRate
		}
	}
	if l.perIP > 0 {
		shard.open[s]++
	}
	return ""
}

// take takes one token of the source's bucket.
func (s *gateShard) take(rate bucket.Limit, from source, now int64) bool {
	b, ok := s.recent[from]
	if !ok {
		b = s.older[from]
		if len(s.recent) >= bucketsGeneration {
			s.older, s.recent = s.recent, make(map[source]bucket.Bucket)
		}
	}
	allowed, _ := rate.Take(&b, now, 1)
	s.recent[from] = b
	return allowed
}

// leave counts a connection out.
func (g *gate) leave(a netip.Addr, counted bool) {
	g.open.Add(-1)
	if !counted {
		return
	}
	s := sourceOf(a)
	shard := g.shardOf(s)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.open[s]--; shard.open[s] <= 0 {
		delete(shard.open, s)
	}
}
