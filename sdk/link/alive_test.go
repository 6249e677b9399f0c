package link_test

// A peer that fell silent, or does not read: RELIABILITY rows 10 and 11 as far
// as they are the backend link's.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/sdk/link"
)

// shakeByHand is a link's backend end over a pipe, whose other end is played by the
// test.
func shakeByHand(t *testing.T, cfg link.Config) (*link.Conn, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	go func() {
		_, _ = far.Write(link.AppendHello(nil, &link.Hello{Secret: secret, MaxFrame: 1 << 20, MaxStreams: 1}))
	}()
	type result struct {
		conn *link.Conn
		err  error
	}
	accepted := make(chan result, 1)
	go func() {
		c, err := link.Accept(context.Background(), near, cfg, link.SecretIn(secret))
		accepted <- result{c, err}
	}()
	readFrame(t, far)
	r := <-accepted
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.conn, far
}

// readFrame reads one frame.
func readFrame(t *testing.T, nc net.Conn) (link.Header, []byte) {
	t.Helper()
	var b [link.HeaderSize]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		t.Fatal(err)
	}
	h, err := link.ParseHeader(b[:], link.MaxFrame)
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(nc, payload); err != nil {
		t.Fatal(err)
	}
	return h, payload
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, far := shakeByHand(t, link.Config{KeepAlive: 10 * time.Second, PingTimeout: 5 * time.Second})
		begin := time.Now()
		ended := served(conn, ignore)
		h, _ := readFrame(t, far)
		if got := time.Since(begin); h.Type != link.TypePing || got != 10*time.Second {
			t.Errorf("got %v after %v, want PING after 10s", h.Type, got)
		}
		if err := <-ended; err != link.ErrPeerSilent {
			t.Errorf("got %v, want ErrPeerSilent", err)
		}
		if got := time.Since(begin); got != 15*time.Second {
			t.Errorf("given up after %v, want 15s", got)
		}
	})
}

func TestAnsweringPeerIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, far := shakeByHand(t, link.Config{})
		ended := served(conn, ignore)
		begin := time.Now()
		for range 20 {
			h, data := readFrame(t, far)
			if h.Type != link.TypePing {
				t.Fatalf("got %v, want PING", h.Type)
			}
			time.Sleep(4 * time.Second)
			if _, err := far.Write(link.AppendPong(nil, [8]byte(data))); err != nil {
				t.Fatal(err)
			}
		}
		// Whatever it says counts, not only PONG.
		for range 30 {
			time.Sleep(6 * time.Second)
			if _, err := far.Write(link.AppendGoaway(nil)); err != nil {
				t.Fatalf("after %v: %v", time.Since(begin), err)
			}
		}
		far.Close()
		if err := <-ended; err != io.EOF {
			t.Errorf("got %v, want EOF", err)
		}
	})
}

func TestPingIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, far := shakeByHand(t, link.Config{})
		ended := served(conn, ignore)
		want := [8]byte{1, 2, 3, 4, 5, 6, 7, 8}
		if _, err := far.Write(link.AppendPing(nil, want)); err != nil {
			t.Fatal(err)
		}
		if h, data := readFrame(t, far); h.Type != link.TypePong || !bytes.Equal(data, want[:]) {
			t.Errorf("got %v %x, want PONG %x", h.Type, data, want)
		}
		conn.Close()
		if err := <-ended; err != link.ErrClosed {
			t.Errorf("got %v, want ErrClosed", err)
		}
	})
}

