//go:build linux

package eventloop

import "golang.org/x/sys/unix"

const (
	pipeSize   = 1 << 20  // asked for; what it holds depends on how full the pages are
	minPipe    = 64 << 10 // a smaller one, as users get who have many pipes, is worse than copying
	spliceMax  = 1 << 20  // bytes moved at once
	fullReads  = 4        // full buffers in a row after which a side is spliced
	thinSplice = 16 << 10 // bytes below which a splice costs more than a copy
	thinReads  = 8        // such in a row after which a side is copied again
	maxPipes   = 64       // of a loop; further streams are copied
	sparePipes = 8        // kept open while unused
)

// pipe carries spliced bytes. It is lent to a pair for one move, and longer only while bytes
// are stuck in it.
type pipe struct {
	r, w int32
	held int // bytes inside
}

// pipes are a loop's.
type pipes struct {
	idle     []*pipe // empty ones
	open     int
	limit    int  // of open: maxPipes, or how many there were when another could not be had
	unusable bool // the kernel refuses to splice
}

// take gives an empty pipe, nil if none is to be had.
func (ps *pipes) take() *pipe {
	if last := len(ps.idle) - 1; last >= 0 {
		p := ps.idle[last]
		ps.idle = ps.idle[:last]
		return p
	}
	if ps.open >= ps.limit {
		return nil
	}
	var fd [2]int
	if unix.Pipe2(fd[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		ps.limit = ps.open
		return nil
	}
	ps.open++
	p := &pipe{r: int32(fd[0]), w: int32(fd[1])}
	size, err := unix.FcntlInt(uintptr(fd[0]), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(fd[0]), unix.F_GETPIPE_SZ, 0)
	}
	if err != nil || size < minPipe {
		ps.discard(p)
		ps.limit = ps.open
		return nil
	}
	return p
}

// give takes a pipe back. One that still holds bytes is closed.
func (ps *pipes) give(p *pipe) {
	if p.held == 0 && len(ps.idle) < sparePipes {
		ps.idle = append(ps.idle, p)
		return
	}
	ps.discard(p)
}

func (ps *pipes) discard(p *pipe) {
	closeFD(p.r)
	closeFD(p.w)
	ps.open--
}

func (ps *pipes) close() {
	for _, p := range ps.idle {
		ps.discard(p)
	}
	ps.idle = nil
}

// stream does one read through a pipe, and what follows from it: the bytes stay
// in the kernel.
func (l *loop) stream(p *pair, from int) {
	pipe := l.pipes.take()
	if pipe == nil {
		l.copy(p, from)
		return
	}
	n, errno := splice(p.fd[from], pipe.w, spliceMax)
	if n <= 0 {
		l.pipes.give(pipe)
		l.streamStopped(p, from, n, errno)
		return
	}
	if n >= thinSplice {
		p.streak[from] = 0
	} else if p.streak[from]++; p.streak[from] >= thinReads {
		p.streak[from] = 0
		p.state[from] &^= streaming
	}
	l.account(p, from, n)
	l.spliced.Add(uint64(n))
	pipe.held = n
	to := from ^ 1
	switch l.drain(p, to, pipe) {
	case 0:
		l.pipes.give(pipe)
	case unix.EAGAIN:
		p.out[to] = l.store.takeBacklog()
		p.out[to].pipe = pipe
	default:
		l.pipes.give(pipe)
		l.writeFailed(p, to)
	}
}

// streamStopped handles a splice that moved nothing.
func (l *loop) streamStopped(p *pair, from, n int, errno unix.Errno) {
	switch {
	case n == 0:
		l.end(p, from)
	case errno == unix.EAGAIN:
		p.state[from] &^= readable | exhaust | final
	case errno == unix.EINTR:
	case errno == unix.EINVAL || errno == unix.ENOSYS || errno == unix.EPERM:
		l.pipes.unusable = true
		p.state[from] &^= streaming
	default:
		l.reset(p, from)
	}
}

// drain empties a pipe into a side's socket. It gives 0 when it is empty, EAGAIN when the
// socket takes no more.
func (l *loop) drain(p *pair, to int, pipe *pipe) unix.Errno {
	for pipe.held > 0 {
		n, errno := splice(pipe.r, p.fd[to], pipe.held)
		switch {
		case n > 0:
			pipe.held -= n
			p.active = l.now
		case errno != unix.EINTR:
			return errno
		}
	}
	return 0
}
