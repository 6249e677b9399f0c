package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience is how long a test waits for what must happen: long, since a
// loaded machine is slow, and never slept through.
const patience = time.Minute

// director places every connection on the first of its upstreams, then on the
// next, and keeps what it is told.
type director struct {
	upstreams []netip.AddrPort // static
	refuse    bool             // static
	results   chan Result

	mu      sync.Mutex
	clients []netip.AddrPort
	failed  []error
	events  []Event
}

type placement struct {
	*director
	next int
}

func (d *director) Admit(client netip.AddrPort) Placement {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clients = append(d.clients, client)
	if d.refuse {
		return nil
	}
	return &placement{director: d}
}

func (p *placement) Next(failed error) (netip.AddrPort, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if failed != nil {
		p.failed = append(p.failed, failed)
	}
	if p.next == len(p.upstreams) {
		return netip.AddrPort{}, false
	}
	p.next++
	return p.upstreams[p.next-1], true
}

func (p *placement) Observe(e Event, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if took < 0 || took > time.Hour {
		panic("an event that took " + took.String())
	}
	p.events = append(p.events, e)
}

func (p *placement) Closed(r Result) { p.results <- r }

func (d *director) result(t *testing.T) Result {
	t.Helper()
	select {
	case r := <-d.results:
		return r
	case <-time.After(patience):
		t.Fatal("no connection was closed")
		return Result{}
	}
}

// rig is an engine with one listener.
type rig struct {
	*Engine
	*director
	addr string
}

func settings() Settings {
	return Settings{ConnectTimeout: patience, IdleTimeout: 2 * patience}
}

func start(t *testing.T, s Settings, upstreams ...string) *rig {
	return startOn(t, "127.0.0.1:0", s, &director{}, upstreams...)
}

func startOn(t *testing.T, addr string, s Settings, d *director, upstreams ...string) *rig {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range upstreams {
		d.upstreams = append(d.upstreams, netip.MustParseAddrPort(u))
	}
	d.results = make(chan Result, 100_000)
	e := New(Options{Log: zap.NewNop(), Settings: s})
	t.Cleanup(e.Close)
	if err := e.Serve(ln.(*net.TCPListener), d); err != nil {
		t.Fatal(err)
	}
	return &rig{Engine: e, director: d, addr: ln.Addr().String()}
}

// dial connects a client.
func (r *rig) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// upstream is a listener whose connections the test takes one by one.
type upstream struct {
	ln   net.Listener
	addr string
}

func listen(t *testing.T) *upstream { return listenOn(t, "127.0.0.1:0") }

func listenOn(t *testing.T, addr string) *upstream {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return &upstream{ln: ln, addr: ln.Addr().String()}
}

func (u *upstream) accept(t *testing.T) *net.TCPConn {
	t.Helper()
	_ = u.ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := u.ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// echo serves every connection by sending back what comes, until the test ends.
func (u *upstream) echo(t *testing.T) *upstream {
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := u.ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
			conns.Go(func() {
				defer c.Close()
				if _, err := io.Copy(c, c); err == nil {
					_ = c.(*net.TCPConn).CloseWrite()
				}
			})
		}
	})
	t.Cleanup(func() { _ = u.ln.Close(); conns.Wait() })
	return u
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("send %q: %v", text, err)
	}
}

func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %q, %v, want %q", got[:n], err, want)
	}
}

func expectEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read = %d, %v, want the end of the stream", n, err)
	}
}

// expectReset reads until the connection breaks, which it must do other than
// by a FIN.
func expectReset(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Fatalf("reading ended with %v, want a reset", err)
	}
}

// expectRefusal connects to what resets connections at once.
func expectRefusal(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		return // reset before connect returned
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	expectReset(t, c)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestEcho(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		u := listenOn(t, addr).echo(t)
		r := startOn(t, addr, settings(), &director{}, u.addr)
		c := r.dial(t)
		send(t, c, "hello")
		expect(t, c, "hello")
		_ = c.CloseWrite()
		expectEOF(t, c)
		if got, want := r.result(t), (Result{Reason: Finished, ToUpstream: 5, ToClient: 5}); got != want {
			t.Errorf("%s: result = %+v, want %+v", addr, got, want)
		}
		if got, want := r.Stats(), (Stats{ToUpstream: 5, ToClient: 5}); got != want {
			t.Errorf("%s: stats = %+v, want %+v", addr, got, want)
		}
		if want := []Event{Connected, Answered}; len(r.events) != 2 || r.events[0] != want[0] || r.events[1] != want[1] {
			t.Errorf("%s: events = %v, want %v", addr, r.events, want)
		}
		if local := netip.MustParseAddrPort(c.LocalAddr().String()); r.clients[0] != local {
			t.Errorf("%s: admitted %s, want %s", addr, r.clients[0], local)
		}
	}
}

// An upstream that speaks first is heard, and its answer is timed.
func TestUpstreamSpeaksFirst(t *testing.T) {
	u := listen(t)
	r := start(t, settings(), u.addr)
	c := r.dial(t)
	s := u.accept(t)
	send(t, s, "220 ready")
	expect(t, c, "220 ready")
	_ = c.Close()
	_ = s.Close()
	r.result(t)
	if len(r.events) != 2 {
		t.Errorf("events = %v, want Connected and Answered", r.events)
	}
}

func TestRefused(t *testing.T) {
	u := listen(t).echo(t)
	r := startOn(t, "127.0.0.1:0", settings(), &director{refuse: true}, u.addr)
	expectRefusal(t, r.addr)
	if n := r.Connections(); n != 0 {
		t.Errorf("%d connections, want 0", n)
	}
}

