package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Config is one end's side of a link. Zero values stand for the defaults.
type Config struct {
	Node       string   // this end's name, told to the peer
	Services   []string // a backend's: what it answers for; none: anything
	Secret     string   // a gateway's: shown to the backend
	MaxFrame   int      // longest payload this end takes, bytes; DefaultMaxFrame
	MaxStreams int      // most streams of the peer's at once; DefaultMaxStreams

	// QueueBytes bounds what waits to be written; 1 MiB. As much again may be on
	// its way to the socket.
	QueueBytes int
	// HandshakeTimeout bounds Open and Accept; 5 s.
	HandshakeTimeout time.Duration
	// KeepAlive is the silence after which a PING is sent, 10 s, and PingTimeout the
	// further silence after which the link is given up, 5 s.
	KeepAlive   time.Duration
	PingTimeout time.Duration
	// WriteTimeout bounds each write: a peer that reads nothing for so long
	// is given up; 10 s.
	WriteTimeout time.Duration
	// goodbyeTime bounds the good-bye: writing what is left, and waiting for the peer to have
	// read it; 2 s.
	goodbyeTime time.Duration
}

func (cfg Config) withDefaults() Config {
	number := func(v *int, def, least, most int) {
		if *v == 0 {
			*v = def
		}
		*v = max(least, min(*v, most))
	}
	number(&cfg.MaxFrame, DefaultMaxFrame, MinFrame, MaxFrame)
	number(&cfg.MaxStreams, DefaultMaxStreams, 1, MaxStreams)
	number(&cfg.QueueBytes, 1<<20, 1, 1<<30)
	duration := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	duration(&cfg.HandshakeTimeout, 5*time.Second)
	duration(&cfg.KeepAlive, 10*time.Second)
	duration(&cfg.PingTimeout, 5*time.Second)
	duration(&cfg.WriteTimeout, 10*time.Second)
	duration(&cfg.goodbyeTime, 2*time.Second)
	return cfg
}

// Limits is what both ends agreed on.
type Limits struct {
	MaxFrame   int // longest payload, bytes, either way
	MaxStreams int // most streams at once, of each end
}

// Conn is one end of a link after its handshake. Whoever made it calls Serve
// once, which reads until the link ends; all other methods may be called from any
// goroutine, also from within Serve's handler, and also before Serve: what
// they send is then written once Serve runs.
type Conn struct {
	// Static after the handshake.
	nc     net.Conn
	role   Role
	cfg    Config
	peer   Hello
	limits Limits

	// Owned by the goroutine in Serve.
	in      reader
	heard   bool          // something came since the deadline was set
	pinged  bool          // and nothing came before that
	written chan struct{} // closed when the writer has ended

	out queue // has its own lock

	mu        sync.Mutex
	cause     error // why the link ended: the first reason counts
	finishing bool  // the reader is to stop
}

func newConn(nc net.Conn, role Role, cfg Config) *Conn {
	c := &Conn{nc: nc, role: role, cfg: cfg.withDefaults()}
	c.in.src, c.in.limit = nc, MaxHello
	c.out.init(c.cfg.QueueBytes)
	return c
}

// Peer is how the other end introduced itself, without its secret.
func (c *Conn) Peer() Hello { return c.peer }

// Limits is what both ends agreed on.
func (c *Conn) Limits() Limits { return c.limits }

// RemoteAddr is the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// Serve reads frames and calls handle with each that is for the caller: for a
// gateway RESPONSE, ERROR, PUSH, CANCEL and GOAWAY, for a backend REQUEST, CANCEL,
// PUSH_RESULT, ERROR and GOAWAY. REQUEST and PUSH have the peer's stream ids; an answer may
// have any. handle runs on Serve's goroutine and holds up the whole link: it
// must not block. An error from it ends the link, and the peer is told of it if
// it is a *wire.Error.
//
// Serve closes the connection and returns when nothing of the link runs any
// more. Its error is never nil: io.EOF when the peer closed between two frames,
// ErrClosed after Close or Finish, a *wire.Error for a frame that
// cannot be taken, ErrRefused wrapped with the peer's own *wire.Error,
// ErrPeerSilent, or the connection's own.
func (c *Conn) Serve(handle func(Frame) error) error {
	err := c.Receive(handle)
	c.Farewell()
	return err
}

// Receive is the first half of Serve, for those who must know at once that no
// frame will come any more: it returns before the good-bye to the peer, which can
// take a moment. Farewell must follow.
func (c *Conn) Receive(handle func(Frame) error) error {
	c.written = make(chan struct{})
	go c.writeFrames() // ends with the queue, which Farewell ends
	c.in.src = (*patient)(c)
	err := c.arm(c.cfg.KeepAlive)
	if err == nil {
		err = c.readFrames(handle)
	}
	return c.note(err)
}

