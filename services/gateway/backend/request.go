package backend

import (
	"sync"
	"sync/atomic"

	"github.com/goshield/goshield/sdk/wire"
)

// request is one request in flight, as its link's table of streams holds it. Who
// takes it out of the table must release its endpoint's target, and end it: see done.
type request struct {
	endpoint *endpoint // where it is in flight
	waiter   Waiter
	retry    *retry // nil unless its service is idempotent; then waiter is unused
	sent     int64  // Router.clock
	deadline int64  // Router.clock
	maxReply int
	tag      uint32
	json     bool
}

// done tells the waiter, unless nobody waits any more.
func (q *request) done(r Reply) {
	if q.retry == nil {
		q.waiter.Done(q.tag, r)
	} else if q.retry.settle() {
		q.retry.waiter.Done(q.tag, r)
	}
}

// Handle stands for one request in flight. The zero Handle is one that has
// been answered.
type Handle struct {
	link   *liveLink
	stream uint64
	retry  *retry // instead of both, for a request that may move to another link
}

// Cancel says that nobody waits for the request any more and tells the backend
// so. If it returns true, Done has not been called and never will be. If it
// returns false, Done was called, or is being called at this moment by
// another goroutine. Calling it again, or late, does no harm.
func (h Handle) Cancel() bool {
	switch {
	case h.retry != nil:
		if !h.retry.settle() {
			return false
		}
		l, stream := h.retry.where()
		if l != nil {
			l.abandon(stream)
		}
		return true
	case h.link != nil:
		return h.link.abandon(h.stream)
	}
	return false
}

// retry is what a request of an idempotent service has besides, so that it can
// be sent once more to another endpoint.
type retry struct {
	// Static after construction.
	waiter Waiter
	req    Request // with a body of its own

	mu      sync.Mutex
	settled bool // answered or cancelled
	again   bool // sent twice
	link    *liveLink
	stream  uint64
}

// settle makes the caller the one who ends the request; false: somebody else
// has.
func (t *retry) settle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := !t.settled
	t.settled = true
	return first
}

// at notes where the request is in flight. false: it is over already, and need not be
// sent there.
func (t *retry) at(l *liveLink, stream uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.link, t.stream = l, stream
	return !t.settled
}

func (t *retry) where() (*liveLink, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.link, t.stream
}

// begin reports whether the request may be sent again: once, if anybody still
// waits.
func (t *retry) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.again || t.settled {
		return false
	}
	t.again = true
	return true
}

// The budget of retries: one for every ten requests, saved up to maxRetries. So of any requests in a row a tenth and maxRetries are
// sent twice at most, from the service's beginning a tenth and firstRetries. More would make an overloaded service's load twice what
// it is; see docs/adr/0022-what-counts-against-an-endpoint.md.
const (
	retryCost    = 10
	firstRetries = 1
	maxRetries   = 10
)

// budget counts what may be spent on retries, in tenths of one.
type budget struct{ tenths atomic.Int64 }

func (b *budget) earn() {
	for {
		have := b.tenths.Load()
		if have >= maxRetries*retryCost || b.tenths.CompareAndSwap(have, have+1) {
			return
		}
	}
}

func (b *budget) spend() bool {
	for {
		have := b.tenths.Load()
		if have < retryCost {
			return false
		}
		if b.tenths.CompareAndSwap(have, have-retryCost) {
			return true
		}
	}
}

// failures are the errors of one service, made once.
type failures struct {
	unavailable *wire.Error // no backend can be reached
	busy        *wire.Error // every backend has as many requests as it takes
	lost        *wire.Error // the link broke with the request in flight
	timeout     *wire.Error
	tooLarge    *wire.Error // the request is, for the backend's link
}

func newFailures(name string, cfg rules) failures {
	return failures{
		unavailable: wire.Errorf(wire.CodeBackendUnavailable, "no backend of service %s can be reached", name),
		busy:        wire.Errorf(wire.CodeBackendUnavailable, "every backend of service %s is busy", name),
		lost:        wire.Errorf(wire.CodeBackendUnavailable, "the backend of service %s was lost with the request in flight", name),
		timeout:     wire.Errorf(wire.CodeBackendTimeout, "service %s did not answer within %v", name, cfg.Timeout.D()),
		tooLarge:    wire.Errorf(wire.CodeBackendError, "the request is larger than the backend of service %s takes", name),
	}
}
