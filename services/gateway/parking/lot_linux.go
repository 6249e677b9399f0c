package parking

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// batch is how many connections are woken for one system call.
const batch = 256

// Lot is a set of parked connections: one epoll set. Each is armed for one event (EPOLLONESHOT), level-triggered, so
// that bytes that came before it was parked are noticed, too. The set itself is watched by Go's own poller: no thread
// is held while nothing happens, and waking costs what waking any goroutine does.
//
// Its methods are safe for concurrent use; no lock is held while Wake runs.
type Lot struct {
	file   *os.File // of the epoll set; static
	raw    syscall.RawConn
	done   chan struct{}
	events [batch]unix.EpollEvent // owned by Run

	mu    sync.Mutex
	slots []slot
	free  []uint32 // slots that nobody has, counted from 1
}

// slot is who has a place. An event names its slot and the slot's turn, not the connection's descriptor: a descriptor may
// have been closed and be another connection's when an event is looked at.
type slot struct {
	waker Waker  // nil: nobody
	turn  uint32 // how many have had the slot
}

// New makes a lot; Run must be called, and Close ends it.
func New() (*Lot, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create an epoll set: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else os.NewFile would not have it polled
		_ = unix.Close(fd)
		return nil, fmt.Errorf("create an epoll set: %w", err)
	}
	l := &Lot{file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{})}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		_ = l.file.Close()
		return nil, fmt.Errorf("create an epoll set: %w", err)
	}
	return l, nil
}

// Park has w told when the connection can be read from, which may be at once. false: it cannot be parked, now or at all,
// and w will hear nothing.
func (l *Lot) Park(s *Space, w Waker) bool {
	op, data := unix.EPOLL_CTL_MOD, unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT}
	l.mu.Lock()
	if s.slot == 0 {
		op = unix.EPOLL_CTL_ADD
		s.slot = l.assign(w)
	}
	data.Fd, data.Pad = int32(s.slot), int32(l.slots[s.slot-1].turn)
	l.mu.Unlock()
	if l.control(s, op, &data) == nil {
		return true
	}
	if op == unix.EPOLL_CTL_ADD {
		l.Leave(s)
	}
	return false
}

// control changes the epoll set. Control holds both descriptors open meanwhile.
func (l *Lot) control(s *Space, op int, event *unix.EpollEvent) (err error) {
	closed := l.raw.Control(func(set uintptr) {
		gone := s.raw.Control(func(fd uintptr) { err = unix.EpollCtl(int(set), op, int(fd), event) })
		err = errors.Join(err, gone)
	})
	return errors.Join(err, closed)
}

// assign gives w a slot, counted from 1. mu is held.
func (l *Lot) assign(w Waker) uint32 {
	if n := len(l.free); n > 0 {
		i := l.free[n-1]
		l.free = l.free[:n-1]
		l.slots[i-1].waker = w
		return i
	}
	l.slots = append(l.slots, slot{waker: w})
	return uint32(len(l.slots))
}

// Leave gives the connection's place to others, before it is closed, which takes it out of the epoll set.
func (l *Lot) Leave(s *Space) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.slot == 0 {
		return
	}
	at := &l.slots[s.slot-1]
	at.waker = nil
	at.turn++
	l.free = append(l.free, s.slot)
	s.slot = 0
}

// Run wakes until Close. One goroutine runs it.
func (l *Lot) Run() {
	defer close(l.done)
	for {
		n := 0
		err := l.raw.Read(func(fd uintptr) bool {
			n = l.poll(int(fd))
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for i := range l.events[:n] {
			if w := l.owner(&l.events[i]); w != nil {
				w.Wake()
			}
		}
	}
}

// poll is how many connections are ready now. With none, the set is quiet, and Go's poller says when it no longer is.
func (l *Lot) poll(fd int) int {
	for {
		n, err := unix.EpollWait(fd, l.events[:], 0)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0) // any other error would be a fault of ours: the descriptor is held open by Read
		}
	}
}

// owner is whom an event is for; nil if it has left.
func (l *Lot) owner(e *unix.EpollEvent) Waker {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := &l.slots[uint32(e.Fd)-1]
	if at.turn != uint32(e.Pad) {
		return nil
	}
	return at.waker
}

// Close ends Run, which must have been started, and waits for it. What is parked stays so and is never woken.
func (l *Lot) Close() {
	_ = l.file.Close() // nothing was written
	<-l.done
}
