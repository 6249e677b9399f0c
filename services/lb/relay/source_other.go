//go:build !unix

package relay

import (
	"net"
	"sync"
)

const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// source reads from a connection. Where there is no way to wait without a
// buffer it holds one.
type source struct {
	conn *net.TCPConn
	buf  *[bufferSize]byte
}

func newSource(c *net.TCPConn) *source { return &source{conn: c} }

// read returns at least one byte, valid until release, or an error.
func (s *source) read() ([]byte, error) {
	s.buf = buffers.Get().(*[bufferSize]byte)
	n, err := s.conn.Read(s.buf[:])
	if n == 0 {
		s.release()
		return nil, err
	}
	return s.buf[:n], nil // an error comes again
}

// release gives the buffer back.
func (s *source) release() {
	if s.buf != nil {
		buffers.Put(s.buf)
		s.buf = nil
	}
}
