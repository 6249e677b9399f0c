// Package wheel is a hashed timer wheel (Varghese and Lauck, 1987): one
// goroutine and one ticker for the deadlines of any number of connections, where a
// runtime timer each would cost more memory and more work.
//
//	w := wheel.New(100*time.Millisecond, 512)
//	go w.Run()
//	...
//	w.Schedule(&s.timer, s, w.Now()+int64(90*time.Second)) // s.Expire(now) is called then
//	...
//	w.Stop(&s.timer)
//	w.Close() // ends Run
//
// A timer fires within two ticks after its time, never before it. Scheduling and
// stopping cost a short lock and no allocation. A deadline that moves away, as an idle
// timeout does with every frame, need not be moved here: let it fire, look, and schedule it again.
package wheel

import (
	"sync"
	"time"
)

// Expirer is told that its timer's time has come. Expire runs on the wheel's
// goroutine: it must not block. now is the wheel's time. It may schedule or stop
// the timer.
type Expirer interface{ Expire(now int64) }

// Timer is a place in a wheel, to be embedded in what it belongs to. The zero Timer is not scheduled.
// Its fields are guarded by the wheel's lock.
type Timer struct {
	next, prev *Timer // in a slot's ring; nil: not scheduled
	owner      Expirer
	at         int64
}

// Wheel holds timers. Make it with New. Its methods are safe for concurrent
// use; none of its locks is held while Expire runs, so Schedule and Stop may be called under
// an owner's lock.
type Wheel struct {
	origin time.Time // static
	tick   int64     // ns; static
	stop   chan struct{}
	once   sync.Once
	done   chan struct{}

	due []due // owned by Run

	mu    sync.Mutex
	slots []Timer // heads of rings
	turn  int64   // ticks that Run has seen
}

type due struct {
	timer *Timer
	owner Expirer
}

// New makes a wheel of so many slots, each one tick wide. Deadlines beyond one
// turn of the wheel are fine; they are looked at once a turn.
func New(tick time.Duration, slots int) *Wheel {
	w := &Wheel{origin: time.Now(), tick: int64(tick), slots: make([]Timer, slots), stop: make(chan struct{}), done: make(chan struct{})}
	for i := range w.slots {
		head := &w.slots[i]
		head.next, head.prev = head, head
	}
	return w
}

// Now is the wheel's time: nanoseconds on the monotonic clock. It is never 0,
// which is free to mean "no time".
func (w *Wheel) Now() int64 { return int64(time.Since(w.origin)) + 1 }

// Schedule makes t fire at the time at, for owner, instead of when it was to fire before.
func (w *Wheel) Schedule(t *Timer, owner Expirer, at int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t.unlink()
	t.owner, t.at = owner, at
	turn := max((at+w.tick-1)/w.tick, w.turn+1) // the first tick at which the time has come
	head := &w.slots[turn%int64(len(w.slots))]
	t.prev, t.next = head.prev, head
	t.prev.next, t.next.prev = t, t
}

// Stop takes t out. Expire may be running, or about to, when it returns.
func (w *Wheel) Stop(t *Timer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t.unlink()
	t.owner = nil
}

func (t *Timer) unlink() {
	if t.next == nil {
		return
	}
	t.prev.next, t.next.prev = t.next, t.prev
	t.next, t.prev = nil, nil
}

// Run turns the wheel until Close. One goroutine runs it.
func (w *Wheel) Run() {
	defer close(w.done)
	ticker := time.NewTicker(time.Duration(w.tick))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			w.advance(w.Now())
		case <-w.stop:
			return
		}
	}
}

// Close ends Run, which must have been started, and waits for it. What is scheduled never fires.
func (w *Wheel) Close() {
	w.once.Do(func() { close(w.stop) })
	<-w.done
}

// advance fires what is due at now: the slots of all ticks since the last
// time, each of them once.
func (w *Wheel) advance(now int64) {
	w.mu.Lock()
	last, to := w.turn, now/w.tick
	from := max(last+1, to-int64(len(w.slots))+1)
	w.turn = max(last, to)
	for turn := from; turn <= to; turn++ {
		head := &w.slots[turn%int64(len(w.slots))]
		for t := head.next; t != head; {
			next := t.next
			if t.at <= now {
				t.unlink()
				w.due = append(w.due, due{t, t.owner})
			}
			t = next
		}
	}
	w.mu.Unlock()
	for i, d := range w.due {
		d.owner.Expire(now)
		w.due[i] = due{}
	}
	w.due = w.due[:0]
}
