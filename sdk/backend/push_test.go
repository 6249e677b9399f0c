package backend_test

// Pushes: through whichever gateway has the device.

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

func echo(_ context.Context, req backend.Request) (backend.Response, error) {
	return backend.Response{Body: req.Body}, nil
}

// answerPushes answers every push of g with result until the test ends.
func (g *gateway) answerPushes(result link.PushResult) {
	done := make(chan struct{})
	g.t.Cleanup(func() { close(done) })
	go func() { // ends with the test
		for {
			select {
			case id := <-g.pushIDs:
				_ = g.conn.PushResult(id, result) // or the test has ended
			case <-done:
				return
			}
		}
	}()
}

// settled asks for an echo, so that the server knows the link.
func (g *gateway) settled() *gateway {
	g.t.Helper()
	if got := g.ask(link.Request{}); got.err != nil {
		g.t.Fatal(got.err)
	}
	return g
}

func TestPushFindsTheGateway(t *testing.T) {
	srv := &backend.Server{Handler: echo}
	addr := start(t, srv)
	id := wire.ClientID{7}
	if _, err := srv.Push(context.Background(), id, "news", nil); err == nil {
		t.Error("without any gateway: got no error")
	}
	var others []*gateway
	for range 3 {
		g := dial(t, addr, "without").settled()
		g.answerPushes(link.PushNotConnected)
		others = append(others, g)
	}
	if got, err := srv.Push(context.Background(), id, "news", []byte(`1`)); got != link.PushNotConnected || err != nil {
		t.Errorf("got %v, %v; want not_connected", got, err)
	}
	asked := 0
	for _, g := range others {
		asked += len(g.pushes)
	}
	if asked != 1 {
		t.Errorf("the gateway was asked on %d of its links, want 1", asked)
	}
	owner := dial(t, addr, "owner").settled()
	owner.answerPushes(link.PushAcknowledged)
	for range 10 {
		if got, err := srv.Push(context.Background(), id, "news", []byte(`{"a":1}`)); got != link.PushAcknowledged || err != nil {
			t.Errorf("got %v, %v; want acknowledged", got, err)
		}
		if p := wait(t, "the push", owner.pushes); p.ClientID != id || p.Service != "news" || string(p.Body) != `{"a":1}` {
			t.Errorf("the gateway got %v", p)
		}
	}
}

func TestPushResults(t *testing.T) {
	for _, want := range []link.PushResult{link.PushAcknowledged, link.PushQueueFull, link.PushTimedOut} {
		srv := &backend.Server{Handler: echo}
		g := dial(t, start(t, srv), "gw").settled()
		g.answerPushes(want)
		if got, err := srv.Push(context.Background(), wire.ClientID{}, "news", nil); got != want || err != nil {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
	}
}

// What is not known is an error, not a result.
func TestPushOfUnknownFate(t *testing.T) {
	srv := &backend.Server{Handler: echo}
	addr := start(t, srv)
	lost := dial(t, addr, "lost").settled()
	go func() { <-lost.pushIDs; lost.conn.Close() }() // ends with the first push
	if got, err := srv.Push(context.Background(), wire.ClientID{}, "news", nil); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("link lost: got %v, %v; want an error", got, err)
	}
	wait(t, "the end of the link", lost.ended)
	silent := dial(t, addr, "silent").settled()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if got, err := srv.Push(ctx, wire.ClientID{}, "news", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: got %v, %v; want a deadline", got, err)
	}
	// The answer that comes after all harms nobody.
	if err := silent.conn.PushResult(wait(t, "the push", silent.pushIDs), link.PushAcknowledged); err != nil {
		t.Fatal(err)
	}
	silent.settled()
	if _, err := srv.Push(context.Background(), wire.ClientID{}, "", nil); err == nil {
		t.Error("without a service: got no error")
	}
	if _, err := srv.Push(context.Background(), wire.ClientID{}, "news", make([]byte, 1<<20)); !errors.Is(err, &wire.Error{Code: wire.CodeFrameTooLarge}) {
		t.Errorf("too large: got %v", err)
	}
}

// A gateway that says good-bye gets no more pushes on that link, but its other one does.
func TestPushAvoidsLinksThatLeave(t *testing.T) {
	srv := &backend.Server{Handler: echo}
	addr := start(t, srv)
	leaving := dial(t, addr, "gw").settled()
	if err := leaving.conn.Goaway(); err != nil {
		t.Fatal(err)
	}
	leaving.settled()
	if _, err := srv.Push(context.Background(), wire.ClientID{}, "news", nil); !errors.Is(err, link.ErrSealed) {
		t.Errorf("on the leaving link alone: got %v, want ErrSealed", err)
	}
	staying := dial(t, addr, "gw").settled()
	staying.answerPushes(link.PushAcknowledged)
	for range 5 {
		if got, err := srv.Push(context.Background(), wire.ClientID{}, "news", nil); got != link.PushAcknowledged || err != nil {
			t.Errorf("got %v, %v; want acknowledged", got, err)
		}
	}
	if n := len(leaving.pushes); n != 0 {
		t.Errorf("%d pushes went over the leaving link", n)
	}
}
