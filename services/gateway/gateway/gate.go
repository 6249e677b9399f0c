package gateway

import (
	"context"
	"errors"
	"sync"
)

// gateQueue is how many may wait at a gate for each one that it admits.
const gateQueue = 16

// errOverloaded refuses who finds the queue full.
var errOverloaded = errors.New("as many as allowed are waiting")

// gate admits up to limit at once and lets a bounded number wait, first come
// first served. It is safe for concurrent use.
type gate struct {
	mu    sync.Mutex
	limit int
	in    int
	queue []chan struct{} // closed when its owner is admitted
}

// setLimit changes the limit; those that are in stay.
func (g *gate) setLimit(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = n
	g.admit()
}

// admit lets in who waits, as far as there is room. mu is held.
func (g *gate) admit() {
	for g.in < g.limit && len(g.queue) > 0 {
		g.in++
		close(g.queue[0])
		g.queue = g.queue[1:]
	}
}

// enter waits to be admitted. Its error is errOverloaded at once, or ctx's.
func (g *gate) enter(ctx context.Context) error {
	g.mu.Lock()
	if g.in < g.limit {
		g.in++
		g.mu.Unlock()
		return nil
	}
	if len(g.queue) >= gateQueue*g.limit {
		g.mu.Unlock()
		return errOverloaded
	}
	turn := make(chan struct{})
	g.queue = append(g.queue, turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, c := range g.queue {
		if c == turn {
			g.queue = append(g.queue[:i], g.queue[i+1:]...)
			return ctx.Err()
		}
	}
	g.in-- // admitted in the same moment
	g.admit()
	return ctx.Err()
}

// leave makes room for another.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.in--
	g.admit()
}
