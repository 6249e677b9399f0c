//go:build linux

package eventloop

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// starvedRetry is how long a connection waits for a descriptor before it asks
// again.
const starvedRetry = 2 // ticks

// dial is what a pair needs only until its upstream is connected.
type dial struct {
	client   netip.AddrPort
	settings *Settings
	target   sockaddr
	started  int64 // when this attempt was begun, nanoseconds of the loop's clock
	starved  int64 // when a descriptor was first missed, likewise; 0: not
}

func (l *loop) takeDial(peer netip.AddrPort) *dial {
	d := new(dial)
	if last := len(l.dials) - 1; last >= 0 {
		d = l.dials[last]
		l.dials = l.dials[:last]
	}
	*d = dial{client: peer, settings: l.settings}
	return d
}

func (l *loop) giveDial(p *pair) {
	if p.dial != nil && len(l.dials) < batch {
		l.dials = append(l.dials, p.dial)
	}
	p.dial = nil
}

// exact is the time now, on the loop's clock.
func (l *loop) exact() int64 { return int64(time.Since(l.engine.epoch)) }

// place begins an attempt at the upstream that the Director names, until one can be
// begun or there is none left.
func (l *loop) place(p *pair, failed error) {
	for {
		addr, ok := p.placement.Next(failed)
		if !ok {
			l.refuse(p)
			return
		}
		p.dial.target = newSockaddr(addr)
		p.dial.starved = 0
		errno := l.connect(p)
		if errno == 0 {
			return
		}
		failed = errno
	}
}

// connect begins an attempt. What comes of it comes as an event, or by the timer.
func (l *loop) connect(p *pair) unix.Errno {
	d := p.dial
	fd, errno := openSocket(d.target.family())
	if errno != 0 {
		return l.starve(p, errno)
	}
	d.started = l.exact()
	if errno := connect(fd, &d.target); errno != 0 && errno != unix.EINPROGRESS {
		closeFD(fd)
		return errno
	}
	p.epoch++
	if errno := watch(l.epoll, fd, pairEvents, p.self<<1|upstream, int32(p.epoch)); errno != 0 {
		closeFD(fd)
		return errno
	}
	p.phase = dialing
	p.fd[upstream] = fd
	l.wheel.set(p, tickOf(d.started)+ticks(d.settings.ConnectTimeout)+1)
	return 0
}

// starve lets a connection wait for a descriptor, as long as it would wait for an
// upstream, with no new connection competing for it.
func (l *loop) starve(p *pair, errno unix.Errno) unix.Errno {
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
	default:
		return errno
	}
	d := p.dial
	if d.starved == 0 {
		d.starved = l.clock
	} else if l.clock-d.starved > int64(d.settings.ConnectTimeout) {
		return errno
	}
	l.pauseAccepting(nil, errno)
	p.phase = starved
	l.wheel.set(p, l.now+starvedRetry)
	return 0
}

// dialEvent handles an event of a pair that is not open yet.
func (l *loop) dialEvent(p *pair, side int, events uint32) {
	if side == client {
		if events&unix.EPOLLERR != 0 {
			l.finish(p, ClientReset)
			return
		}
		p.note(side, events)
		return
	}
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		errno := pendingError(p.fd[upstream])
		if errno == 0 {
			errno = unix.ECONNRESET
		}
		l.attemptFailed(p, errno)
		return
	}
	if events&unix.EPOLLOUT != 0 {
		p.note(side, events)
		l.connected(p)
	}
}

func (l *loop) attemptFailed(p *pair, errno unix.Errno) {
	l.dropUpstream(p)
	l.place(p, errno)
}

func (l *loop) dropUpstream(p *pair) {
	closeFD(p.fd[upstream])
	p.fd[upstream] = -1
	p.state[upstream], p.streak[upstream], p.writes = 0, 0, 0
}

// connected opens the pair: the PROXY header goes first, together with what the
// client has sent already.
func (l *loop) connected(p *pair) {
	l.accepting.pause = 0
	now := l.exact()
	d := p.dial
	p.phase = open
	p.asked = now
	p.active = tickOf(now)
	l.setIdle(p)
	p.placement.Observe(Connected, time.Duration(now-d.started))
	var header []byte
	if d.settings.ProxyHeader {
		header = appendProxyHeader(l.header[:0], d.client, localAddress(p.fd[client]))
	}
	l.giveDial(p)
	l.fetch(p, client, header)
	l.fetch(p, upstream, nil)
}

// retry looks for another upstream, for the present one broke the connection
// before a byte was relayed.
func (l *loop) retry(p *pair) {
	if p.state[client]&broken != 0 {
		l.finish(p, ClientReset)
		return
	}
	for side := range p.out {
		l.dropBacklog(p, side)
	}
	l.dropUpstream(p)
	if p.state[client]&ended != 0 { // the kernel tells it again
		p.state[client] = readable
	}
	p.state[client] &= readable | exhaust | final
	p.phase = dialing
	p.dial = l.takeDial(remoteAddress(p.fd[client]))
	l.place(p, unix.ECONNRESET)
}

// refuse resets a client that no upstream can be found for.
func (l *loop) refuse(p *pair) {
	resetOnClose(p.fd[client])
	l.finish(p, Unplaced)
}

// timedOut handles a pair that the wheel handed out.
func (l *loop) timedOut(p *pair) {
	switch p.phase {
	case dialing:
		l.attemptFailed(p, unix.ETIMEDOUT)
	case starved:
		if errno := l.connect(p); errno != 0 {
			l.place(p, errno)
		}
	case open:
		if left := int32(l.idleEnd(p) - l.wheel.now); left > 0 {
			l.wheel.set(p, l.idleEnd(p))
		} else {
			l.finish(p, Idle)
		}
	}
}

// idleEnd is the tick at which p will have been idle for long enough.
func (l *loop) idleEnd(p *pair) uint32 {
	return p.active + ticks(l.settings.IdleTimeout) + 1
}

// setIdle starts the idle timer. It is not moved with each byte, but looks at
// what has happened meanwhile when it is due.
func (l *loop) setIdle(p *pair) {
	if l.settings.IdleTimeout > 0 {
		l.wheel.set(p, l.idleEnd(p))
	} else {
		l.wheel.clear(p)
	}
}

// applySettings takes new settings: for new connections all of them, for open
// ones the idle timeout.
func (l *loop) applySettings() {
	before := l.settings.IdleTimeout
	l.settings = l.engine.settings.Load()
	if l.settings.IdleTimeout == before {
		return
	}
	l.pairs.each(func(p *pair) {
		if p.phase == open {
			l.setIdle(p)
		}
	})
}
