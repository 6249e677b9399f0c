//go:build linux

package eventloop

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	batch      = 64        // events taken at once: their sockets fit into the caches between read and write
	bufferSize = 64 << 10  // of the read buffer
	minSpace   = 8         // part of the buffer below which what it holds is written first
	turn       = 512 << 10 // bytes moved from one side before others have theirs
	queueLimit = 32 << 20  // bytes of a loop's backlogs above which it reads a chunk at a time
	holdLimit  = 256 << 20 // likewise, from which on it holds nothing more, where Options say nothing
)

// Tokens that are no pair's: a pair's are its index and side.
const (
	wakeToken     = -1
	listenerToken = -2 // and down: -2-i for loop.listeners[i]
)

// loop is one event loop: one epoll set, and everything that is needed to serve
// the connections in it. All but the last two groups is owned by run.
type loop struct {
	// Static after construction.
	engine     *Engine
	epoll      int32
	wakeup     int32 // eventfd
	queueLimit int
	holdLimit  int

	// Owned by run.
	events    []unix.EpollEvent
	buffer    []byte  // what is read is here until it is written, or copied to a backlog
	filled    int     // of buffer, by reads
	reads     []fetch // done in this batch and not passed on yet
	batch     uint    // number of the one in hand
	clock     int64   // nanoseconds since engine.epoch, at the start of this batch
	now       uint32  // the same in ticks; the wheel is behind until the batch is done
	yielded   int64   // the clock when the Go scheduler was last called
	settings  *Settings
	pairs     slab
	wheel     wheel
	store     store
	pipes     pipes
	ready     []int32 // pairs that used up their turn and have more to read
	served    []int32 // the list before it, for reuse
	closed    []*pair // to be given back to the slab after this batch
	dials     []*dial // for reuse
	accepting accepting
	peer      sockaddr // accept's result
	header    [64]byte // room for a PROXY header
	quit      bool

	// Told by any goroutine.
	mu    sync.Mutex
	inbox []message
	ended bool
	awake atomic.Bool // wakeup was written and its event has not been handled

	// Read by any goroutine.
	count        atomic.Int32     // connections, from Admit to Closed, those on their way to this loop included
	moved        [2]atomic.Uint64 // bytes, by the side they came from
	spliced      atomic.Uint64
	acceptErrors atomic.Uint64
}

func newLoop(e *Engine) (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll set: %w", err)
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		closeFD(int32(epoll))
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	l := &loop{
		engine:     e,
		epoll:      int32(epoll),
		wakeup:     int32(wakeup),
		queueLimit: min(queueLimit, e.holdLimit/2),
		holdLimit:  e.holdLimit,
		events:     make([]unix.EpollEvent, batch),
		buffer:     make([]byte, bufferSize),
		settings:   e.settings.Load(),
		pairs:      slab{free: -1},
		pipes:      pipes{limit: maxPipes},
	}
	l.wheel = newWheel(&l.pairs)
	// Edge-triggered, it tells of every write and never needs to be read.
	if errno := watch(l.epoll, l.wakeup, unix.EPOLLIN|unix.EPOLLET, wakeToken, 0); errno != 0 {
		l.release()
		return nil, fmt.Errorf("watch an eventfd: %w", errno)
	}
	return l, nil
}

// release closes what newLoop opened, and the pipes.
func (l *loop) release() {
	closeFD(l.epoll)
	closeFD(l.wakeup)
	l.pipes.close()
}

// run serves until it is told to quit.
func (l *loop) run() {
	for !l.quit {
		l.serve(l.wait())
	}
	l.pairs.each(func(p *pair) { l.finish(p, Cut) })
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.release()
}

// serve handles a batch of events. First everything is read, then it is all
// written: many calls of the same kind in a row find the kernel's code in the caches,
// and peers that were woken by the first write are still awake for the next.
func (l *loop) serve(n int) {
	l.batch++
	l.clock = l.exact()
	l.now = tickOf(l.clock)
	for i := range n {
		l.dispatch(&l.events[i])
	}
	l.passOn()
	l.expire()
	l.serveReady()
	l.reclaim()
}

// yieldEvery is how long a loop runs before it lets the Go scheduler choose anew: those who
// have something else to do in this process wait as long at most. After 10 ms without, the runtime's monitor
// thread takes for a hog what is a series of short waits, takes the P away in the middle of one, and is then
// itself awake every 20 µs for a while, which costs 4 to 8 % of all CPU time.
const yieldEvery = 4 * time.Millisecond

