// Package parking watches connections that nobody reads from, so that one without traffic costs neither a
// goroutine nor a buffer:
//
//	lot, err := parking.New() // errors.ErrUnsupported where the system has no epoll
//	go lot.Run()
//	...
//	space := parking.NewSpace(conn)     // nil: a connection that cannot be parked
//	parked := lot.Park(space, s)        // the reader leaves; s.Wake() follows, once
//	...
//	lot.Leave(space)                    // before the connection is closed
//	lot.Close()                         // ends Run
//
// A connection stays what it is: it may be written to, given deadlines and closed while it is parked. Only its bytes
// that have arrived before or arrive later, its end and its errors are noticed by the lot, and told once.
package parking

import "syscall"

// Waker is told that its connection has something to read, or has ended. Wake runs on the lot's goroutine: it must not
// block. It may come once more after Leave, and must then do nothing.
type Waker interface{ Wake() }

// Space is a connection's place in a lot. It belongs to its connection's owner, who calls Park and Leave with it from one
// goroutine at a time.
type Space struct {
	raw  syscall.RawConn
	slot uint32 // of the lot, counted from 1; 0: none yet
}

// NewSpace makes a place for a connection of the operating system's; nil for any other, such as a net.Pipe.
func NewSpace(conn any) *Space {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return &Space{raw: raw}
}
