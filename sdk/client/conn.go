package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

const (
	// ackTimeout is how long a heartbeat may stay unanswered.
	ackTimeout = 10 * time.Second
	// probeAfter is how long requests wait on a connection where nothing comes before a heartbeat asks
	// whether it lives, and probeTimeout how long nothing may come after that.
	// TCP would take longer: what is not acknowledged it sends again after twice the time each, so that it
	// may learn of a balancer that lost the virtual address as late as twice the time that the move took. Together
	// the two leave time to connect within the ten seconds that a failover may take, and are long enough for four
	// losses in a row.
	probeAfter   = 2 * time.Second
	probeTimeout = 4 * time.Second
	// writeTimeout is how long the gateway may take no bytes.
	writeTimeout = 10 * time.Second
	// settleTimeout is how long the HELLO of the next connection waits for calls on
	// this one.
	settleTimeout = 250 * time.Millisecond
	// retireTimeout is how long a connection that was replaced may take to finish.
	retireTimeout = 30 * time.Second
	// minHeartbeat keeps a gateway's mistake from becoming a flood.
	minHeartbeat = 10 * time.Millisecond
	// maxQueued bounds what is queued beyond requests, in bytes: acknowledgements
	// of pushes to a gateway that does not read.
	maxQueued = 1 << 20
	// keepBuffer is how large a write buffer an idle connection keeps, in bytes.
	keepBuffer = 4 << 10
)

var (
	errNoAck  = fmt.Errorf("no heartbeat was acknowledged for %v", ackTimeout)
	errSilent = fmt.Errorf("requests wait, and nothing came for %v after a heartbeat", probeTimeout)
	errStalls = errors.New("the gateway does not read")
	errDone   = errors.New("replaced, and nothing is in flight any more")
	// errGoaway ends the reading of a connection that is alive: it is to be replaced.
	errGoaway = errors.New("the gateway asked to go")
)

// conn is one connection, from HELLO to its end. Two goroutines work on it: one
// reads (Client.run, or finishReading once the connection is being replaced), one
// is writeFrames.
type conn struct {
	// Static after open.
	client    *Client
	raw       net.Conn
	transport net.Conn // raw, or TLS over it
	welcome   wire.Welcome
	since     time.Time

	// Owned by the goroutine that reads.
	reader     *wire.Reader
	leaving    bool          // the gateway asked to go
	leaveAfter time.Duration // from then on

	wake    chan struct{} // capacity 1: there is something to write
	hurry   chan struct{} // capacity 1: requests are refused here already
	settled chan struct{} // capacity 1: no call is left
	ended   chan struct{} // closed by fail

	mu      sync.Mutex  // before credentials.mu
	unwatch func() bool // ends the watch for Close
	err     error       // why it ended
	out     []byte      // whole frames that the writer has not taken
	queued  uint64      // requests ever put into out
	taken   uint64      // of those, taken by the writer
	calls   map[uint32]*call
	lastID  uint32
	refuses bool      // requests that came to be sent here were refused
	retired bool      // ends when calls is empty
	bye     bool      // ends when out is written
	heard   time.Time // when bytes last came
	asked   time.Time // when the first request since the last answer was sent, or that answer came if others wait

	// Heartbeats, guarded by mu. Acks come in the order of the heartbeats.
	beats, acks uint64    // ever sent, ever answered
	waiting     time.Time // when the first heartbeat since the last ack was sent; zero: none
	beatGen     uint64    // the token's generation in the last heartbeat
	beatGenFrom uint64    // the first heartbeat of that generation
}

// call is a request that is under way.
type call struct {
	reply chan reply // capacity 1
	seq   uint64     // its place among conn.queued
	gen   uint64     // of the token it was sent with
}

type reply struct {
	body []byte
	err  error
}

func newConn(c *Client, raw net.Conn) *conn {
	cn := &conn{
		client:  c,
		raw:     raw,
		since:   time.Now(),
		wake:    make(chan struct{}, 1),
		hurry:   make(chan struct{}, 1),
		settled: make(chan struct{}, 1),
		ended:   make(chan struct{}),
		calls:   make(map[uint32]*call),
	}
	cn.setTransport(raw)
	cn.mu.Lock() // the client may be closing: fail must find unwatch
	defer cn.mu.Unlock()
	cn.unwatch = context.AfterFunc(c.ctx, func() { cn.fail(ErrClosed) })
	return cn
}

func (cn *conn) setTransport(t net.Conn) {
	cn.transport = t
	// A limit that the gateway raises later is not told to connections that are open.
	cn.reader = wire.NewReader(hearing{cn}, wire.MaxPayload)
}

// hearing reads from a connection's transport and notes when something comes.
type hearing struct{ cn *conn }

func (h hearing) Read(p []byte) (int, error) {
	n, err := h.cn.transport.Read(p)
	if n > 0 {
		h.cn.mu.Lock()
		h.cn.heard = time.Now()
		h.cn.mu.Unlock()
	}
	return n, err
}

