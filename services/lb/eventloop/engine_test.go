//go:build linux

package eventloop

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestRelaysBothWays(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", echo)
	r := startOn(t, Options{Loops: 2}, "127.0.0.1:0", up)
	c := dialRig(t, r)
	exchange(t, c, []byte("hello"))
	exchange(t, c, bytes.Repeat([]byte("0123456789"), 10_000))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, c)
	want := Result{Reason: Finished, ToUpstream: 100_005, ToClient: 100_005}
	if got := r.result(t, 0); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if s := r.Stats(); s.ToUpstream != 100_005 || s.ToClient != 100_005 {
		t.Errorf("got %+v, want 100005 bytes each way", s)
	}
	if len(r.connected) != 1 || len(r.answered) != 1 {
		t.Errorf("observed %v and %v; want each once", r.connected, r.answered)
	}
}

func TestIPv6(t *testing.T) {
	for _, c := range []struct{ name, listen, upstream string }{
		{"to IPv6", "127.0.0.1:0", "[::1]:0"},
		{"from IPv6", "[::1]:0", "127.0.0.1:0"},
		{"both", "[::1]:0", "[::1]:0"},
		{"dual stack", "[::]:0", "[::1]:0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leakCheck(t)
			r := startOn(t, Options{Loops: 1}, c.listen, serve(t, c.upstream, echo))
			exchange(t, dialRig(t, r), []byte("over"))
		})
	}
}

// The server speaks first: nothing must wait for the client.
func TestServerSpeaksFirst(t *testing.T) {
	leakCheck(t)
	r := start(t, Options{Loops: 1}, serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "220 ready")
		_, _ = io.Copy(io.Discard, c)
	}))
	got := make([]byte, 9)
	if _, err := io.ReadFull(dialRig(t, r), got); err != nil || string(got) != "220 ready" {
		t.Fatalf("got %q, %v", got, err)
	}
	r.await(t, "the answer observed", func() bool { return len(r.answered) == 1 })
}

func TestHalfClose(t *testing.T) {
	const request, reply = "request without end marker", "reply after the end"
	t.Run("client first", func(t *testing.T) {
		r := start(t, Options{Loops: 1}, serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			got, _ := io.ReadAll(c)
			_, _ = io.WriteString(c, reply+string(got))
		}))
		c := dialRig(t, r)
		_, _ = io.WriteString(c, request)
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != reply+request {
			t.Errorf("got %q, %v", got, err)
		}
		if got := r.result(t, 0).Reason; got != Finished {
			t.Errorf("reason %v, want Finished", got)
		}
	})
	t.Run("upstream first", func(t *testing.T) {
		received := make(chan string, 1)
		r := start(t, Options{Loops: 1}, serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, reply)
			_ = c.CloseWrite()
			got, _ := io.ReadAll(c)
			received <- string(got)
		}))
		c := dialRig(t, r)
		if got, err := io.ReadAll(c); err != nil || string(got) != reply {
			t.Errorf("got %q, %v", got, err)
		}
		_, _ = io.WriteString(c, request)
		_ = c.CloseWrite()
		if got := <-received; got != request {
			t.Errorf("upstream got %q, want %q", got, request)
		}
		if got := r.result(t, 0).Reason; got != Finished {
			t.Errorf("reason %v, want Finished", got)
		}
	})
}

func TestReset(t *testing.T) {
	t.Run("by the client", func(t *testing.T) {
		seen := make(chan error, 1)
		r := start(t, Options{Loops: 1}, serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, err := io.Copy(io.Discard, c)
			seen <- err
		}))
		c := dialRig(t, r)
		_, _ = io.WriteString(c, "x")
		r.await(t, "connected", func() bool { return len(r.connected) == 1 })
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("upstream saw %v, want a reset", err)
		}
		if got := r.result(t, 0).Reason; got != ClientReset {
			t.Errorf("reason %v, want ClientReset", got)
		}
	})
	t.Run("by the upstream", func(t *testing.T) {
		r := start(t, Options{Loops: 1}, serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		}))
		c := dialRig(t, r)
		_, _ = io.WriteString(c, "x")
		wantReset(t, c)
		if got := r.result(t, 0).Reason; got != UpstreamReset {
			t.Errorf("reason %v, want UpstreamReset", got)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		r := start(t, Options{Loops: 1}, serve(t, "127.0.0.1:0", func(c *net.TCPConn) { <-release }))
		c := dialRig(t, r)
		r.await(t, "connected", func() bool { return len(r.connected) == 1 })
		_, _ = io.WriteString(c, "x")
		_ = c.CloseWrite()
		eventually(t, "the end passed on", func() bool { return r.Stats().ToUpstream == 1 })
		_ = c.SetLinger(0)
		_ = c.Close()
		if got := r.result(t, 0).Reason; got != ClientReset {
			t.Errorf("reason %v, want ClientReset", got)
		}
	})
	// A write gets the news of the reset, and reading then sees a mere end: it must
	// be passed on as a reset all the same.
	t.Run("seen by a write", func(t *testing.T) {
		gone := make(chan struct{})
		r := start(t, Options{Loops: 1}, serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "bye")
			_ = c.CloseWrite()
			<-gone
			_ = c.SetLinger(0)
		}))
		c := dialRig(t, r)
		if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
			t.Fatalf("got %q, %v", got, err)
		}
		close(gone)
		eventually(t, "reset", func() bool {
			_, err := c.Write([]byte("more"))
			return err != nil
		})
		if got := r.result(t, 0).Reason; got != UpstreamReset {
			t.Errorf("reason %v, want UpstreamReset", got)
		}
	})
}

