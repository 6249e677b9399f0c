package backend

import (
	"context"
	"sync"
	"time"
)

// callContext is the context of one request. What a context.WithDeadline costs
// (a timer, a channel, several allocations) it pays only if the handler asks for
// Done: most fast ones never do.
type callContext struct {
	deadline time.Time // zero: none. Static

	mu        sync.Mutex
	cancelled bool
	inner     context.Context // nil until it is needed
	end       context.CancelFunc
}

// full is the standard context behind c, made when it is first needed.
func (c *callContext) full() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		if c.deadline.IsZero() {
			c.inner, c.end = context.WithCancel(context.Background())
		} else {
			c.inner, c.end = context.WithDeadline(context.Background(), c.deadline)
		}
		if c.cancelled {
			c.end()
		}
	}
	return c.inner
}

// cancel ends the context and reports whether it had been cancelled before.
func (c *callContext) cancel() (before bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before = c.cancelled
	c.cancelled = true
	if c.end != nil {
		c.end()
	}
	return before
}

// ended is why a call that has not begun need not begin; nil: it need. Unlike Err it makes nothing.
func (c *callContext) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cancelled:
		return context.Canceled
	case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
		return context.DeadlineExceeded
	}
	return nil
}

// Deadline implements context.Context.
func (c *callContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }

// Done implements context.Context.
func (c *callContext) Done() <-chan struct{} { return c.full().Done() }

// Err implements context.Context.
func (c *callContext) Err() error { return c.full().Err() }

// Value implements context.Context. It finds nothing of anybody's, but
// the context package finds its own there: contexts derived from c need no
// goroutine.
func (c *callContext) Value(key any) any { return c.full().Value(key) }
