package relay

// Many bytes, and many connections. For random traffic see TestSoak.

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// While a client does not read, its upstream is not read from either: what the upstream can send is
// bounded, and the process's memory does not grow. Then all arrives.
func TestStalledReader(t *testing.T) {
	const conns = 4
	u := listen(t)
	r := start(t, settings(), u.addr)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	clients, servers := make([]*net.TCPConn, conns), make([]*net.TCPConn, conns)
	sent := make([]int, conns)
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for i := range clients {
		clients[i] = r.dialSmall(t)
		servers[i] = u.accept(t)
		for sent[i] < 64<<20 {
			_ = servers[i].SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			n, err := servers[i].Write(chunk)
			sent[i] += n
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if sent[i] >= 64<<20 {
			t.Fatal("the upstream could send 64 MiB to a client that does not read")
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > conns*(2*bufferSize+32<<10) {
		t.Errorf("%d stalled connections hold %d KiB of heap, want at most %d", conns, grown>>10, conns*(2*bufferSize+32<<10)>>10)
	}
	for i, c := range clients {
		_ = servers[i].CloseWrite()
		_ = c.SetDeadline(time.Now().Add(patience))
		n, err := io.Copy(io.Discard, c)
		if err != nil || int(n) != sent[i] {
			t.Errorf("read %d bytes, %v, want %d", n, err, sent[i])
		}
	}
}

// dialSmall connects with a small receive buffer. It is small from the start: a window that
// shrinks to less than one segment makes the sender wait 200 ms for each.
func (r *rig) dialSmall(t *testing.T) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10)
		})
	}}
	c, err := d.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// A stalled connection does not hold up others.
func TestStalledReaderHarmsNobody(t *testing.T) {
	u := listen(t)
	r := start(t, settings(), u.addr)
	r.dial(t) // never reads
	s := u.accept(t)
	flood := make(chan struct{})
	go func() { // ends when the test closes s
		defer close(flood)
		_, _ = io.Copy(s, neverEnding{})
	}()
	c := r.dial(t)
	other := u.accept(t)
	for range 100 {
		send(t, c, "ping")
		expect(t, other, "ping")
	}
	_ = s.Close()
	<-flood
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

// Connections that come and go leave nothing behind.
func TestChurn(t *testing.T) {
	u := listen(t).echo(t)
	r := start(t, settings(), u.addr)
	once := func() {
		c := r.dial(t)
		send(t, c, "x")
		expect(t, c, "x")
		_ = c.Close()
		r.result(t)
	}
	for range 20 {
		once()
	}
	before := openDescriptors(t)
	goroutines := runtime.NumGoroutine()
	for range 300 {
		once()
	}
	deadline := time.Now().Add(patience)
	for openDescriptors(t) > before+3 || runtime.NumGoroutine() > goroutines+3 {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors and %d goroutines after 300 connections, %d and %d before", openDescriptors(t), runtime.NumGoroutine(), before, goroutines)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// openDescriptors is 0 where the system does not tell.
func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}
