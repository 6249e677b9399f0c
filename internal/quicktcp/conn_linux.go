package quicktcp

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection like any other: safe for concurrent use, also while it is read from and written to.
type Conn struct {
	*net.TCPConn
	raw syscall.RawConn
}

// Wrap returns conn with cheaper calls, or conn itself if it is no *net.TCPConn. Who owns conn then owns what was returned, and
// closes that.
func Wrap(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	return &Conn{TCPConn: tcp, raw: raw}
}

// transfer is one Read or Write under way.
type transfer struct {
	buf   []byte
	n     int // bytes done
	errno unix.Errno

	// The methods of these names, made once: handing one to the poller then allocates nothing.
	receiveFn, transmitFn func(fd uintptr) bool
}

// transfers are those that nobody uses: an idle connection holds none.
var transfers = sync.Pool{New: func() any {
	t := new(transfer)
	t.receiveFn, t.transmitFn = t.receive, t.transmit
	return t
}}

func begin(buf []byte) *transfer {
	t := transfers.Get().(*transfer)
	t.buf, t.n, t.errno = buf, 0, 0
	return t
}

// end gives t back and returns what it has done.
func (t *transfer) end() (n int, errno unix.Errno) {
	n, errno = t.n, t.errno
	t.buf = nil
	transfers.Put(t)
	return n, errno
}

// receive reads once. false: there is nothing to read yet.
func (t *transfer) receive(fd uintptr) bool {
	for {
		n, errno := receive(fd, t.buf)
		switch errno {
		case 0:
			t.n = n
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			t.errno = errno
			return true
		}
	}
}

// transmit writes what is left. false: there is no room for all of it yet.
func (t *transfer) transmit(fd uintptr) bool {
	for t.n < len(t.buf) {
		n, errno := transmit(fd, t.buf[t.n:])
		switch errno {
		case 0:
			t.n += n
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			t.errno = errno
			return true
		}
	}
	return true
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	t := begin(p)
	err := c.raw.Read(t.receiveFn)
	n, errno := t.end()
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, c.fault("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	t := begin(p)
	err := c.raw.Write(t.transmitFn)
	n, errno := t.end()
	if err == nil && errno != 0 {
		err = c.fault("write", errno)
	}
	return n, err
}

// fault is an error as package net's own.
func (c *Conn) fault(op string, errno unix.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}
