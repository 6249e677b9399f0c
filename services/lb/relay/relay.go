// Package relay moves the bytes of accepted TCP connections to upstreams and
// back, unread.
//
//	e := relay.New(relay.Options{Log: log})
//	e.Set(relay.Settings{ConnectTimeout: 2 * time.Second, IdleTimeout: 10 * time.Minute})
//	err := e.Serve(ln, director) // returns at once
//	…
//	e.StopListening()
//	err = e.Wait(ctx) // until the last connection has ended
//	e.Close()
//
// It knows no upstreams, health, algorithms or limits: it asks its Director,
// and tells it what became of each connection. It never looks into the bytes, and
// adds none but the PROXY header.
//
// # What it promises
//
// Bytes arrive in order, none lost or repeated, as long as both ends close
// cleanly; what a client sends before its upstream is connected waits in the
// kernel. A FIN is passed on as a FIN and the other direction goes on; a RST is
// passed on as a RST. While one end does not read, the other is not read from
// either, so a connection holds at most one buffer of 32 KiB in each direction, and
// none while nothing moves. An upstream that cannot be connected to, or breaks the connection before the
// first byte, is replaced by another as long as the Director knows one; after the first byte there is
// no second try.
//
// Package eventloop keeps the same promises to the same Director at a fraction of the cost, where
// there is epoll; this one runs wherever Go does.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/accept"
)

// Director decides for the engine. Its methods, and those of a Placement, are
// called on the path of connections, by several goroutines at once: they must not block, for
// in an event loop every other connection waits meanwhile.
type Director interface {
	// Admit is asked about each accepted connection. nil refuses it: it is reset.
	Admit(client netip.AddrPort) Placement
}

// Placement follows one admitted connection. Its methods are never called at the
// same time.
type Placement interface {
	// Next names the upstream to connect to. failed is nil the first time, then
	// why the last one did not do: it could not be connected to (see Local), or, after
	// Connected was observed, it broke the connection before a byte had been relayed
	// either way. ok false gives up: the client's connection is reset.
	Next(failed error) (upstream netip.AddrPort, ok bool)
	// Observe tells how long something took.
	Observe(e Event, took time.Duration)
	// Closed is the last call: both sides have been closed.
	Closed(Result)
}

// Event is something that is timed.
type Event uint8

// The events, in the order in which they come.
const (
	Connected Event = iota // the upstream accepted
	Answered               // its first byte came, counted from the first byte sent to it
)

// Reason says what ended a connection.
type Reason uint8

// The reasons.
const (
	Finished      Reason = iota // both ends closed cleanly
	ClientReset                 // the client's connection broke
	UpstreamReset               // the upstream's connection broke
	Idle                        // no byte moved for the idle timeout
	Unplaced                    // no upstream could be connected to
	Cut                         // closed by this process: Close, CloseUpstream, CloseLocal
)

// String is the reason in lower case, fit for a metric's label.
func (r Reason) String() string {
	return [...]string{"finished", "client_reset", "upstream_reset", "idle", "unplaced", "cut"}[r]
}

// Result is what became of a connection.
type Result struct {
	Reason     Reason
	ToUpstream uint64 // bytes from the client, as far as they were handed on
	ToClient   uint64 // bytes from the upstream, likewise
}

// Settings can be changed while the engine runs; they hold for connections
// accepted from then on, the idle timeout for all.
type Settings struct {
	ConnectTimeout time.Duration // of one attempt
	IdleTimeout    time.Duration // without a byte in either direction, 0: none; kept to within an eighth
	ProxyHeader    bool          // begin each upstream connection with a PROXY v2 header
}

// Options is what New needs.
type Options struct {
	Log      *zap.Logger
	Settings Settings
}

// Stats are an engine's counts since it was made.
type Stats struct {
	ToUpstream   uint64 // bytes
	ToClient     uint64 // bytes
	Spliced      uint64 // bytes, of both, that never left the kernel; an event loop's
	AcceptErrors uint64

	// Bytes that are held now for sides that are slow to read, and how many may be at the most. An event loop's.
	Held, MayHold int64
}

// Engine relays with two goroutines per connection. It runs wherever Go does.
// All methods are safe for concurrent use.
type Engine struct {
	// Static after construction.
	log    *zap.Logger
	dials  context.Context // ended by Close
	cancel context.CancelFunc

	settings     atomic.Pointer[Settings]
	wake         chan struct{} // tells sweep of new settings
	toUpstream   atomic.Uint64
	toClient     atomic.Uint64
	acceptErrors atomic.Uint64

	goroutines sync.WaitGroup

	mu        sync.Mutex
	listeners []listener
	conns     map[*conn]struct{}
	empty     chan struct{} // made by Wait, closed when conns becomes empty
	sweeping  bool          // sweep was started, by the first Serve
	closed    bool
}

// New makes an engine. It owns nothing until the first Serve; Close must end it then.
func New(opts Options) *Engine {
	e := &Engine{log: opts.Log, conns: map[*conn]struct{}{}, wake: make(chan struct{}, 1)}
	e.dials, e.cancel = context.WithCancel(context.Background())
	e.Set(opts.Settings)
	return e
}

