//go:build linux

package eventloop

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// note remembers what an event says about reading from side.
func (p *pair) note(side int, events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLPRI) == 0 {
		return
	}
	p.state[side] |= readable
	if events&(unix.EPOLLERR|unix.EPOLLPRI) != 0 {
		p.state[side] |= exhaust
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		p.state[side] |= final
	}
}

// fetch is a read of which the outcome waits to be passed on.
type fetch struct {
	pair       *pair
	from       int
	start, end int // in loop.buffer
	errno      unix.Errno
	more       bool // there may be more to read
}

// relayEvent handles an event of an open pair.
func (l *loop) relayEvent(p *pair, side int, events uint32) {
	p.note(side, events)
	if events&unix.EPOLLERR != 0 {
		p.state[side] |= broken // a read may tell of its end only, if that came before the reset
		if p.state[side^1]&broken != 0 || p.state[side]&ended != 0 && p.out[side^1] == nil {
			l.reset(p, side)
			return
		}
	}
	if p.out[side] != nil && events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		if l.flush(p, side) {
			l.postpone(p)
		}
	}
	if p.phase == open {
		l.fetch(p, side, nil)
	}
}

// mayRead reports whether there is something to read from a side, and room for it on the
// other.
func (p *pair) mayRead(from int) bool {
	return p.state[from]&(readable|ended) == readable && p.out[from^1] == nil && p.state[from^1]&broken == 0
}

// fetch reads what a side has sent, if that can be passed on, behind prefix, which is
// to be sent in any case.
func (l *loop) fetch(p *pair, from int, prefix []byte) {
	if len(l.buffer)-l.filled < len(l.buffer)/minSpace {
		if l.passOn(); p.phase != open {
			return
		}
	}
	f := fetch{pair: p, from: from, start: l.filled, end: l.filled + copy(l.buffer[l.filled:], prefix)}
	if p.mayRead(from) {
		if p.state[from]&streaming != 0 || l.full() {
			l.postpone(p)
		} else {
			var n int
			n, f.errno, f.more = l.read(p, from, l.buffer[f.end:f.end+l.mayHold(len(l.buffer)-f.end)])
			f.end += n
		}
	}
	if f.end > f.start || f.errno != 0 {
		l.filled = f.end
		l.reads = append(l.reads, f)
	}
}

// mayHold is how much of n bytes to read at once: all of them, or, while backlogs take much
// memory, as many as fit into a chunk.
func (l *loop) mayHold(n int) int {
	if l.store.queued.Load() > int64(l.queueLimit) {
		return min(n, chunkSize)
	}
	return n
}

// endOfStream stands for the end of a stream among errors; it is none of the kernel's.
const endOfStream = ^unix.Errno(0)

// read does one read, and keeps account of it.
func (l *loop) read(p *pair, from int, space []byte) (n int, errno unix.Errno, more bool) {
	n, errno = recv(p.fd[from], space)
	switch {
	case n > 0:
		l.account(p, from, n)
		switch {
		case n == len(space) || p.state[from]&exhaust != 0:
			return n, 0, true
		case p.state[from]&final != 0:
			return n, endOfStream, false
		}
		p.state[from] &^= readable
		return n, 0, false
	case n == 0:
		return 0, endOfStream, false
	case errno == unix.EAGAIN:
		p.state[from] &^= readable | exhaust | final
		return 0, 0, false
	case errno == unix.EINTR:
		return 0, 0, true
	}
	p.state[from] |= broken // the kernel tells it once
	return 0, errno, false
}

// passOn does for every read of the batch what follows from it.
func (l *loop) passOn() {
	for i := range l.reads {
		f := &l.reads[i]
		if f.pair.phase == open && l.pass(f.pair, f.from, l.buffer[f.start:f.end], f.errno) && f.more {
			l.postpone(f.pair)
		}
		f.pair = nil
	}
	l.reads, l.filled = l.reads[:0], 0
}

// pass writes what was read from a side to the other, and after it the end or the
// error that came of the read. It reports whether more may be read.
func (l *loop) pass(p *pair, from int, data []byte, errno unix.Errno) bool {
	if len(data) > 0 {
		l.deliver(p, from^1, data)
		if p.phase != open {
			return false
		}
	}
	switch errno {
	case 0:
		return p.out[from^1] == nil
	case endOfStream:
		l.end(p, from)
	default:
		l.reset(p, from)
	}
	return false
}

// relay moves what a side has sent to the other: all of it, or its turn's worth.
func (l *loop) relay(p *pair, from int) {
	for left := turn; left > 0; {
		if p.phase != open || !p.mayRead(from) {
			return
		}
		before := p.moved[from]
		if p.state[from]&streaming != 0 {
			l.stream(p, from)
		} else {
			l.copy(p, from)
		}
		left -= int(p.moved[from] - before)
	}
	if p.phase == open && p.mayRead(from) {
		l.postpone(p)
	}
}

// copy does one read and what follows from it.
func (l *loop) copy(p *pair, from int) {
	if l.full() {
		l.carry(p, from)
		return
	}
	space := l.buffer[:l.mayHold(len(l.buffer))]
	n, errno, _ := l.read(p, from, space)
	if n < len(l.buffer) {
		p.streak[from] = 0
	} else if p.streak[from]++; p.streak[from] >= fullReads && !l.pipes.unusable {
		p.streak[from] = 0
		p.state[from] |= streaming
	}
	l.pass(p, from, space[:n], errno)
}

