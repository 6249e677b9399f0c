//go:build linux

package main

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/porttest"
)

// serveOne accepts one connection and gives it to handle, until the test ends.
func serveOne(t *testing.T, handle func(net.Conn)) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		handle(conn)
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return listener.Addr().String()
}

// TestLoadChecksTheAnswer: a relay that mixes connections up must not be
// measured as if it worked.
func TestLoadChecksTheAnswer(t *testing.T) {
	address := serveOne(t, func(conn net.Conn) {
		buf := make([]byte, minPayload)
		if _, err := io.ReadFull(conn, buf); err == nil {
			buf[3]++ // another connection's number
			_, _ = conn.Write(buf)
		}
		_, _ = conn.Read(buf)
	})
	_, err := openLoad(loadSpec{Address: address, Connections: 1, Payload: minPayload})
	if want := "got back"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestLoadTellsARefusal: nobody listens.
func TestLoadTellsARefusal(t *testing.T) {
	_, err := openLoad(loadSpec{Address: porttest.Held(t), Connections: 1, Payload: minPayload})
	if want := "connection refused"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestOpenLoopChargesAStall: a server that answers nothing for a while delays
// all messages due meanwhile, also those that a closed loop would not have sent.
func TestOpenLoopChargesAStall(t *testing.T) {
	const stall = 400 * time.Millisecond
	address := serveOne(t, func(conn net.Conn) {
		buf := make([]byte, 4096)
		var stalled bool
		for total := 0; ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			// The first message is the one of opening, some more of the warming up.
			if total += n; total > 10*minPayload && !stalled {
				stalled = true
				time.Sleep(stall)
			}
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	l, err := openLoad(loadSpec{Address: address, Connections: 1, Payload: minPayload})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	m, err := l.measure(measureSpec{Window: time.Second, Rate: 100})
	if err != nil {
		t.Fatal(err)
	}
	// Of 100 messages 40 fall into the stall, those at its beginning wait longest.
	// In a closed loop one of 61 would have waited: not the median of the upper half.
	if got := l.window.times.ValueAtQuantile(75); time.Duration(got) < stall/10 {
		t.Errorf("three quarters took %s or less, want most of the stall of %s to show", time.Duration(got), stall)
	}
	if m.P999 < stall*9/10 {
		t.Errorf("the longest took %s, want the stall of %s", m.P999, stall)
	}
	if got := l.window.times.TotalCount(); got != 100 {
		t.Errorf("%d times were recorded, want those of 100 messages", got)
	}
}

// TestLoadTakesAnswersInPieces: a stream has no frames.
func TestLoadTakesAnswersInPieces(t *testing.T) {
	address := serveOne(t, func(conn net.Conn) {
		buf := make([]byte, 1)
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	})
	l, err := openLoad(loadSpec{Address: address, Connections: 1, Payload: 40})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	m, err := l.measure(measureSpec{Window: 50 * time.Millisecond, Rate: 200})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.window.times.TotalCount(); got != 10 {
		t.Errorf("%d times were recorded, want those of 10 messages: %+v", got, m)
	}
}
