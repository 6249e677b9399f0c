// Package balance picks one of a set of targets: upstreams for connections,
// backend links for requests.
//
//	b, err := balance.New(balance.LeastConnections)
//	a := balance.NewTarget("10.0.0.1:8443", 1)
//	b.Set([]*balance.Target{a, balance.NewTarget("10.0.0.2:8443", 3)})
//	t := b.Pick(0, nil) // nil when there is none
//	t.Acquire()
//	defer t.Release()
//
// It knows no sockets and no health: the caller gives it the targets that may
// be picked now, whole, whenever that set changes, and it is picked from
// without a lock and without an allocation, by any number of goroutines.
//
// # Algorithms
//
// round_robin is the smooth weighted one of nginx: of weights 5, 1, 1 the order
// is a a b a c a a, not a a a a a b c. The order is worked out once per set;
// a pick is one atomic addition. Targets that join or leave do not restart it,
// or the first of the list would get more than its share from a set that changes
// often.
//
// least_connections (least_inflight is the same, said of requests) takes the
// target with the fewest in flight for its weight, counting the one to be
// placed; of equals, each in turn.
//
// least_response_time multiplies that by the moving average of what Observe was
// told. Each observation weighs the more the longer ago the last one was, and the average
// itself fades with time, halving every HalfLife: a target that was slow is
// tried again after a while, and one observation then tells whether it is
// cured. One that was never observed counts as no slower than the fastest, so it
// is tried at once but does not draw everything to itself.
//
// source_hash maps a key to a target by a Maglev table (Eisenbud et al., "Maglev: A
// Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4): each
// target fills its share of 65 537 slots in an order of its own, made from its
// name. One target lost moves its keys and hardly any other, and two balancers
// with the same targets, in whatever order, agree. A key whose target is skipped always
// goes to the same second choice.
package balance

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// The algorithms that New knows. LeastInFlight is another name of
// LeastConnections.
const (
	RoundRobin        = "round_robin"
	LeastConnections  = "least_connections"
	LeastInFlight     = "least_inflight"
	LeastResponseTime = "least_response_time"
	SourceHash        = "source_hash"
)

// MaxWeight is the largest weight a target can have; the smallest is 1.
const MaxWeight = 256

type algorithm uint8

const (
	roundRobin algorithm = iota
	leastConnections
	leastResponseTime
	sourceHash
)

// Balancer picks from the targets it was last given. All methods are safe for
// concurrent use. The zero value is not usable.
type Balancer struct {
	algorithm algorithm // static after construction
	born      time.Time // static after construction; the origin of entry.born

	set  atomic.Pointer[snapshot] // never nil; a snapshot never changes
	turn atomic.Uint64            // round robin's place, and the first to look at among equals
}

// entry is a target with its weight as it was when the set was given.
type entry struct {
	*Target
	perWeight float64 // 1 / (weight × share)
	born      uint32  // milliseconds, of the Target, after the Balancer's own
}

// snapshot is one set of targets and what the algorithm worked out of it.
type snapshot struct {
	entries []entry  // by name
	order   []uint16 // round robin: indices of entries, in turn
	table   []uint16 // source hash: index of entries by slot
}

// New makes a Balancer without targets. The error lists the names it knows.
func New(algorithm string) (*Balancer, error) {
	b := &Balancer{born: time.Now()}
	switch algorithm {
	case RoundRobin:
		b.algorithm = roundRobin
	case LeastConnections, LeastInFlight:
		b.algorithm = leastConnections
	case LeastResponseTime:
		b.algorithm = leastResponseTime
	case SourceHash:
		b.algorithm = sourceHash
	default:
		names := []string{RoundRobin, LeastConnections, LeastInFlight, LeastResponseTime, SourceHash}
		return nil, fmt.Errorf("unknown algorithm %q: must be one of %s", algorithm, strings.Join(names, ", "))
	}
	b.set.Store(&snapshot{})
	return b, nil
}

