//go:build unix

package relay

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// bufferSize is how much is read at once.
const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// source reads from a connection without holding a buffer while it waits.
type source struct {
	conn *net.TCPConn
	raw  syscall.RawConn
	try  func(fd uintptr) bool // s.readNow, made once
	buf  *[bufferSize]byte     // nil while waiting
	n    int
	err  error
}

func newSource(c *net.TCPConn) *source {
	s := &source{conn: c}
	s.raw, s.err = c.SyscallConn()
	s.try = s.readNow
	return s
}

// read returns at least one byte, valid until release, or an error: io.EOF,
// net.ErrClosed or the connection's own.
func (s *source) read() ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	if err := s.raw.Read(s.try); err != nil {
		s.release()
		return nil, err
	}
	if s.err != nil {
		s.release()
		return nil, s.err
	}
	return s.buf[:s.n], nil
}

// release gives the buffer back.
func (s *source) release() {
	if s.buf != nil {
		buffers.Put(s.buf)
		s.buf = nil
	}
}

// readNow reports false when it would have to wait; the runtime then calls it
// again when the socket has become readable.
func (s *source) readNow(fd uintptr) bool {
	s.buf = buffers.Get().(*[bufferSize]byte)
	for {
		n, err := unix.Read(int(fd), s.buf[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			s.release()
			return false
		case err != nil:
			s.err = os.NewSyscallError("read", err)
		case n == 0:
			s.err = io.EOF
		}
		s.n = n
		return true
	}
}
