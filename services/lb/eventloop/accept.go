//go:build linux

package eventloop

import (
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A loop accepts one connection when the listener has some, and twice as many each
// time it has had more for fullTurns batches on end. Asking in vain is dear: the kernel makes
// a socket before it looks whether there is a connection for it.
const (
	maxAccepts = 64
	fullTurns  = 4
)

// The pause after a failed accept doubles from minPause to maxPause, and is
// forgotten once a connection has got through to an upstream: with one descriptor
// left, accepting goes well and connecting fails.
const (
	minPause = 5 * time.Millisecond
	maxPause = time.Second
)

// pairEvents is what is asked of both sockets of a pair, once and for all:
// edge-triggered, the kernel tells of each change, and what was left over is this
// side's to remember. Urgent data is not relayed, but ends a read before the
// socket is empty.
const pairEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET

// accepting is what a loop knows of its listeners.
type accepting struct {
	listeners []*listener // nil where one was detached; a listener's token is its index
	paused    bool        // none is in the epoll set
	turn      int         // how many to accept at once
	full      int         // batches on end in which there were as many
	batch     uint        // the last of them
	resume    int64       // instant of the loop's clock, 0: not paused
	pause     time.Duration
}

func (l *loop) attach(ls *listener) {
	i := slices.Index(l.accepting.listeners, nil)
	if i < 0 {
		i = len(l.accepting.listeners)
		l.accepting.listeners = append(l.accepting.listeners, nil)
	}
	l.accepting.listeners[i] = ls
	if !l.accepting.paused {
		l.watchListener(i)
	}
}

// watchListener shares the socket with the other loops: the kernel wakes one of
// those that wait.
func (l *loop) watchListener(i int) {
	ls := l.accepting.listeners[i]
	if errno := watch(l.epoll, ls.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, int32(listenerToken-i), 0); errno != 0 {
		l.pauseAccepting(ls, errno) // out of memory, or of watches
	}
}

// detach stops accepting from ls. The last loop to do so takes what is already
// waiting, and closes the socket.
func (l *loop) detach(ls *listener) {
	for i, other := range l.accepting.listeners {
		if other == ls {
			l.accepting.listeners[i] = nil
			unwatch(l.epoll, ls.fd)
		}
	}
	if ls.attached.Add(-1) > 0 {
		return
	}
	for !l.engine.closing.Load() {
		fd, errno := accept(ls.fd, &l.peer)
		if errno == 0 {
			l.welcome(ls, fd)
		} else if !passing(errno) {
			break
		}
	}
	closeFD(ls.fd)
}

// passing reports whether an error of accept concerns one connection, and the next
// may do. The kernel hands on errors that the connection had before it was accepted.
func passing(errno unix.Errno) bool {
	switch errno {
	case unix.EINTR, unix.ECONNABORTED, unix.EPROTO, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EPERM,
		unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET, unix.ETIMEDOUT:
		return true
	}
	return false
}

// accept takes the connections that wait at a listener.
func (l *loop) accept(i int) {
	ls := l.accepting.listeners[i]
	if ls == nil || l.accepting.paused {
		return
	}
	for done := range l.accepting.nextTurn(l.batch) {
		fd, errno := accept(ls.fd, &l.peer)
		switch {
		case errno == 0:
			l.welcome(ls, fd)
			if l.accepting.paused {
				return
			}
		case errno == unix.EAGAIN:
			l.accepting.turn, l.accepting.full = done, 0
			return
		case !passing(errno):
			l.pauseAccepting(ls, errno)
			return
		}
	}
}

// nextTurn is how many connections to accept in a batch.
func (a *accepting) nextTurn(batch uint) int {
	if batch != a.batch+1 {
		a.full = 0
	} else if a.full++; a.full >= fullTurns {
		a.full = 0
		a.turn = min(2*a.turn, maxAccepts)
	}
	a.batch = batch
	a.turn = max(a.turn, 1)
	return a.turn
}

// welcome has a new connection admitted, and gives it to the loop with the fewest.
// The kernel would give most to one loop: those that wait are woken in a
// fixed order.
func (l *loop) welcome(ls *listener, fd int32) {
	peer := l.peer.addrPort()
	placement := ls.director.Admit(peer)
	if placement == nil {
		resetOnClose(fd)
		closeFD(fd)
		return
	}
	target := l.engine.lightest(l)
	target.count.Add(1)
	if target == l {
		l.adopt(fd, peer, placement)
	} else {
		target.tell(message{kind: adopt, fd: fd, client: peer, placement: placement})
	}
}

// adopt makes an accepted connection this loop's own.
func (l *loop) adopt(fd int32, peer netip.AddrPort, placement Placement) {
	p := l.pairs.take()
	p.fd[client] = fd
	p.phase = dialing
	p.placement = placement
	p.dial = l.takeDial(peer)
	if errno := watch(l.epoll, fd, pairEvents, p.self<<1|client, 0); errno != 0 {
		l.pauseAccepting(nil, errno)
		l.refuse(p)
		return
	}
	l.place(p, nil)
}

// pauseAccepting leaves new connections in the kernel's queue for a while, for
// this process has nothing to serve them with. Without it the listeners, readable
// all the time, would make the loop spin.
func (l *loop) pauseAccepting(ls *listener, errno unix.Errno) {
	if l.accepting.paused {
		return // a connection that was accepted before is in want of the same
	}
	l.acceptErrors.Add(1)
	a := &l.accepting
	a.pause = min(max(2*a.pause, minPause), maxPause)
	a.paused, a.resume = true, l.clock+int64(a.pause)
	for _, other := range a.listeners {
		if other != nil {
			unwatch(l.epoll, other.fd)
		}
	}
	fields := []zap.Field{zap.Error(errno), zap.Duration("pause", a.pause)}
	if ls != nil {
		fields = append(fields, zap.Stringer("address", ls.addr))
	}
	l.engine.log.Warn("cannot accept", fields...)
}

func (l *loop) resumeAccepting() {
	l.accepting.paused, l.accepting.resume = false, 0
	for i, ls := range l.accepting.listeners {
		if ls != nil && !l.accepting.paused {
			l.watchListener(i)
		}
	}
}
