package backend

import (
	"context"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// A request whose deadline passes while it waits for its link's writer is answered backend_timeout, as any other, and the backend is not
// asked to work on it. What waits with it is sent.
func TestOverdueRequestIsNotSent(t *testing.T) {
	near, far := net.Pipe() // which takes what is read, and no more
	dialed := make(chan net.Conn, 1)
	dialed <- near
	r := newTestRouter(t, nil)
	r.connect = func(ctx context.Context, _ string) (net.Conn, error) {
		select {
		case nc := <-dialed:
			return nc, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	cfg, soon := with(1, "127.0.0.1:1"), with(1, "127.0.0.1:1")
	soon.Timeout = dynamic.Duration(10 * time.Millisecond)
	if err := r.Apply(map[string]dynamic.Service{"svc": cfg, "soon": soon}); err != nil {
		t.Fatal(err)
	}
	if h, _, err := nextFrame(far); err != nil || h.Type != link.TypeHello {
		t.Fatalf("got %v, %v, want HELLO", h.Type, err)
	}
	if _, err := far.Write(link.AppendHello(nil, &link.Hello{MaxFrame: 1 << 20, MaxStreams: 100})); err != nil {
		t.Fatal(err)
	}
	r.eventually("the link is there", func() bool { return len(r.Unavailable()) == 0 })

	w := newReplies(t)
	r.Send(Request{Service: "svc", Body: []byte("1")}, w, 1)
	begin := make([]byte, 1)
	if _, err := io.ReadFull(far, begin); err != nil { // the writer is at work, and cannot end
		t.Fatal(err)
	}
	r.Send(Request{Service: "soon", Body: []byte("2")}, w, 2)
	r.Send(Request{Service: "svc", Body: []byte("3")}, w, 3)
	wantCode(t, "the one that waited", w.wait(2), wire.CodeBackendTimeout)
	if n := r.metric("goshield_backend_inflight", "service", "soon"); n != 0 {
		t.Errorf("in flight: got %v, want 0", n)
	}
	rest := make([]byte, link.HeaderSize-1)
	if _, err := io.ReadFull(far, rest); err != nil {
		t.Fatal(err)
	}
	first, err := link.ParseHeader(slices.Concat(begin, rest), link.MaxFrame)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, far, int64(first.Length)); err != nil {
		t.Fatal(err)
	}
	for answered := first.Stream; ; {
		if _, err := far.Write(link.AppendResponse(nil, answered, []byte("ok"))); err != nil {
			t.Fatal(err)
		}
		h, payload, err := nextFrame(far)
		for ; err == nil && h.Type == link.TypeCancel; h, payload, err = nextFrame(far) {
		}
		if err != nil || h.Type != link.TypeRequest {
			t.Fatalf("got %v, %v, want a REQUEST", h.Type, err)
		}
		req, err := link.Frame{Header: h, Payload: payload}.Request()
		if err != nil || req.Service != "svc" {
			t.Errorf("the backend was asked by %q, %v, want only by svc", req.Service, err)
		}
		if answered = h.Stream; req.Service == "svc" {
			if _, err := far.Write(link.AppendResponse(nil, answered, []byte("ok"))); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	wantBody(t, "the first", w.wait(1), "ok")
	wantBody(t, "the one behind it", w.wait(3), "ok")
	for _, p := range r.allPools() {
		for _, l := range p.links() {
			if n := l.streams.Len(); n != 0 {
				t.Errorf("%d streams are open, want 0", n)
			}
		}
	}
	go drop(far) // ends with the router's end
}