// spell is how long a loop waits for events without telling the Go scheduler, in milliseconds. Told of the wait,
// the scheduler gives the P to another thread after 20 µs already when all Ps have work, and the loop has to get it
// back before it can serve what woke it. A stop-the-world waits for the spell; a loop that has had
// nothing to do for so long tells the scheduler.
const spell = 1

// wait takes events, waiting for the first as long as no timer is due.
func (l *loop) wait() int {
	if l.clock-l.yielded > int64(yieldEvery) {
		l.yielded = l.clock
		runtime.Gosched()
	}
	if len(l.ready) > 0 {
		return epollPoll(l.epoll, l.events, 0)
	}
	patience := l.patience()
	if patience >= 0 && patience <= spell {
		return epollPoll(l.epoll, l.events, patience)
	}
	if n := epollPoll(l.epoll, l.events, spell); n > 0 {
		return n
	}
	return epollWait(l.epoll, l.events, patience)
}

// patience is how long the loop may wait for events, in milliseconds; -1: for ever.
func (l *loop) patience() int {
	next := int64(-1)
	if t := l.wheel.next(); t >= 0 {
		next = (l.clock/int64(tick) + t) * int64(tick)
	}
	if r := l.accepting.resume; r > 0 && (next < 0 || r < next) {
		next = r
	}
	if next < 0 {
		return -1
	}
	left := next - l.clock
	return int(max(0, min(left/int64(time.Millisecond)+1, 60_000)))
}

func (l *loop) dispatch(ev *unix.EpollEvent) {
	if ev.Fd < 0 {
		if ev.Fd == wakeToken {
			l.readInbox()
		} else {
			l.accept(int(listenerToken - ev.Fd))
		}
		return
	}
	p := l.pairs.at(ev.Fd >> 1)
	side := int(ev.Fd & 1)
	if p.fd[side] < 0 || side == upstream && uint8(ev.Pad) != p.epoch {
		return // closed earlier in this batch
	}
	if p.phase == open {
		l.relayEvent(p, side, ev.Events)
	} else {
		l.dialEvent(p, side, ev.Events)
	}
}

// tell leaves a message. One to a loop that has ended counts as done.
func (l *loop) tell(m message) {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		if m.done != nil {
			m.done.Done()
		}
		return
	}
	l.inbox = append(l.inbox, m)
	if !l.awake.Swap(true) {
		one := [8]byte{1}
		_, _ = unix.Write(int(l.wakeup), one[:]) // fails only if the counter is full, and then it is readable
	}
	l.mu.Unlock()
}

func (l *loop) readInbox() {
	l.awake.Store(false)
	l.mu.Lock()
	messages := l.inbox
	l.inbox = nil
	l.mu.Unlock()
	for i := range messages {
		m := &messages[i]
		switch m.kind {
		case adopt:
			l.adopt(m.fd, m.client, m.placement)
		case attach:
			l.attach(m.listener)
		case detach:
			l.detach(m.listener)
		case cutUpstream:
			l.cut(m.upstream)
		case cutLocal:
			m.found.Add(l.cutLocal(m.local))
		case newSettings:
			l.applySettings()
		case inspect:
			m.inspect()
		case quit:
			l.quit = true
		}
		if m.done != nil {
			m.done.Done()
		}
	}
}

// tickOf is the wheel's tick at an instant of the loop's clock.
func tickOf(clock int64) uint32 { return uint32(clock / int64(tick)) }

// ticks is a duration in ticks, rounded up.
func ticks(d time.Duration) uint32 {
	return uint32(min((d+tick-1)/tick, horizon))
}

// expire handles what has become due.
func (l *loop) expire() {
	if l.now != l.wheel.now {
		l.wheel.advance(l.now, l.timedOut)
	}
	if l.accepting.resume > 0 && l.clock >= l.accepting.resume {
		l.resumeAccepting()
	}
}

// postpone has p served after the batch in hand.
func (l *loop) postpone(p *pair) {
	if !p.listed {
		p.listed = true
		l.ready = append(l.ready, p.self)
	}
}

// serveReady gives another turn to the sides that have more to read.
func (l *loop) serveReady() {
	if len(l.ready) == 0 {
		return
	}
	l.ready, l.served = l.served[:0], l.ready
	for _, i := range l.served {
		p := l.pairs.at(i)
		p.listed = false
		for side := range p.fd {
			if p.phase == open && p.state[side]&readable != 0 {
				l.relay(p, side)
			}
		}
	}
}

// reclaim gives closed pairs back to the slab, now that no event in hand names
// them.
func (l *loop) reclaim() {
	for i, p := range l.closed {
		l.pairs.give(p)
		l.closed[i] = nil
	}
	l.closed = l.closed[:0]
}