// account counts n bytes read from a side.
func (l *loop) account(p *pair, from, n int) {
	if p.moved[from] == 0 {
		now := l.exact()
		if from == client {
			p.asked = now
		} else {
			p.placement.Observe(Answered, time.Duration(now-p.asked))
		}
	}
	p.active = l.now
	p.moved[from] += uint64(n)
	l.moved[from].Add(uint64(n))
}

// deliver writes data to a side, and keeps what the kernel does not take.
func (l *loop) deliver(p *pair, to int, data []byte) {
	if p.out[to] != nil { // by an earlier read of this batch
		l.store.add(p.out[to], data)
		return
	}
	if to == upstream && p.writes < 2 {
		p.countWrite()
	}
	n, errno := send(p.fd[to], data)
	if n == len(data) {
		return
	}
	switch errno {
	case 0, unix.EAGAIN, unix.EINTR: // the kernel tells when there is room
	default:
		l.writeFailed(p, to)
		return
	}
	p.out[to] = l.store.takeBacklog()
	l.store.add(p.out[to], data[max(n, 0):])
}

// countWrite comes before each write to the upstream, until the second: from then on
// its socket sends small writes at once. The first is never held back, and many
// connections have no other. Accepted sockets have the option from their listener.
func (p *pair) countWrite() {
	if p.writes++; p.writes == 2 {
		_ = setNoDelay(p.fd[upstream]) // fails on no TCP socket
	}
}

// flush writes what waits for a side. It reports whether nothing is left and the pair
// still open.
func (l *loop) flush(p *pair, side int) bool {
	if side == upstream && p.writes < 2 {
		p.countWrite()
	}
	b := p.out[side]
	if b.pipe != nil {
		if errno := l.drain(p, side, b.pipe); errno == unix.EAGAIN {
			return false
		} else if errno != 0 {
			l.writeFailed(p, side)
			return false
		}
	}
	for b.first != nil {
		c := b.first
		n, errno := send(p.fd[side], c.data[c.start:c.end])
		switch {
		case n > 0:
			l.store.sent(b, n)
			p.active = l.now
		case errno == unix.EAGAIN:
			return false
		case errno != unix.EINTR:
			l.writeFailed(p, side)
			return false
		}
	}
	l.dropBacklog(p, side)
	switch p.state[side^1] & (ended | broken) {
	case ended:
		l.passEnd(p, side)
	case ended | broken:
		l.reset(p, side^1)
	}
	return p.phase == open
}

func (l *loop) dropBacklog(p *pair, side int) {
	b := p.out[side]
	if b == nil {
		return
	}
	if b.pipe != nil {
		l.pipes.give(b.pipe)
	}
	l.store.giveBacklog(b)
	p.out[side] = nil
}

// end handles the end of what a side sends.
func (l *loop) end(p *pair, from int) {
	p.state[from] = p.state[from]&^readable | ended
	if p.state[from]&broken != 0 {
		l.reset(p, from)
	} else if p.out[from^1] == nil {
		l.passEnd(p, from^1)
	}
}

// passEnd tells a side that it has been sent everything. A pair of which both
// sides have been told so is finished.
func (l *loop) passEnd(p *pair, to int) {
	if p.state[to]&ended != 0 && p.out[to^1] == nil {
		l.finish(p, Finished)
	} else if p.state[to]&shut == 0 {
		p.state[to] |= shut
		shutdownWrite(p.fd[to])
	}
}

// writeFailed handles a side that can no more be written to: its peer reset the
// connection. What it sent before is still in the kernel and is passed on, then the
// reset is.
func (l *loop) writeFailed(p *pair, side int) {
	l.dropBacklog(p, side)
	p.state[side] |= broken | readable | exhaust
	if p.state[side]&ended != 0 || p.state[side^1]&broken != 0 {
		l.reset(p, side)
		return
	}
	l.postpone(p)
}

// reset passes on that a side's connection broke.
func (l *loop) reset(p *pair, side int) {
	if side == upstream && p.moved == [2]uint64{} {
		l.retry(p)
		return
	}
	resetOnClose(p.fd[side^1])
	if side == client {
		l.finish(p, ClientReset)
	} else {
		l.finish(p, UpstreamReset)
	}
}

// cut resets both sides of every connection to an upstream.
func (l *loop) cut(to netip.AddrPort) {
	l.pairs.each(func(p *pair) {
		if p.phase == open && remoteAddress(p.fd[upstream]) == to {
			resetOnClose(p.fd[client])
			resetOnClose(p.fd[upstream])
			l.finish(p, Cut)
		}
	})
}

// cutLocal resets both sides of every connection that came to an address of this machine, and returns how many.
func (l *loop) cutLocal(local netip.Addr) (found int64) {
	l.pairs.each(func(p *pair) {
		if localAddress(p.fd[client]).Addr() == local {
			resetOnClose(p.fd[client])
			resetOnClose(p.fd[upstream]) // there may be none yet
			l.finish(p, Cut)
			found++
		}
	})
	return found
}

// finish closes a pair and everything it holds.
func (l *loop) finish(p *pair, reason Reason) {
	for side, fd := range p.fd {
		l.dropBacklog(p, side)
		if fd >= 0 {
			closeFD(fd)
			p.fd[side] = -1
		}
	}
	l.giveDial(p)
	l.wheel.clear(p)
	p.phase = vacant
	l.closed = append(l.closed, p)
	p.placement.Closed(Result{Reason: reason, ToUpstream: p.moved[client], ToClient: p.moved[upstream]})
	p.placement = nil
	if l.count.Add(-1) == 0 {
		select {
		case l.engine.emptied <- struct{}{}:
		default: // one is waiting to be heard
		}
	}
}
