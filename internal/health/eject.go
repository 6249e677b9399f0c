package health

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// An ejection lasts minEjection, each further one twice as long as the last up
// to maxEjection; the growth is forgotten when the target did without one for
// maxEjection.
const (
	minEjection = 5 * time.Second
	maxEjection = time.Minute
)

// Ejector takes a target out when real connections to it fail, and lets it
// back after a while. It is safe for concurrent use.
type Ejector struct {
	// Static after construction.
	after    int
	onChange func(ejected bool, reason string)

	failures atomic.Int64 // in a row

	mu       sync.Mutex
	timer    *time.Timer   // re-admission; nil unless ejected
	last     time.Duration // how long the last ejection was
	freedAt  time.Time     // when it ended
	stopped  bool
	notifies sync.WaitGroup // onChange calls under way
}

// NewEjector makes an Ejector that acts on after failures in a row; 0: never.
// onChange hears of each ejection, on the goroutine that told of the failure, and
// of each return, on one of its own. Ask Ejected for the present state: two
// changes close to each other may be heard of in either order.
func NewEjector(after int, onChange func(ejected bool, reason string)) *Ejector {
	return &Ejector{after: after, onChange: onChange}
}

// Succeeded tells of a connection that came about.
func (e *Ejector) Succeeded() {
	if e.failures.Load() != 0 {
		e.failures.Store(0)
	}
}

// Failed tells of one that did not.
func (e *Ejector) Failed(err error) {
	if n := e.failures.Add(1); e.after == 0 || n < int64(e.after) {
		return
	}
	e.mu.Lock()
	if e.stopped || e.timer != nil {
		e.mu.Unlock()
		return // ejected already; this is a connection that was under way
	}
	if time.Since(e.freedAt) > maxEjection {
		e.last = 0
	}
	e.last = min(max(2*e.last, minEjection), maxEjection)
	e.timer = time.AfterFunc(e.last, e.readmit)
	reason := fmt.Sprintf("%d failures in a row, out for %s: %v", e.after, e.last, err)
	e.notifies.Add(1)
	e.mu.Unlock()
	defer e.notifies.Done()
	e.onChange(true, reason)
}

// readmit runs on the timer's goroutine.
func (e *Ejector) readmit() { e.free("its ejection is over") }

// Pardon ends an ejection early: something else showed that the target is
// well again.
func (e *Ejector) Pardon(reason string) { e.free(reason) }

func (e *Ejector) free(reason string) {
	e.mu.Lock()
	if e.stopped || e.timer == nil {
		e.mu.Unlock()
		return
	}
	e.timer.Stop()
	e.timer, e.freedAt = nil, time.Now()
	// The next failure ejects again: it has not shown yet that it is cured.
	e.failures.Store(int64(e.after - 1))
	e.notifies.Add(1)
	e.mu.Unlock()
	defer e.notifies.Done()
	e.onChange(false, reason)
}

// Ejected reports whether the target is out.
func (e *Ejector) Ejected() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.timer != nil
}

// Stop ends it: after Stop returns, onChange is not called and none of its calls runs. It
// must not be called from onChange.
func (e *Ejector) Stop() {
	e.mu.Lock()
	e.stopped = true
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	e.mu.Unlock()
	e.notifies.Wait()
}
