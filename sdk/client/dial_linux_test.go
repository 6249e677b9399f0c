package client_test

// An address that takes no connection and says nothing, as a virtual one while it moves.

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
)

// fullListener is the address of a listener whose queue is full: the system drops what dials it.
func fullListener(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if ctl := raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }); ctl != nil || err != nil {
		t.Fatal(ctl, err)
	}
	for range 8 {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if err != nil {
			return l.Addr().String()
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the queue does not fill")
	return ""
}

// A dial is given up and begun anew before its SYN would be sent for the fourth time, 7 s after the first.
func TestDialIsGivenUpSoon(t *testing.T) {
	t.Parallel()
	g := newFakeGateway(t)
	cfg := g.config()
	cfg.Addr, cfg.DialContext = fullListener(t), nil
	start := time.Now()
	c, err := client.Dial(t.Context(), cfg)
	took := time.Since(start)
	if err == nil {
		_ = c.Close()
		t.Fatal("it is connected")
	}
	if took < 3500*time.Millisecond || took > 6*time.Second {
		t.Errorf("given up after %v, want 4s: %v", took, err)
	}
}
