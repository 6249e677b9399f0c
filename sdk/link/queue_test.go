package link_test

import (
	"context"
	"net"
	"slices"
	"testing"

	"github.com/goshield/goshield/sdk/link"
)

// openByHand is a gateway's end, not served yet, and the connection at the other end.
func openByHand(t *testing.T, cfg link.Config) (*link.Conn, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	shaken := make(chan struct{})
	go func() {
		defer close(shaken)
		readFrame(t, far)
		_, _ = far.Write(link.AppendHello(nil, &link.Hello{MaxFrame: 1 << 20, MaxStreams: 100}))
	}()
	conn, err := link.Open(context.Background(), near, cfg)
	if err != nil {
		t.Fatal(err)
	}
	<-shaken
	return conn, far
}

// A request that is cancelled while it waits to be written is not written; what else waits is, in its order.
func TestCancelledBeforeItIsWritten(t *testing.T) {
	conn, far := openByHand(t, patient(link.Config{Secret: secret}))
	request := func(stream uint64) {
		t.Helper()
		if err := conn.Request(stream, &link.Request{Service: "echo", JSON: true, Body: []byte(`"a body"`)}); err != nil {
			t.Fatal(err)
		}
	}
	cancel := func(stream uint64) {
		t.Helper()
		if err := conn.Cancel(stream); err != nil {
			t.Fatal(err)
		}
	}
	type sent struct {
		kind   link.Type
		stream uint64
	}
	next := func(n int) (got []sent) {
		t.Helper()
		for range n {
			h, _ := readFrame(t, far)
			got = append(got, sent{h.Type, h.Stream})
		}
		return got
	}
	want := func(what string, got []sent, want ...sent) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	// Nothing is written before Serve.
	request(2)
	request(14)
	request(4)
	cancel(14)
	cancel(2)
	request(6)
	cancel(8) // of a request that was written long ago
	request(10)
	cancel(10)
	ended := served(conn, ignore)
	want("what was queued", next(6), sent{link.TypeRequest, 4}, sent{link.TypeCancel, 14}, sent{link.TypeCancel, 2},
		sent{link.TypeRequest, 6}, sent{link.TypeCancel, 8}, sent{link.TypeCancel, 10})
	cancel(4)
	want("one that was written", next(1), sent{link.TypeCancel, 4})
	request(2)
	want("a stream that was cancelled before", next(1), sent{link.TypeRequest, 2})
	conn.Close()
	wait(t, "the end", ended)
}
