//go:build linux

package eventloop

// What the tests of the engine share: an engine with a director that notes what it is told, upstreams,
// clients, and the checks for what must not stay behind.

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/leaktest"
)

// patience is how long a test waits for what must happen; generous, for it is
// only used up by a failure.
const patienceForTests = time.Minute

// director sends every connection to the upstreams it holds, in order of attempt.
type director struct {
	refuse atomic.Bool

	mu        sync.Mutex
	upstreams []netip.AddrPort
	admitted  int
	closed    []Result
	failed    []error
	connected []time.Duration
	answered  []time.Duration
	changed   chan struct{} // closed, and made anew, after each change
}

func (d *director) note(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	close(d.changed)
	d.changed = make(chan struct{})
}

// await waits until ok, called with the lock held, is true.
func (d *director) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patienceForTests)
	for {
		d.mu.Lock()
		good, changed := ok(), d.changed
		d.mu.Unlock()
		if good {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patienceForTests)
		}
	}
}

// result waits for the nth connection to be closed.
func (d *director) result(t *testing.T, n int) Result {
	t.Helper()
	d.await(t, "a closed connection", func() bool { return len(d.closed) > n })
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed[n]
}

func (d *director) Admit(netip.AddrPort) Placement {
	if d.refuse.Load() {
		return nil
	}
	d.note(func() { d.admitted++ })
	return &placement{d: d}
}

type placement struct {
	d        *director
	attempts int
	done     bool
}

func (p *placement) Next(failed error) (addr netip.AddrPort, ok bool) {
	p.d.note(func() {
		if failed != nil {
			p.d.failed = append(p.d.failed, failed)
		}
		if ok = p.attempts < len(p.d.upstreams); ok {
			addr = p.d.upstreams[p.attempts]
			p.attempts++
		}
	})
	return addr, ok
}

func (p *placement) Observe(e Event, took time.Duration) {
	p.d.note(func() {
		if e == Connected {
			p.d.connected = append(p.d.connected, took)
		} else {
			p.d.answered = append(p.d.answered, took)
		}
	})
}

func (p *placement) Closed(r Result) {
	p.d.note(func() {
		if p.done {
			panic("Closed called twice")
		}
		p.done = true
		p.d.closed = append(p.d.closed, r)
	})
}

// rig is an engine with one listener in front of given upstreams.
type rig struct {
	*Engine
	*director
	addr string
}

// start makes a rig that the test's end takes down; by then every goroutine
// and descriptor must be gone.
func start(t *testing.T, opts Options, upstreams ...string) *rig {
	t.Helper()
	leakCheck(t)
	return startOn(t, opts, "127.0.0.1:0", upstreams...)
}

func startOn(t *testing.T, opts Options, listen string, upstreams ...string) *rig {
	t.Helper()
	opts.Log = zap.NewNop()
	if opts.Settings.ConnectTimeout == 0 {
		opts.Settings.ConnectTimeout = patienceForTests
	}
	e := New(opts)
	t.Cleanup(e.Close)
	d := &director{changed: make(chan struct{})}
	for _, u := range upstreams {
		d.upstreams = append(d.upstreams, netip.MustParseAddrPort(u))
	}
	ln := listenTCP(t, listen)
	addr := ln.Addr().String()
	if err := e.Serve(ln, d); err != nil {
		t.Fatal(err)
	}
	return &rig{Engine: e, director: d, addr: addr}
}

func listenTCP(t *testing.T, addr string) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.(*net.TCPListener)
}

// leakCheck fails the test if it leaves a goroutine or a descriptor behind. It must come
// before what is to be cleaned up.
func leakCheck(t *testing.T) {
	t.Helper()
	_ = listenTCP(t, "127.0.0.1:0").Close() // the runtime's poller keeps descriptors of its own
	ignore := goleak.IgnoreCurrent()
	before := openDescriptors(t)
	t.Cleanup(func() {
		leaktest.None(t, ignore)
		for deadline := time.Now().Add(patienceForTests); ; time.Sleep(10 * time.Millisecond) {
			after := openDescriptors(t)
			if len(after) <= len(before) {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("descriptors left open: before %v, after %v", before, after)
				return
			}
		}
	})
}

// openDescriptors is what this process has open, by number.
func openDescriptors(t *testing.T) map[string]string {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]string{}
	for _, n := range names {
		if target, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil {
			open[n.Name()] = target
		}
	}
	return open
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patienceForTests)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patienceForTests)
		}
		time.Sleep(time.Millisecond)
	}
}

// serve runs handle for every connection to a new listener. The test's end waits for
// all of them.
func serve(t *testing.T, listen string, handle func(*net.TCPConn)) string {
	t.Helper()
	ln := listenTCP(t, listen)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(2 * patienceForTests))
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// echo hides the connection's type: the net package would splice, and keep its pipes.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(struct{ io.Writer }{c}, c)
	_ = c.CloseWrite()
}

func dialRig(t *testing.T, r *rig) *net.TCPConn {
	t.Helper()
	return dialTo(t, r.addr)
}

func dialTo(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patienceForTests))
	return c.(*net.TCPConn)
}

// exchange sends and expects the same back.
func exchange(t *testing.T, c net.Conn, data []byte) {
	t.Helper()
	if _, err := c.Write(data); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read: %v", err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("got %q, want %q", got, data)
	}
}

func wantEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want the end of the stream", n, err)
	}
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v; want a reset", err)
	}
}

// wantNoService connects and wants to be reset.
func wantNoService(t *testing.T, r *rig) {
	t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err == nil { // else the reset came before connect had returned
		_ = c.SetDeadline(time.Now().Add(patienceForTests))
		_, err = io.Copy(io.Discard, c)
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}
