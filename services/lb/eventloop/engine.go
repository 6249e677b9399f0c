//go:build linux

package eventloop

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Engine relays connections in event loops. All methods are safe for concurrent use.
type Engine struct {
	// Static after construction.
	log   *zap.Logger
	epoch time.Time // zero of every loop's clock
	size  int       // how many loops the first Serve makes
	// holdLimit is how many bytes the backlogs of one loop may take.
	holdLimit int

	settings atomic.Pointer[Settings]
	closing  atomic.Bool    // Close was called: what waits in a listener's queue is not accepted any more
	running  sync.WaitGroup // the loops
	emptied  chan struct{}  // a loop has come to have no connection

	mu        sync.Mutex
	loops     []*loop     // set once, before they run; they read it without the lock
	listeners []*listener // open ones
	closed    bool
}

// New makes an engine. It owns nothing until the first Serve; Close must end it then.
func New(opts Options) *Engine {
	if opts.Loops == 0 {
		opts.Loops = runtime.GOMAXPROCS(0)
	}
	e := &Engine{log: opts.Log, epoch: time.Now(), size: opts.Loops, holdLimit: holdLimit, emptied: make(chan struct{}, 1)}
	if opts.Backlogs > 0 {
		e.holdLimit = int(opts.Backlogs / int64(opts.Loops))
	}
	e.settings.Store(&opts.Settings)
	return e
}

// Set changes the settings.
func (e *Engine) Set(s Settings) {
	e.settings.Store(&s)
	for _, l := range e.started() {
		l.tell(message{kind: newSettings})
	}
}

// Serve accepts from ln, which is the engine's from now on, until StopListening
// or Close. An error leaves ln closed: net.ErrClosed after Close, or no descriptors left.
func (e *Engine) Serve(ln *net.TCPListener, d Director) error {
	addr := ln.Addr()
	fd, err := takeDescriptor(ln)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.start(); err != nil {
		closeFD(fd)
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	ls := &listener{fd: fd, addr: addr, director: d}
	e.listeners = append(e.listeners, ls)
	ls.attached.Add(int32(len(e.loops)))
	for _, l := range e.loops {
		l.tell(message{kind: attach, listener: ls})
	}
	return nil
}

// start makes the loops and starts them, the first time. e.mu is held.
func (e *Engine) start() error {
	if e.closed {
		return net.ErrClosed
	}
	if e.loops != nil {
		return nil
	}
	loops := make([]*loop, 0, e.size)
	for range e.size {
		l, err := newLoop(e)
		if err != nil {
			for _, l := range loops {
				l.release()
			}
			return err
		}
		loops = append(loops, l)
	}
	e.loops = loops
	for _, l := range loops {
		e.running.Go(l.run)
	}
	return nil
}

// started is the loops, none before the first Serve.
func (e *Engine) started() []*loop {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.loops
}

// takeDescriptor moves a listener's socket out of the Go runtime's poller, which
// would otherwise wake a thread of its own for each connection.
func takeDescriptor(ln *net.TCPListener) (int32, error) {
	defer func() { _ = ln.Close() }()
	raw, err := ln.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, failed := -1, error(nil)
	if err := raw.Control(func(own uintptr) {
		fd, failed = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	if failed != nil {
		return -1, failed
	}
	// Accepted sockets inherit it, which saves a system call for each.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		closeFD(int32(fd))
		return -1, err
	}
	return int32(fd), nil
}

// Connections is how many are open, from Admit to Closed.
func (e *Engine) Connections() int {
	total := 0
	for _, l := range e.started() {
		total += int(l.count.Load())
	}
	return total
}

// Stats are the counts up to now, and what is held.
func (e *Engine) Stats() Stats {
	var s Stats
	for _, l := range e.started() {
		s.ToUpstream += l.moved[client].Load()
		s.ToClient += l.moved[upstream].Load()
		s.Spliced += l.spliced.Load()
		s.AcceptErrors += l.acceptErrors.Load()
		s.Held += l.store.queued.Load()
		s.MayHold += int64(l.holdLimit)
	}
	return s
}

// StopServing closes the listeners that were given with this director, once what
// they have already taken from the network is accepted. Accepted connections go on.
func (e *Engine) StopServing(d Director) {
	e.stop(func(ls *listener) bool { return ls.director == d })
}

// StopListening is StopServing for every director.
func (e *Engine) StopListening() {
	e.stop(func(*listener) bool { return true })
}

func (e *Engine) stop(these func(*listener) bool) {
	var stopped []*listener
	e.mu.Lock()
	loops := e.loops
	e.listeners = slices.DeleteFunc(e.listeners, func(ls *listener) bool {
		if these(ls) {
			stopped = append(stopped, ls)
			return true
		}
		return false
	})
	e.mu.Unlock()
	var detached sync.WaitGroup
	for _, ls := range stopped {
		for _, l := range loops {
			detached.Add(1)
			l.tell(message{kind: detach, listener: ls, done: &detached})
		}
	}
	detached.Wait()
}

// Wait returns nil when no connection is open, or ctx's error when that ends
// first. One call at a time.
func (e *Engine) Wait(ctx context.Context) error {
	for e.Connections() > 0 {
		select {
		case <-e.emptied:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// CloseUpstream resets every connection that is relayed to upstream, before it returns.
func (e *Engine) CloseUpstream(upstream netip.AddrPort) {
	var cut sync.WaitGroup
	for _, l := range e.started() {
		cut.Add(1)
		l.tell(message{kind: cutUpstream, upstream: upstream, done: &cut})
	}
	cut.Wait()
}

// CloseLocal resets every connection that came to an address of this machine, before it returns, and returns how many
// those were.
func (e *Engine) CloseLocal(local netip.Addr) int {
	var cut sync.WaitGroup
	var found atomic.Int64
	for _, l := range e.started() {
		cut.Add(1)
		l.tell(message{kind: cutLocal, local: local, found: &found, done: &cut})
	}
	cut.Wait()
	return int(found.Load())
}

// Close closes every listener and connection, and returns when the loops have
// ended.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.closing.Store(true)
	e.StopListening()
	for _, l := range e.started() {
		l.tell(message{kind: quit})
	}
	e.running.Wait()
}

// lightest is the loop with the fewest connections; own, if none has fewer.
func (e *Engine) lightest(own *loop) *loop {
	best, least := own, own.count.Load()
	for _, l := range e.loops {
		if n := l.count.Load(); n < least {
			best, least = l, n
		}
	}
	return best
}

// listener is one listening socket, shared by all loops.
type listener struct {
	fd       int32
	addr     net.Addr
	director Director
	attached atomic.Int32 // loops that may still accept from it; the last one closes it
}

// message is what another goroutine asks of a loop.
type message struct {
	kind     int
	listener *listener       // of attach and detach
	done     *sync.WaitGroup // told when it has been done, if not nil
	upstream netip.AddrPort  // of cutUpstream
	local    netip.Addr      // of cutLocal
	found    *atomic.Int64   // of cutLocal: told how many
	inspect  func()          // of inspect

	// Of adopt.
	fd        int32
	client    netip.AddrPort
	placement Placement
}

// The kinds of message.
const (
	adopt       = iota // a connection that another loop accepted
	attach             // accept from a listener
	detach             // no longer
	cutUpstream        // reset the connections to an upstream
	cutLocal           // reset the connections to an address of this machine
	newSettings        // look at the settings again
	inspect            // call a function
	quit               // close everything and end
)