// Set changes the settings.
func (e *Engine) Set(s Settings) {
	e.settings.Store(&s)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Serve accepts from ln, which is the engine's from now on, until
// StopListening or Close. After Close it closes ln and gives net.ErrClosed.
func (e *Engine) Serve(ln *net.TCPListener, d Director) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		_ = ln.Close()
		return fmt.Errorf("listen on %s: %w", ln.Addr(), net.ErrClosed)
	}
	if !e.sweeping {
		e.sweeping = true
		e.goroutines.Go(e.sweep)
	}
	e.listeners = append(e.listeners, listener{ln, d})
	e.goroutines.Go(func() { e.accept(ln, d) })
	return nil
}

// accept ends when the listener is closed.
func (e *Engine) accept(ln *net.TCPListener, d Director) {
	accept.Loop(ln, func(c net.Conn) { e.take(c.(*net.TCPConn), d) }, func(err error, pause time.Duration) {
		e.acceptErrors.Add(1)
		e.log.Warn("cannot accept", zap.Stringer("address", ln.Addr()), zap.Error(err), zap.Duration("pause", pause))
	})
}

// take admits a connection and starts its goroutine.
func (e *Engine) take(client *net.TCPConn, d Director) {
	p := d.Admit(addrPort(client.RemoteAddr()))
	if p == nil {
		reset(client)
		return
	}
	c := &conn{engine: e, client: client, placement: p, settings: e.settings.Load()}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		reset(client)
		p.Closed(Result{Reason: Cut})
		return
	}
	e.conns[c] = struct{}{}
	e.goroutines.Go(c.run)
	e.mu.Unlock()
}

func (e *Engine) forget(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
	if len(e.conns) == 0 && e.empty != nil {
		close(e.empty)
		e.empty = nil
	}
}

// Connections is how many are open, from Admit to Closed.
func (e *Engine) Connections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// Stats are the counts up to now.
func (e *Engine) Stats() Stats {
	return Stats{ToUpstream: e.toUpstream.Load(), ToClient: e.toClient.Load(), AcceptErrors: e.acceptErrors.Load()}
}

// listener is a socket and who decides about its connections.
type listener struct {
	*net.TCPListener
	director Director
}

// StopServing closes the listeners that were given with this director. Accepted connections
// go on.
func (e *Engine) StopServing(d Director) {
	e.stop(func(l listener) bool { return l.director == d })
}

// StopListening closes every listener. Accepted connections go on.
func (e *Engine) StopListening() {
	e.stop(func(listener) bool { return true })
}

func (e *Engine) stop(these func(listener) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listeners = slices.DeleteFunc(e.listeners, func(l listener) bool {
		if !these(l) {
			return false
		}
		_ = l.Close()
		return true
	})
}

// Wait returns nil when no connection is open, or ctx's error when that ends
// first.
func (e *Engine) Wait(ctx context.Context) error {
	e.mu.Lock()
	if len(e.conns) == 0 {
		e.mu.Unlock()
		return nil
	}
	if e.empty == nil {
		e.empty = make(chan struct{})
	}
	empty := e.empty
	e.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CloseUpstream resets every connection that is relayed to upstream.
func (e *Engine) CloseUpstream(upstream netip.AddrPort) {
	for _, c := range e.open() {
		if c.connectedTo(upstream) {
			c.end(Cut, true)
		}
	}
}

// CloseLocal resets every connection that came to an address of this machine, and returns how many those were.
func (e *Engine) CloseLocal(local netip.Addr) (found int) {
	for _, c := range e.open() {
		if addrPort(c.client.LocalAddr()).Addr() == local {
			c.end(Cut, true)
			found++
		}
	}
	return found
}

// Close closes every listener and connection, and returns when all
// goroutines have ended.
func (e *Engine) Close() {
	e.StopListening()
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.cancel()
	for _, c := range e.open() {
		c.end(Cut, false)
	}
	e.goroutines.Wait()
}

func (e *Engine) open() []*conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*conn, 0, len(e.conns))
	for c := range e.conns {
		list = append(list, c)
	}
	return list
}

// sweeps is how many times within the idle timeout each connection is looked at.
const sweeps = 8

// sweep closes idle connections; Close ends it. One look at a flag per
// connection and sweep is cheaper than a timer each that every read moves.
func (e *Engine) sweep() {
	for {
		var due <-chan time.Time
		if idle := e.settings.Load().IdleTimeout; idle > 0 {
			due = time.After(max(idle/sweeps, 5*time.Millisecond))
		}
		select {
		case <-due:
			for _, c := range e.open() {
				c.sweep()
			}
		case <-e.wake:
		case <-e.dials.Done():
			return
		}
	}
}

// Local reports whether a connection attempt failed for a reason of this
// machine's own, such as having no descriptors or ports left: the upstream is not to blame.
func Local(err error) bool {
	for _, errno := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EADDRNOTAVAIL, syscall.EAGAIN, context.Canceled,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// addrPort is a TCP address with an IPv4 address in its own form, also where it came
// in over an IPv6 socket.
func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// reset closes a connection with a RST where the system allows it.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
