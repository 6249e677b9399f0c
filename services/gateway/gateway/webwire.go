package gateway

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
)

// The WebSocket library has no goroutine for a connection, but it keeps the buffers it is given for as long as the connection
// lives, reads ahead into them, and loses its place when a read fails inside a frame. So it is given the smallest buffers there are,
// and beneath them a webWire, which has buffers only while something comes or goes, hands out no more than the frame that is being
// read, and lets a reader be interrupted only between two messages: there the library can be asked again, and nothing of what
// has come is in it. See docs/adr/0020-websocket-is-parked-beneath-its-library.md.

const (
	webRead        = 4096 // how much is read at once; net/http reads as much, and what it has read comes here
	smallestBuf    = 16   // bufio makes no smaller reader, and the header of a server's frame needs 10
	opcodes        = 0x0f // of a frame's first byte (RFC 6455 §5.2)
	finalFrame     = 0x80
	continuation   = 0    // opcode
	firstControl   = 8    // opcode; messages are beneath it
	pongFrame      = 10   // opcode
	maskedFrame    = 0x80 // of the second byte
	longestPing    = 125  // of any control frame's payload
	longestControl = 2 + 4 + longestPing
)

var webBuffers = sync.Pool{New: func() any { return new([webRead]byte) }}

// webWire is the connection as the WebSocket library has it. Whoever calls Read, or Write, holds the library's lock for it.
type webWire struct {
	stream
	ses *session // static once there is one; nil: the connection is turned away, and has its own deadline

	// Owned by who reads; by the session's reader when nobody does.
	buf    *[webRead]byte // nil: none
	r, w   int            // what of buf was not handed out yet
	left   uint64         // bytes to come of the frame that is being handed out
	within bool           // the message goes on after it
	putOff bool           // an interrupt came inside a message
	late   int            // bytes that came when nobody was to be served any more

	// Owned by who writes.
	out  *buffer // part of a frame; nil: none
	size uint64  // of that frame

	closing atomic.Bool // the library waits for the peer's good-bye: nobody is interrupted any more
}

func newWebWire(conn net.Conn, sock *socket) *webWire {
	return &webWire{stream: *newStream(conn, sock)}
}

// hijacking is a ResponseWriter that gives away wire instead of the server's connection and buffers.
type hijacking struct {
	http.ResponseWriter
	wire *webWire
}

// Hijack implements http.Hijacker.
func (h hijacking) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	_, server, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, err := server.Peek(server.Reader.Buffered()) // frames that came with the request
	if err == nil {
		err = h.wire.unread(early)
	}
	if err != nil {
		return nil, nil, err
	}
	return h.wire, bufio.NewReadWriter(bufio.NewReaderSize(h.wire, smallestBuf), bufio.NewWriterSize(h.wire, smallestBuf)), nil
}

// unread makes p what comes first.
func (c *webWire) unread(p []byte) error {
	if len(p) > webRead {
		return fmt.Errorf("%d bytes came before the answer to an upgrade", len(p))
	}
	if len(p) > 0 {
		c.buf = webBuffers.Get().(*[webRead]byte)
		c.w = copy(c.buf[:], p)
	}
	return nil
}

// Read implements net.Conn. It fails with os.ErrDeadlineExceeded only between two messages.
func (c *webWire) Read(p []byte) (int, error) {
	if c.left == 0 {
		if err := c.nextFrame(); err != nil {
			return 0, err
		}
	}
	if c.r == c.w {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.buf[c.r:c.r+int(min(uint64(c.w-c.r), c.left))])
	c.r += n
	c.left -= uint64(n)
	return n, nil
}

