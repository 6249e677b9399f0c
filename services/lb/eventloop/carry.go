//go:build linux

package eventloop

import "golang.org/x/sys/unix"

// full reports whether the backlogs have all the memory that they may have.
func (l *loop) full() bool { return l.store.queued.Load() >= int64(l.holdLimit) }

// carry is copy for when nothing may be held: what a side has sent is only looked at, and taken from its socket when
// the other has taken it. The rest stays in the kernel, behind an empty backlog. That is one
// system call more for each read, but any number of connections can stall at once.
func (l *loop) carry(p *pair, from int) {
	n, errno := peek(p.fd[from], l.buffer)
	switch {
	case n > 0:
		l.hand(p, from, n)
	case n == 0:
		l.end(p, from)
	case errno == unix.EAGAIN:
		p.state[from] &^= readable | exhaust | final
	case errno != unix.EINTR:
		p.state[from] |= broken // the kernel tells it once
		l.reset(p, from)
	}
}

// hand writes to the other side what carry looked at, the first n bytes of the buffer, and takes as many from their
// socket as were written.
func (l *loop) hand(p *pair, from, n int) {
	to := from ^ 1
	if to == upstream && p.writes < 2 {
		p.countWrite()
	}
	sent, errno := send(p.fd[to], l.buffer[:n])
	if sent > 0 {
		l.account(p, from, sent)
		l.take(p.fd[from], sent)
	}
	switch {
	case sent == n || errno == unix.EINTR:
	case errno == 0 || errno == unix.EAGAIN: // the kernel tells when there is room
		p.out[to] = l.store.takeBacklog()
	default:
		l.writeFailed(p, to)
	}
}

// take takes n bytes out of a socket that has them. The buffer's first n bytes are lost.
func (l *loop) take(fd int32, n int) {
	for n > 0 {
		k, errno := recv(fd, l.buffer[:n])
		if k <= 0 && errno != unix.EINTR {
			return // not reached: they have been seen
		}
		n -= max(k, 0)
	}
}