func TestRefused(t *testing.T) {
	r := start(t, Options{Loops: 1}, "127.0.0.1:1")
	r.refuse.Store(true)
	wantNoService(t, r)
	if n := r.Connections(); n != 0 {
		t.Errorf("%d connections, want none", n)
	}
}

func TestCloseLocal(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", echo)
	r := startOn(t, Options{Loops: 2}, "127.0.0.1:0", up)
	var conns []*net.TCPConn
	for range 8 {
		c := dialRig(t, r)
		exchange(t, c, []byte("x"))
		conns = append(conns, c)
	}
	if n := r.CloseLocal(netip.MustParseAddr("127.0.0.2")); n != 0 {
		t.Errorf("%d connections closed of another address, want none", n)
	}
	exchange(t, conns[0], []byte("untouched"))
	if n := r.CloseLocal(netip.MustParseAddr("127.0.0.1")); n != len(conns) {
		t.Errorf("%d connections closed, want %d", n, len(conns))
	}
	for _, c := range conns {
		wantReset(t, c)
	}
	if got := r.result(t, 7).Reason; got != Cut {
		t.Errorf("reason %v, want Cut", got)
	}
}

func TestCloseUpstream(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", echo)
	r := startOn(t, Options{Loops: 2}, "127.0.0.1:0", up)
	var conns []*net.TCPConn
	for range 8 {
		c := dialRig(t, r)
		exchange(t, c, []byte("x"))
		conns = append(conns, c)
	}
	r.CloseUpstream(netip.MustParseAddrPort("127.0.0.1:9"))
	exchange(t, conns[0], []byte("untouched"))
	r.CloseUpstream(netip.MustParseAddrPort(up))
	if n := r.Connections(); n != 0 {
		t.Errorf("%d connections, want none", n)
	}
	for _, c := range conns {
		wantReset(t, c)
	}
	if got := r.result(t, 7).Reason; got != Cut {
		t.Errorf("reason %v, want Cut", got)
	}
}

// Connections wait in the kernel's queue while the listener is closed: they were
// told that they are connected, so they must be served.
func TestStopListeningServesWhatWasAccepted(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", echo)
	r := startOn(t, Options{Loops: 2}, "127.0.0.1:0", up)
	var conns []*net.TCPConn
	for range 50 {
		conns = append(conns, dialRig(t, r))
	}
	r.StopListening()
	if c, err := net.Dial("tcp", r.addr); err == nil {
		_ = c.Close()
		t.Error("a new connection was accepted after StopListening")
	}
	for _, c := range conns {
		exchange(t, c, []byte("still here"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait gave %v with connections open", err)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	ctx, cancel = context.WithTimeout(t.Context(), patienceForTests)
	defer cancel()
	if err := r.Wait(ctx); err != nil {
		t.Errorf("Wait gave %v after the last connection", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", echo)
	r := startOn(t, Options{Loops: 2}, "127.0.0.1:0", up)
	c := dialRig(t, r)
	exchange(t, c, []byte("x"))
	r.Close()
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	if got := r.result(t, 0).Reason; got != Cut {
		t.Errorf("reason %v, want Cut", got)
	}
	r.Close()
	r.StopListening()
	r.Set(Settings{})
	r.CloseUpstream(netip.MustParseAddrPort(up))
	if err := r.Serve(listenTCP(t, "127.0.0.1:0"), r.director); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve gave %v after Close, want net.ErrClosed", err)
	}
}

// A few heavy connections must not all land on one loop.
func TestConnectionsSpreadOverLoops(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", echo)
	r := startOn(t, Options{Loops: 4}, "127.0.0.1:0", up)
	for range 16 {
		exchange(t, dialRig(t, r), []byte("x"))
	}
	for i, l := range r.loops {
		if n := l.count.Load(); n < 3 || n > 5 {
			t.Errorf("loop %d has %d of 16 connections, want 4 or nearly", i, n)
		}
	}
}

// ask has a loop call f.
func ask[T any](l *loop, f func() T) T {
	var result T
	var done sync.WaitGroup
	done.Add(1)
	l.tell(message{kind: inspect, inspect: func() { result = f() }, done: &done})
	done.Wait()
	return result
}

// Making an engine takes nothing that would have to be given back.
func TestNeverServed(t *testing.T) {
	leakCheck(t)
	e := New(Options{Log: zap.NewNop(), Loops: 2})
	e.Set(Settings{IdleTimeout: time.Minute})
	if n, s := e.Connections(), e.Stats(); n != 0 || s != (Stats{}) {
		t.Errorf("%d connections and %+v, want none", n, s)
	}
	if err := e.Wait(t.Context()); err != nil {
		t.Errorf("Wait = %v, want nil", err)
	}
	if one := New(Options{Log: zap.NewNop()}); one.size != runtime.GOMAXPROCS(0) {
		t.Errorf("%d loops unless told otherwise, want one for each of GOMAXPROCS, %d", one.size, runtime.GOMAXPROCS(0))
	}
	e.StopListening()
	e.CloseUpstream(netip.MustParseAddrPort("127.0.0.1:9"))
	e.Close()
	if err := e.Serve(listenTCP(t, "127.0.0.1:0"), &director{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Close = %v, want %v", err, net.ErrClosed)
	}
}