// A peer that reads nothing: the queue takes so much and no more, a producer that can
// wait waits, and the link ends when the write's time is over.
func TestPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10_000
		conn, far := shakeByHand(t, link.Config{QueueBytes: limit, WriteTimeout: 3 * time.Second})
		defer far.Close()
		begin := time.Now()
		ended := served(conn, ignore)
		body := make([]byte, 1000-link.HeaderSize)
		var waited error
		responded := make(chan struct{})
		go func() { // ends when the link does
			defer close(responded)
			for waited == nil {
				waited = conn.Respond(2, body)
			}
		}()
		synctest.Wait()
		if err := conn.Push(3, &link.Push{Service: "x", Body: body}); !errors.Is(err, link.ErrBackpressure) {
			t.Errorf("push: got %v, want ErrBackpressure", err)
		}
		if err := conn.Cancel(3); err != nil {
			t.Errorf("a short frame over the limit: got %v", err)
		}
		n := 0
		for conn.Cancel(3) == nil && n < 1_000_000 {
			n++
		}
		if n > 10_000 {
			t.Errorf("%d short frames went over the limit", n)
		}
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want a deadline", err)
		}
		if got := time.Since(begin); got != 3*time.Second {
			t.Errorf("ended after %v, want 3s", got)
		}
		<-responded
		if waited != link.ErrClosed {
			t.Errorf("the waiting producer: got %v, want ErrClosed", waited)
		}
	})
}

// countingConn counts writes.
type countingConn struct {
	net.Conn
	writes atomic.Int64
	block  chan struct{} // the first write waits for it
}

func (c *countingConn) Write(b []byte) (int, error) {
	if c.writes.Add(1) == 2 { // after HELLO
		<-c.block
	}
	return c.Conn.Write(b)
}

// Frames that become ready while others are written go out with one write.
func TestFramesAreWrittenTogether(t *testing.T) {
	near, far := dialPair(t)
	counting := &countingConn{Conn: near, block: make(chan struct{})}
	accepted := make(chan *link.Conn, 1)
	go func() {
		c, err := link.Accept(context.Background(), far, patient(link.Config{}), link.SecretIn(secret))
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	gateway, err := link.Open(context.Background(), counting, patient(link.Config{Secret: secret}))
	if err != nil {
		t.Fatal(err)
	}
	backend := wait(t, "the backend's end", accepted)
	const requests = 500
	got := 0
	all := make(chan struct{})
	backendEnded := served(backend, func(f link.Frame) error {
		if got++; got == requests {
			close(all)
		}
		return nil
	})
	gatewayEnded := served(gateway, ignore)
	for i := range requests {
		if err := gateway.Request(uint64(2*i+2), &link.Request{Service: "x", Body: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			deadline := time.Now().Add(patience)
			for counting.writes.Load() < 2 && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
		}
	}
	close(counting.block)
	wait(t, "every request", all)
	if n := counting.writes.Load(); n != 3 {
		t.Errorf("HELLO and %d requests took %d writes, want 3: HELLO, the first, the rest", requests, n)
	}
	gateway.Finish()
	wait(t, "the gateway's end", gatewayEnded)
	wait(t, "the backend's end", backendEnded)
}

// Finish loses nothing of what was queued before it, even with input unread.
func TestFinishWritesWhatIsQueued(t *testing.T) {
	gateway, backend := pair(t, link.Config{}, link.Config{})
	const answers = 300
	body := []byte(strings.Repeat("x", 3000))
	for i := range answers {
		if err := backend.Respond(uint64(2*i+2), body); err != nil {
			t.Fatal(err)
		}
		if err := gateway.Request(uint64(2*i+2), &link.Request{Service: "x", Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	backend.Finish()
	backendEnded := served(backend, ignore)
	got := 0
	err := wait(t, "the gateway's end", served(gateway, func(f link.Frame) error { got++; return nil }))
	if got != answers || err != io.EOF {
		t.Errorf("got %d answers and %v, want %d and EOF", got, err, answers)
	}
	if err := wait(t, "the backend's end", backendEnded); err != link.ErrClosed {
		t.Errorf("the backend: got %v, want ErrClosed", err)
	}
}

// A connection that breaks within a frame says so.
func TestCutWithinAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, far := shakeByHand(t, link.Config{})
		handled := 0
		ended := served(conn, func(link.Frame) error { handled++; return nil })
		frame := link.AppendRequest(nil, 2, &link.Request{Service: "x", Body: []byte("{}")})
		if _, err := far.Write(append(frame, frame[:len(frame)-1]...)); err != nil {
			t.Fatal(err)
		}
		far.Close()
		if err := <-ended; err != io.ErrUnexpectedEOF || handled != 1 {
			t.Errorf("got %d frames and %v, want 1 and unexpected EOF", handled, err)
		}
	})
}