// Farewell is the second half of Serve: it tells the peer what there is to tell,
// closes the connection and waits for the writer.
func (c *Conn) Farewell() {
	cause := c.note(ErrClosed)
	var mistake *wire.Error
	told := errors.As(cause, &mistake) && !errors.Is(cause, ErrRefused)
	if told {
		c.sayWhy(mistake)
	}
	if told || errors.Is(cause, ErrClosed) {
		c.sayGoodbye()
	}
	c.close(cause)
	<-c.written
}

// sayGoodbye has the writer write what is left, then reads on until the peer
// closes too: closing with input unread resets a connection, and the reset
// can overtake the last frames.
func (c *Conn) sayGoodbye() {
	_ = c.nc.SetReadDeadline(time.Now().Add(c.cfg.goodbyeTime))
	c.out.end(queueFinishing)
	late := time.NewTimer(c.cfg.goodbyeTime)
	defer late.Stop()
	select {
	case <-c.written:
	case <-late.C:
		return
	}
	c.awaitClose()
}

// awaitClose ends the outgoing direction, if the connection (TCP, TLS) can, and reads
// until the peer closes or the deadline of reading.
func (c *Conn) awaitClose() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if ok && half.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, c.nc)
	}
}

// Close ends the link at once: what is queued is lost.
func (c *Conn) Close() { c.close(ErrClosed) }

func (c *Conn) close(cause error) {
	_ = c.note(cause)
	c.out.end(queueClosed)
	_ = c.nc.Close()
}

// Finish ends the link once what is queued has been written. What the peer sends from
// now on is lost.
func (c *Conn) Finish() {
	_ = c.note(ErrClosed)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishing = true
	_ = c.nc.SetReadDeadline(time.Now()) // wakes the reader, which ends the link
}

// note keeps the first reason for the end, and returns it.
func (c *Conn) note(cause error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = cause
	}
	return c.cause
}

func (c *Conn) isFinishing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finishing
}

// arm sets the deadline of reading, unless the link is finishing.
func (c *Conn) arm(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finishing {
		return ErrClosed
	}
	c.heard = false
	return c.nc.SetReadDeadline(time.Now().Add(d))
}

// patient reads from a Conn's connection and keeps the link alive meanwhile. A
// deadline is set once per silence and not once per read: a busy link pays nothing.
type patient Conn

// Read implements io.Reader.
func (p *patient) Read(b []byte) (int, error) {
	c := (*Conn)(p)
	for {
		n, err := c.nc.Read(b)
		if n > 0 {
			c.heard, c.pinged = true, false
			return n, nil // err, if any, comes again
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := c.afterSilence(); err != nil {
			return 0, err
		}
	}
}

// afterSilence is called when the deadline of reading has passed.
func (c *Conn) afterSilence() error {
	switch {
	case c.isFinishing():
		return ErrClosed
	case c.heard:
		return c.arm(c.cfg.KeepAlive)
	case c.pinged:
		return ErrPeerSilent
	}
	c.pinged = true
	if err := c.ping(); err != nil {
		return err
	}
	return c.arm(c.cfg.PingTimeout)
}

// readFrames reads until the link ends, and returns why.
func (c *Conn) readFrames(handle func(Frame) error) error {
	for {
		f, err := c.in.next()
		if err != nil {
			return err
		}
		mine, err := c.screen(f)
		if err != nil {
			return err
		}
		if mine {
			continue
		}
		if err := handle(f); err != nil {
			return err
		}
	}
}

// screen deals with the frames that are about the link itself, and refuses those that
// this end's peer must not send.
func (c *Conn) screen(f Frame) (mine bool, err error) {
	allowed := true
	switch f.Type {
	case TypePing:
		return true, c.answerPing(f)
	case TypePong:
		_, err := f.ping() // that it came has been noted
		return true, err
	case TypeError:
		if f.Stream == 0 {
			return true, refused(f)
		}
	case TypeRequest:
		allowed = c.role == Backend && Gateway.Owns(f.Stream)
	case TypePush:
		allowed = c.role == Gateway && Backend.Owns(f.Stream)
	case TypeResponse:
		allowed = c.role == Gateway
	case TypePushResult:
		allowed = c.role == Backend
	case TypeHello:
		allowed = false
	}
	if !allowed {
		return false, wire.Errorf(wire.CodeBadFrame, "%s of stream %d is not for a %s to get", f.Type, f.Stream, c.role)
	}
	return false, nil
}

// refused is the error of an ERROR about the link.
func refused(f Frame) error {
	e, err := f.Error()
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrRefused, e)
}