// Set replaces the targets that are picked from. Their names must differ; at most
// 65 535 are used. Weights and shares count as they are now: after changing
// one, call Set again. A Target may be in several Balancers.
func (b *Balancer) Set(targets []*Target) {
	s := &snapshot{entries: make([]entry, 0, len(targets))}
	for _, t := range targets[:min(len(targets), math.MaxUint16)] {
		s.entries = append(s.entries, entry{
			Target:    t,
			perWeight: 1 / t.effective(),
			born:      uint32(t.born.Sub(b.born).Milliseconds()),
		})
	}
	slices.SortFunc(s.entries, func(x, y entry) int { return strings.Compare(x.name, y.name) })
	switch b.algorithm {
	case roundRobin:
		s.order = smooth(s.entries)
	case sourceHash:
		s.table = maglev(s.entries)
	}
	b.set.Store(s)
}

// Targets is the set that is picked from now, by name. The caller may keep it.
func (b *Balancer) Targets() []*Target {
	s := b.set.Load()
	list := make([]*Target, len(s.entries))
	for i, e := range s.entries {
		list[i] = e.Target
	}
	return list
}

// Pick returns a target for which skip (nil: none) is false, or nil if there
// is none. Only source_hash looks at key; equal keys get equal targets. Picking does
// not count: call Acquire on what was picked.
func (b *Balancer) Pick(key uint64, skip func(*Target) bool) *Target {
	s := b.set.Load()
	if len(s.entries) == 0 {
		return nil
	}
	switch b.algorithm {
	case leastConnections:
		return s.leastConnections(b.turn.Add(1)-1, skip)
	case leastResponseTime:
		return s.leastResponseTime(b.turn.Add(1)-1, uint32(time.Since(b.born).Milliseconds()), skip)
	case sourceHash:
		return s.byHash(key, skip)
	default:
		return s.inTurn(b.turn.Add(1)-1, skip)
	}
}

func (s *snapshot) inTurn(turn uint64, skip func(*Target) bool) *Target {
	n := uint64(len(s.order))
	at := turn % n
	for range n {
		if t := s.entries[s.order[at]].Target; skip == nil || !skip(t) {
			return t
		}
		if at++; at == n {
			at = 0
		}
	}
	return nil
}

func (s *snapshot) leastConnections(turn uint64, skip func(*Target) bool) *Target {
	n := len(s.entries)
	var best *Target
	least := math.Inf(1)
	at := int(turn % uint64(n))
	for range n {
		e := &s.entries[at]
		if at++; at == n {
			at = 0
		}
		load := float64(e.inFlight.Load()+1) * e.perWeight
		if load < least && (skip == nil || !skip(e.Target)) {
			best, least = e.Target, load
		}
	}
	return best
}

func (s *snapshot) leastResponseTime(turn uint64, now uint32, skip func(*Target) bool) *Target {
	n := len(s.entries)
	var best, fresh *Target // fresh: of those never observed
	least, leastFresh, fastest := math.Inf(1), math.Inf(1), math.Inf(1)
	at := int(turn % uint64(n))
	for range n {
		e := &s.entries[at]
		if at++; at == n {
			at = 0
		}
		if skip != nil && skip(e.Target) {
			continue
		}
		load := float64(e.inFlight.Load()+1) * e.perWeight
		average, observed := e.average(now - e.born)
		if !observed {
			if load < leastFresh {
				fresh, leastFresh = e.Target, load
			}
			continue
		}
		fastest = min(fastest, average)
		if score := load * average; score < least {
			best, least = e.Target, score
		}
	}
	if best == nil || fresh != nil && leastFresh*fastest <= least {
		return fresh
	}
	return best
}

// byHash looks the key up and, while what it finds is skipped, looks up the
// key's hash, its hash's hash and so on: a fixed chain of choices per key.
func (s *snapshot) byHash(key uint64, skip func(*Target) bool) *Target {
	h := mix(key)
	for range 2 * len(s.entries) {
		if t := s.entries[s.table[h%tableSize]].Target; skip == nil || !skip(t) {
			return t
		}
		h = mix(h)
	}
	// By now the chain has met all but those of the smallest weights.
	at := int(h % uint64(len(s.entries)))
	for range s.entries {
		if t := s.entries[at].Target; !skip(t) {
			return t
		}
		at = (at + 1) % len(s.entries)
	}
	return nil
}
