package quicktcp

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// pair is the two ends of a connection: one wrapped, one of package net.
func pair(t *testing.T) (*Conn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialed, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := Wrap(accepted).(*Conn)
	if !ok {
		t.Fatalf("Wrap gives %T, want *Conn", Wrap(accepted))
	}
	t.Cleanup(func() { _ = conn.Close(); _ = dialed.Close() })
	for _, c := range []net.Conn{conn, dialed} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return conn, dialed.(*net.TCPConn)
}

func TestWrapLeavesOthersAlone(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if got := Wrap(a); got != a {
		t.Errorf("Wrap gives %T for a pipe, want the pipe", got)
	}
}

// More than the kernel takes at once, both ways at the same time; then the end of one direction, and of the other.
func TestTransferAndHalfClose(t *testing.T) {
	conn, peer := pair(t)
	out, back := make([]byte, 8<<20), make([]byte, 8<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(out)
	_, _ = random.Read(back)
	var working sync.WaitGroup
	send := func(name string, to net.Conn, data []byte) {
		working.Go(func() {
			if n, err := to.Write(data); n != len(data) || err != nil {
				t.Errorf("%s: wrote %d bytes (%v), want %d", name, n, err, len(data))
			}
			if err := to.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	receive := func(name string, from io.Reader, want []byte) {
		working.Go(func() {
			if got, err := io.ReadAll(from); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes (%v), want %d and the same", name, len(got), err, len(want))
			}
		})
	}
	send("from it", conn, out)
	send("to it", peer, back)
	receive("from it", peer, out)
	receive("to it", struct{ io.Reader }{conn}, back) // nothing but Read
	working.Wait()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read after the end gives %d, %v, want io.EOF", n, err)
	}
}

// crypto/tls, and the parking of connections, rest on what such an error says of itself.
func TestDeadlines(t *testing.T) {
	conn, peer := pair(t)
	past := time.Unix(1, 0)
	wantTimeout := func(name string, err error) {
		t.Helper()
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: %v, want a timeout", name, err)
		}
		if temporary, ok := timeout.(interface{ Temporary() bool }); !ok || !temporary.Temporary() {
			t.Errorf("%s: %v is not temporary", name, err)
		}
	}
	interrupted := make(chan error, 1)
	go func() { // ends with its deadline
		_, err := conn.Read(make([]byte, 1))
		interrupted <- err
	}()
	if err := conn.SetReadDeadline(past); err != nil {
		t.Fatal(err)
	}
	wantTimeout("a Read that waits", <-interrupted)
	if err := conn.SetWriteDeadline(past); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Write([]byte("x"))
	wantTimeout("a Write", err)
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Write([]byte("later")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "later" {
		t.Errorf("read %q (%v), want later", got, err)
	}
}

func TestCloseEndsWhatWaits(t *testing.T) {
	conn, _ := pair(t)
	ended := make(chan error, 2)
	go func() { // ends with Close
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}()
	go func() { // ends with Close: the peer reads nothing
		for {
			if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	}
}

func TestReset(t *testing.T) {
	conn, peer := pair(t)
	_ = peer.SetLinger(0)
	_ = peer.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read gives %v, want ECONNRESET", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write gives %v, want EPIPE", err)
	}
}

// mostAllocations is for a message each way: none, but that pools may forget what they hold, and with the race detector
// do so each fourth time. Without a pool there would be six.
const mostAllocations = 3

func TestTransfersAreUsedAgain(t *testing.T) {
	conn, peer := pair(t)
	buf := make([]byte, 64)
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := peer.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(peer, buf); err != nil {
			t.Fatal(err)
		}
	}); n > mostAllocations {
		t.Errorf("%v allocations for a message each way, want at most %d", n, mostAllocations)
	}
}
