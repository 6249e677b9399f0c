package relay

// From accept to the first byte: retry, data that arrives early, the PROXY
// header.

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/porttest"
)

func TestRetry(t *testing.T) {
	u := listen(t).echo(t)
	r := start(t, settings(), porttest.Held(t), porttest.Held(t), u.addr)
	c := r.dial(t)
	send(t, c, "sent before anything was connected")
	expect(t, c, "sent before anything was connected")
	if len(r.failed) != 2 || !errors.Is(r.failed[0], syscall.ECONNREFUSED) {
		t.Errorf("failed attempts = %v, want two refused", r.failed)
	}
}

func TestNoUpstreamLeft(t *testing.T) {
	r := start(t, settings(), porttest.Held(t))
	expectRefusal(t, r.addr)
	if got := r.result(t); got.Reason != Unplaced {
		t.Errorf("reason = %s, want unplaced", got.Reason)
	}
}

// fullBacklog is an address on which connections are neither accepted nor
// refused: its queue of one is full.
func fullBacklog(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port)).String()
	// The first connection fills the queue. That a next one does not come about only shows that it is so.
	for i := range 10 {
		timeout := patience
		if i > 0 {
			timeout = 200 * time.Millisecond
		}
		c, err := net.DialTimeout("tcp", addr, timeout)
		if err != nil && i > 0 {
			return addr
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the queue does not fill")
	return ""
}

// What a client sends while its upstream is not connected yet is not lost, however
// much it is.
func TestConnectTimeoutLosesNothing(t *testing.T) {
	u := listen(t).echo(t)
	s := settings()
	s.ConnectTimeout = 200 * time.Millisecond
	// On a machine that is short of time an attempt at the one that listens may time out as well.
	r := start(t, s, append([]string{fullBacklog(t)}, slices.Repeat([]string{u.addr}, 100)...)...)
	c := r.dial(t)
	early := strings.Repeat("early ", 50_000)
	done := make(chan struct{})
	go func() { // ends when all is written
		defer close(done)
		_, _ = c.Write([]byte(early))
	}()
	expect(t, c, early)
	<-done
	if len(r.failed) == 0 || slices.ContainsFunc(r.failed, func(err error) bool { return !isTimeout(err) }) {
		t.Errorf("failed attempts = %v, want a timeout", r.failed)
	}
}

// Close does not wait for an attempt that is under way.
func TestCloseWhileConnecting(t *testing.T) {
	s := settings()
	s.ConnectTimeout = time.Hour
	r := start(t, s, fullBacklog(t))
	r.dial(t)
	deadline := time.Now().Add(patience)
	for r.Connections() == 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	r.Close()
	if got := r.result(t); got.Reason != Cut {
		t.Errorf("reason = %s, want cut", got.Reason)
	}
}

func TestProxyHeaderBytes(t *testing.T) {
	const signature = "0d0a0d0a000d0a515549540a"
	for _, tt := range []struct {
		name          string
		client, local string
		want          string // after the signature
	}{
		{"IPv4", "192.0.2.1:51234", "198.51.100.7:8443", "21" + "11" + "000c" + "c0000201" + "c6336407" + "c822" + "20fb"},
		{
			"IPv6", "[2001:db8::1]:51234", "[2001:db8::2]:8443", "21" + "21" + "0024" +
				"20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "c822" + "20fb",
		},
	} {
		got, err := proxyHeader(netip.MustParseAddrPort(tt.client), netip.MustParseAddrPort(tt.local))
		if err != nil {
			t.Fatal(err)
		}
		if h := hex.EncodeToString(got); h != signature+tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, h, signature+tt.want)
		}
	}
}

// The header comes first and once, with the addresses of the client's own
// connection, also where an IPv4 client came in over an IPv6 socket.
func TestProxyHeaderSent(t *testing.T) {
	for _, tt := range []struct{ name, listen, dial string }{
		{"IPv4", "127.0.0.1:0", "127.0.0.1"},
		{"IPv6", "[::1]:0", "::1"},
		{"IPv4 over a socket for both", "[::]:0", "127.0.0.1"},
	} {
		u := listen(t)
		s := settings()
		s.ProxyHeader = true
		r := startOn(t, tt.listen, s, &director{}, u.addr)
		_, port, _ := net.SplitHostPort(r.addr)
		r.addr = net.JoinHostPort(tt.dial, port)
		c := r.dial(t)
		send(t, c, "payload")
		want, err := proxyHeader(netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String()))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, u.accept(t), string(want)+"payload")
		if !bytes.HasPrefix(want, []byte("\r\n\r\n\x00\r\nQUIT\n")) {
			t.Errorf("%s: the header does not begin with the signature", tt.name)
		}
	}
}

func TestLocal(t *testing.T) {
	dial := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}
	}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{dial(syscall.EMFILE), true},
		{dial(syscall.EADDRNOTAVAIL), true},
		{dial(syscall.ECONNREFUSED), false},
		{dial(syscall.ETIMEDOUT), false},
		{dial(syscall.EHOSTUNREACH), false},
		{os.ErrDeadlineExceeded, false},
	} {
		if got := Local(tt.err); got != tt.want {
			t.Errorf("Local(%v) = %t, want %t", tt.err, got, tt.want)
		}
	}
}