// nextFrame reads until it is known how long the next frame is. A control frame comes whole: the library would give what is missing of it
// 5 s, where the session gives 10.
func (c *webWire) nextFrame() error {
	for {
		if c.r < c.w {
			c.left = webFrameSize(c.buf[c.r:c.w])
		}
		if c.left > 0 {
			break
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
	first := c.buf[c.r]
	switch opcode := first & opcodes; {
	case opcode >= firstControl:
		for c.left <= longestControl && uint64(c.w-c.r) < c.left {
			if err := c.fill(); err != nil {
				return err
			}
		}
		return nil
	case opcode == continuation && c.ses != nil: // of which a message has as many as the device likes, and the library asks nobody
		c.ses.admitPing(0)
	}
	c.within = first&finalFrame == 0
	return nil
}

// errLate ends a connection that is closing.
var errLate = errors.New("too much came after the end")

// fill reads what comes next, at least a byte.
func (c *webWire) fill() error {
	between := c.r == c.w && c.left == 0 && !c.within
	if c.ses != nil {
		c.ses.within.Store(!between)
	}
	if between && c.putOff && !c.closing.Load() {
		c.putOff = false
		c.interrupt() // so that the session looks whether it may sleep when TLS has handed out all it has
	}
	c.makeRoom()
	for {
		n, err := c.Conn.Read(c.buf[c.w:])
		c.w += n
		if n > 0 {
			return c.count(n) // err, if any, comes again
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || (between && !c.closing.Load()) {
			return err
		}
		c.putOff = true
		c.resume()
	}
}

// count bounds what is read of a device that is turned away, or was told to go.
func (c *webWire) count(n int) error {
	if c.ses != nil && c.ses.isOpen() {
		return nil
	}
	if c.late += n; c.late > discardMax {
		return errLate
	}
	return nil
}

// makeRoom makes room behind what was not handed out, which is at most part of a header, or of a control frame.
func (c *webWire) makeRoom() {
	switch {
	case c.buf == nil:
		c.buf = webBuffers.Get().(*[webRead]byte)
	case c.r > 0:
		c.w = copy(c.buf[:], c.buf[c.r:c.w])
		c.r = 0
	}
}

// Write implements net.Conn. The library writes a frame in pieces; it leaves in one, so that it is one record and one packet.
func (c *webWire) Write(p []byte) (int, error) {
	if c.out == nil {
		size := webFrameSize(p) // its header is whole: it fits into the library's buffer
		if size == uint64(len(p)) {
			return c.Conn.Write(p)
		}
		c.out, c.size = c.sock.srv.buffers.get(), size
	}
	c.out.b = append(c.out.b, p...)
	if uint64(len(c.out.b)) < c.size {
		return len(p), nil
	}
	_, err := c.Conn.Write(c.out.b)
	c.sock.srv.buffers.put(c.out)
	c.out = nil
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// pinged has a ping answered, if it may be. The reader calls it.
func (c *webWire) pinged(payload []byte) {
	if c.ses != nil && c.ses.admitPing(len(payload)) {
		c.ses.pong(payload)
	}
}

// ponged takes a pong, which answers nothing. The reader calls it.
func (c *webWire) ponged(payload []byte) {
	if c.ses != nil {
		c.ses.admitPing(len(payload))
	}
}

// pong writes a pong, between two frames of the library, which leave in one piece, whoever has it write them. The flusher calls it.
func (c *webWire) pong(payload []byte) error {
	buf := c.sock.srv.buffers.get()
	defer c.sock.srv.buffers.put(buf)
	buf.b = append(append(buf.b, finalFrame|pongFrame, byte(len(payload))), payload...)
	_, err := c.Conn.Write(buf.b)
	return err
}

// shrink implements parkable.
func (c *webWire) shrink() {
	c.stream.shrink()
	if c.buf != nil && c.r == c.w {
		webBuffers.Put(c.buf)
		c.buf, c.r, c.w = nil, 0, 0
	}
}

// webFrameSize is how many bytes the frame has that p begins with, its header included; 0: p is too short to tell.
func webFrameSize(p []byte) uint64 {
	if len(p) < 2 {
		return 0
	}
	size, payload := uint64(2), uint64(p[1]&^maskedFrame)
	switch {
	case payload == 126 && len(p) >= 4:
		size, payload = 4, uint64(binary.BigEndian.Uint16(p[2:]))
	case payload == 127 && len(p) >= 10:
		size, payload = 10, binary.BigEndian.Uint64(p[2:])
	case payload >= 126:
		return 0
	}
	if p[1]&maskedFrame != 0 {
		size += 4
	}
	return size + min(payload, math.MaxInt64)
}
