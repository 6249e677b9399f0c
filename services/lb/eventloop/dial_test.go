//go:build linux

package eventloop

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/goshield/goshield/internal/porttest"
)

// silent is an address that answers no SYN: a listener whose queue is full.
func silent(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	// The first connection fills the queue: connect says when it is there. That the next one stays without an
	// answer only shows that it is so.
	for full := false; !full; {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(c) })
		_ = unix.Connect(c, name)
		ready := []unix.PollFd{{Fd: int32(c), Events: unix.POLLOUT}}
		n, _ := unix.Poll(ready, 500)
		full = n == 0
	}
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet4).Port)).String()
}

// What the client sends before an upstream is connected waits for the one that is.
func TestRetryKeepsEarlyData(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  func(*testing.T) string
		want error
	}{
		{"refused", func(t *testing.T) string { return porttest.Held(t) }, syscall.ECONNREFUSED},
		{"timed out", silent, syscall.ETIMEDOUT},
		{"no route", func(*testing.T) string { return "[100::1]:9" }, nil},
		{"reset at once", func(t *testing.T) string {
			return serve(t, "127.0.0.1:0", func(c *net.TCPConn) { _ = c.SetLinger(0) })
		}, syscall.ECONNRESET},
	} {
		t.Run(c.name, func(t *testing.T) {
			leakCheck(t)
			bad := c.bad(t)
			good := serve(t, "127.0.0.1:0", echo)
			settings := Settings{ConnectTimeout: 100 * time.Millisecond}
			r := startOn(t, Options{Loops: 1, Settings: settings}, "127.0.0.1:0", bad, good)
			conn := dialRig(t, r)
			if c.name == "reset at once" { // once data has gone to it, there is no way back
				r.await(t, "the second attempt", func() bool { return len(r.failed) == 1 })
			}
			early := strings.Repeat("early data ", 20_000)
			go func() {
				_, _ = io.WriteString(conn, early)
				_ = conn.CloseWrite()
			}()
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != early {
				t.Errorf("got %d bytes, %v; want the %d sent", len(got), err, len(early))
			}
			if res := r.result(t, 0); res.Reason != Finished {
				t.Errorf("reason %v, want Finished", res.Reason)
			}
			if len(r.failed) != 1 || c.want != nil && !errors.Is(r.failed[0], c.want) {
				t.Errorf("failed with %v, want %v", r.failed, c.want)
			}
		})
	}
}

func TestNoUpstreamLeft(t *testing.T) {
	r := start(t, Options{Loops: 1}, porttest.Held(t), porttest.Held(t), porttest.Held(t))
	wantNoService(t, r)
	if got := r.result(t, 0); got != (Result{Reason: Unplaced}) {
		t.Errorf("got %+v, want Unplaced", got)
	}
	if len(r.failed) != 3 {
		t.Errorf("%d failures told, want 3", len(r.failed))
	}
}

func TestClientGoesWhileConnecting(t *testing.T) {
	leakCheck(t)
	r := startOn(t, Options{Loops: 1}, "127.0.0.1:0", silent(t))
	c := dialRig(t, r)
	r.await(t, "admitted", func() bool { return r.admitted == 1 })
	_ = c.SetLinger(0)
	_ = c.Close()
	if got := r.result(t, 0).Reason; got != ClientReset {
		t.Errorf("reason %v, want ClientReset", got)
	}
}

// Data and end of stream, both sent before the upstream is connected.
func TestEarlyEnd(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		got, _ := io.ReadAll(c)
		_, _ = c.Write(append([]byte("got "), got...))
	})
	r := startOn(t, Options{Loops: 1, Settings: Settings{ConnectTimeout: 100 * time.Millisecond}}, "127.0.0.1:0", silent(t), up)
	c := dialRig(t, r)
	_, _ = io.WriteString(c, "all")
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "got all" {
		t.Errorf("got %q, %v", got, err)
	}
}

// An upstream that closes without a byte is an answer like any other, not a reason to try
// another one.
func TestUpstreamClosesAtOnce(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", func(*net.TCPConn) {})
	r := startOn(t, Options{Loops: 1}, "127.0.0.1:0", up, up)
	c := dialRig(t, r)
	wantEnd(t, c)
	_ = c.Close()
	if got := r.result(t, 0); got != (Result{Reason: Finished}) {
		t.Errorf("got %+v, want Finished", got)
	}
	if len(r.connected) != 1 {
		t.Errorf("connected %d times, want once", len(r.connected))
	}
}
