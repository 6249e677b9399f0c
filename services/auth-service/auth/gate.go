package auth

import (
	"sync/atomic"
	"time"
)

// waitersPerSlot bounds the queue before the gate: who comes later is told to come back.
const waitersPerSlot = 4

// gate bounds how many requests are worked on at once, and how many wait for that.
type gate struct {
	slots   chan struct{}
	waiting atomic.Int64
}

func newGate(slots int) *gate { return &gate{slots: make(chan struct{}, slots)} }

// enter reports whether the request may go on; it waits at most for patience, and not at all
// where too many do. After true, leave must be called.
func (g *gate) enter(patience time.Duration) bool {
	select {
	case g.slots <- struct{}{}:
		return true
	default:
	}
	if g.waiting.Add(1) > int64(waitersPerSlot*cap(g.slots)) {
		g.waiting.Add(-1)
		return false
	}
	defer g.waiting.Add(-1)
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case g.slots <- struct{}{}:
		return true
	case <-t.C:
		return false
	}
}

func (g *gate) leave() { <-g.slots }