// send queues a request. Its error is errNotTaken if the connection has ended.
func (cn *conn) send(service string, body []byte) (*call, error) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.err != nil || cn.retired {
		return nil, errNotTaken
	}
	for cn.lastID++; cn.calls[cn.lastID] != nil; cn.lastID++ {
	}
	// The token is read under the lock: frames carry tokens in the order in which they
	// succeed each other.
	token, gen := cn.client.creds.present()
	start := len(cn.out)
	out, err := wire.Append(cn.out, cn.client.cfg.Version, &wire.Request{ID: cn.lastID, Token: token, Service: service, Body: body})
	if err != nil {
		return nil, err
	}
	if n := len(out) - start - wire.HeaderSize; n > cn.welcome.MaxFrame {
		cn.out = out[:start]
		return nil, &wire.Error{Code: wire.CodeFrameTooLarge,
			Message: fmt.Sprintf("REQUEST payload of %d bytes is over the gateway's limit of %d", n, cn.welcome.MaxFrame)}
	}
	cn.out = out
	cn.queued++
	if len(cn.calls) == 0 {
		cn.asked = time.Now()
	}
	k := &call{reply: make(chan reply, 1), seq: cn.queued, gen: gen}
	cn.calls[cn.lastID] = k
	nudge(cn.wake)
	return k, nil
}

// enqueue queues a frame that is no request; false: it was dropped.
func (cn *conn) enqueue(m wire.Message) bool {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.err != nil || len(cn.out) > maxQueued {
		return false
	}
	out, err := wire.Append(cn.out, cn.client.cfg.Version, m)
	if err != nil {
		return false
	}
	cn.out = out
	nudge(cn.wake)
	return true
}

// nudge signals on a channel of capacity 1.
func nudge(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// sayBye ends the connection cleanly, if the gateway takes it within a second.
func (cn *conn) sayBye() {
	cn.enqueue(&wire.Bye{})
	cn.mu.Lock()
	cn.bye = true
	cn.mu.Unlock()
	nudge(cn.wake)
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-cn.ended:
	case <-timer.C:
		cn.fail(ErrClosed)
	}
}

// settle waits until no call is left, at most settleTimeout: what is then still
// in flight has long been read by the gateway.
func (cn *conn) settle() {
	timer := time.NewTimer(settleTimeout)
	defer timer.Stop()
	for {
		cn.mu.Lock()
		settled := len(cn.calls) == 0
		cn.mu.Unlock()
		if settled {
			return
		}
		select {
		case <-cn.settled:
		case <-timer.C:
			return
		}
	}
}

// retire ends the connection as soon as what is in flight is answered.
func (cn *conn) retire() {
	cn.mu.Lock()
	cn.retired = true
	idle := len(cn.calls) == 0
	cn.mu.Unlock()
	if idle {
		cn.fail(errDone)
		return
	}
	_ = cn.raw.SetReadDeadline(time.Now().Add(retireTimeout))
}

// refuse notes that the gateway takes no requests here any more.
func (cn *conn) refuse() {
	cn.mu.Lock()
	cn.refuses = true
	cn.mu.Unlock()
	nudge(cn.hurry)
}

// serves reports whether requests may still be sent here.
func (cn *conn) serves() bool {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return cn.err == nil && !cn.refuses
}

// fail ends the connection, once, and everything that waits for it.
func (cn *conn) fail(err error) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.err != nil {
		return
	}
	cn.err = err
	for id, k := range cn.calls {
		switch {
		case errors.Is(err, ErrClosed):
			k.reply <- reply{err: ErrClosed}
		case k.seq > cn.taken:
			k.reply <- reply{err: errNotTaken}
		default:
			k.reply <- reply{err: fmt.Errorf("%w: %w", ErrConnectionLost, err)}
		}
		delete(cn.calls, id)
		<-cn.client.slots
	}
	cn.out = nil
	nudge(cn.settled)
	close(cn.ended)
	_ = cn.raw.Close()
	cn.unwatch()
}

// failure is why the connection ended.
func (cn *conn) failure() error {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return cn.err
}

// answer takes the call of that id off the connection and ends it. It reports
// whether there was one.
func (cn *conn) answer(id uint32, r reply) bool {
	cn.mu.Lock()
	k := cn.calls[id]
	delete(cn.calls, id)
	cn.asked = time.Now()
	empty, retired := len(cn.calls) == 0, cn.retired
	cn.mu.Unlock()
	if k == nil {
		return false
	}
	if refusal := (*wire.Error)(nil); !errors.As(r.err, &refusal) || !refusesToken(refusal.Code) {
		cn.client.tokenAnswered(k.gen)
	}
	k.reply <- r
	<-cn.client.slots
	if empty {
		nudge(cn.settled)
		if retired {
			cn.fail(errDone)
		}
	}
	return true
}