func TestWait(t *testing.T) {
	u := listen(t).echo(t)
	r := start(t, settings(), u.addr)
	c := r.dial(t)
	send(t, c, "x")
	expect(t, c, "x")
	r.StopListening()
	if _, err := net.Dial("tcp", r.addr); err == nil {
		t.Error("a connection was accepted after StopListening")
	}
	send(t, c, "still here")
	expect(t, c, "still here")
	expired, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Wait(expired); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with a connection open = %v, want %v", err, context.Canceled)
	}
	_ = c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.Wait(ctx); err != nil {
		t.Errorf("Wait after the last connection = %v, want nil", err)
	}
	if err := r.Wait(ctx); err != nil {
		t.Errorf("Wait without connections = %v, want nil", err)
	}
}

func TestClose(t *testing.T) {
	u := listen(t).echo(t)
	r := start(t, settings(), u.addr)
	c := r.dial(t)
	send(t, c, "x")
	expect(t, c, "x")
	r.Close()
	expectEOF(t, c)
	if got := r.result(t); got.Reason != Cut {
		t.Errorf("reason = %s, want cut", got.Reason)
	}
	if n := r.Connections(); n != 0 {
		t.Errorf("%d connections after Close, want 0", n)
	}
	r.Close() // again: nothing happens
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Serve(ln.(*net.TCPListener), r.director); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Close = %v, want %v", err, net.ErrClosed)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("an engine that is closed still accepts")
	}
}

func TestCloseUpstream(t *testing.T) {
	one, other := listen(t).echo(t), listen(t).echo(t)
	r := start(t, settings(), one.addr)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &director{upstreams: []netip.AddrPort{netip.MustParseAddrPort(other.addr)}, results: make(chan Result, 1)}
	if err := r.Serve(ln.(*net.TCPListener), d); err != nil {
		t.Fatal(err)
	}
	c := r.dial(t)
	kept := (&rig{addr: ln.Addr().String()}).dial(t)
	for _, conn := range []net.Conn{c, kept} {
		send(t, conn, "x")
		expect(t, conn, "x")
	}
	r.CloseUpstream(r.upstreams[0])
	expectReset(t, c)
	send(t, kept, "kept")
	expect(t, kept, "kept")
	if got := r.result(t); got.Reason != Cut {
		t.Errorf("reason = %s, want cut", got.Reason)
	}
}

func TestCloseLocal(t *testing.T) {
	r := start(t, settings(), listen(t).echo(t).addr)
	c := r.dial(t)
	send(t, c, "x")
	expect(t, c, "x")
	if n := r.CloseLocal(netip.MustParseAddr("127.0.0.2")); n != 0 {
		t.Errorf("%d connections closed of another address, want none", n)
	}
	send(t, c, "kept")
	expect(t, c, "kept")
	if n := r.CloseLocal(netip.MustParseAddr("127.0.0.1")); n != 1 {
		t.Errorf("%d connections closed, want 1", n)
	}
	expectReset(t, c)
	if got := r.result(t); got.Reason != Cut {
		t.Errorf("reason = %s, want cut", got.Reason)
	}
}

// A connection that talks lives on, and ends when it has been silent for long enough.
func TestIdleTimeout(t *testing.T) {
	u := listen(t).echo(t)
	for idle := 200 * time.Millisecond; idle < patience; idle *= 2 {
		s := settings()
		s.IdleTimeout = idle
		r := start(t, s, u.addr)
		c := r.dial(t)
		last, err := talk(c, 3*idle)
		if time.Since(last) > idle/2 {
			continue // the machine is too slow for this one
		}
		if err != nil {
			t.Fatalf("with an idle timeout of %s, %s after the last byte: %v", idle, time.Since(last), err)
		}
		expectEOF(t, c)
		if took := time.Since(last); took < idle {
			t.Errorf("closed %s after the last byte was sent, want not before %s", took, idle)
		}
		if got := r.result(t); got.Reason != Idle {
			t.Errorf("reason = %s, want idle", got.Reason)
		}
		return
	}
	t.Skip("this machine is too slow to keep a connection busy")
}

// talk sends and receives a byte every few milliseconds. It returns at the first error, or gap so
// long that it may have caused one, or after so long; and says when it began to send the last one,
// which is before the relay saw it: an idle timeout is counted from no earlier instant.
func talk(c net.Conn, length time.Duration) (last time.Time, err error) {
	began := time.Now()
	last = began
	for b := make([]byte, 1); time.Since(began) < length; time.Sleep(10 * time.Millisecond) {
		if time.Since(last) > length/6 {
			return last, nil
		}
		last = time.Now()
		if _, err := c.Write(b); err != nil {
			return last, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return last, err
		}
	}
	return last, nil
}

// A new idle timeout holds for connections that are open, too; none is none.
func TestIdleTimeoutOfOpenConnectionsCanBeChanged(t *testing.T) {
	u := listen(t).echo(t)
	s := settings()
	s.IdleTimeout = 0
	r := start(t, s, u.addr)
	c := r.dial(t)
	send(t, c, "x")
	expect(t, c, "x")
	r.Set(Settings{ConnectTimeout: s.ConnectTimeout, IdleTimeout: 20 * time.Millisecond})
	expectEOF(t, c)
	if got := r.result(t); got.Reason != Idle {
		t.Errorf("reason = %s, want idle", got.Reason)
	}
}
