package backend

// Pushes from backends to devices, and their results back.

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	sdk "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// linked is a router with one link to srv.
func linked(t *testing.T, srv *sdk.Server, onPush PushFunc, change func(*timing)) *testRouter {
	t.Helper()
	r := newTestRouter(t, func(cfg *Config, times *timing) {
		cfg.OnPush = onPush
		if change != nil {
			change(times)
		}
	})
	cfg := serviceAt(serve(t, srv))
	cfg.Links = 1
	r.apply(map[string]dynamic.Service{"svc": cfg})
	wantBody(t, "an echo", r.ask("svc", "1"), "1") // so that the backend knows the link
	return r
}

func TestPush(t *testing.T) {
	id := wire.ClientID{9, 9}
	for _, want := range []link.PushResult{link.PushAcknowledged, link.PushNotConnected, link.PushQueueFull, link.PushTimedOut} {
		srv := &sdk.Server{Handler: echo}
		var got string
		linked(t, srv, func(id wire.ClientID, service string, body []byte, done func(link.PushResult)) {
			got = id.String()[:4] + " " + service + " " + string(body)
			go func() { // ends at once
				done(want)
				done(link.PushAcknowledged) // only the first counts
			}()
		}, nil)
		result, err := srv.Push(context.Background(), id, "news", []byte("[1]"))
		if err != nil || result != want {
			t.Errorf("got %v, %v; want %v", result, err, want)
		}
		if got != "0909 news [1]" {
			t.Errorf("OnPush got %q", got)
		}
	}
}

func TestPushWithoutOnPush(t *testing.T) {
	srv := &sdk.Server{Handler: echo}
	linked(t, srv, nil, nil)
	if result, err := srv.Push(context.Background(), wire.ClientID{}, "news", nil); err != nil || result != link.PushNotConnected {
		t.Errorf("got %v, %v; want not_connected", result, err)
	}
}

// A result that does not come in time is "timed out"; when it comes after all, nobody is
// told, not even the next push of the same stream id.
func TestPushTimesOut(t *testing.T) {
	results := make(chan link.PushResult, 10)
	begin := make(chan struct{})
	var dones []func(link.PushResult)
	pushed := make(chan func(link.PushResult), 10)
	addr := hostile(t, link.Hello{}, func(nc net.Conn) {
		<-begin
		for range 2 {
			if _, err := nc.Write(link.AppendPush(nil, 7, &link.Push{Service: "news"})); err != nil {
				return
			}
			for {
				h, payload, err := nextFrame(nc)
				if err != nil {
					return
				}
				if h.Type == link.TypePushResult && h.Stream == 7 {
					results <- link.PushResult(payload[0])
					break
				}
			}
		}
		drop(nc)
	})
	r := newTestRouter(t, func(cfg *Config, times *timing) {
		times.push = 30 * time.Millisecond
		cfg.OnPush = func(_ wire.ClientID, _ string, _ []byte, done func(link.PushResult)) { pushed <- done }
	})
	cfg := serviceAt(addr)
	cfg.Links = 1
	r.apply(map[string]dynamic.Service{"svc": cfg})
	close(begin)
	dones = append(dones, <-pushed)
	if got := <-results; got != link.PushTimedOut {
		t.Errorf("the first: got %v, want timed_out", got)
	}
	dones = append(dones, <-pushed)
	dones[0](link.PushAcknowledged)
	if got := <-results; got != link.PushTimedOut {
		t.Errorf("the second: got %v, want timed_out: the first one's late result is not its own", got)
	}
	dones[1](link.PushAcknowledged)
}

// More pushes at once than was agreed are refused; one stream id twice ends the link.
func TestPushesOutOfBounds(t *testing.T) {
	full := make(chan link.PushResult, 1)
	told := make(chan string, 1)
	addr := hostile(t, link.Hello{MaxStreams: 2}, func(nc net.Conn) {
		for _, stream := range []uint64{1, 3, 5} {
			if _, err := nc.Write(link.AppendPush(nil, stream, &link.Push{Service: "news"})); err != nil {
				return
			}
		}
		h, payload, err := nextFrame(nc)
		if err != nil || h.Type != link.TypePushResult || h.Stream != 5 {
			t.Errorf("got %v of stream %d, %v; want the result of stream 5", h.Type, h.Stream, err)
			return
		}
		select {
		case full <- link.PushResult(payload[0]):
		default:
		}
		if _, err := nc.Write(link.AppendPush(nil, 3, &link.Push{Service: "news"})); err != nil {
			return
		}
		for {
			h, payload, err := nextFrame(nc)
			if err != nil {
				return
			}
			if h.Type == link.TypeError && h.Stream == 0 {
				select {
				case told <- string(bytes.ReplaceAll(payload, []byte{0}, []byte(": "))):
				default:
				}
				return
			}
		}
	})
	r := newTestRouter(t, func(cfg *Config, _ *timing) {
		cfg.OnPush = func(wire.ClientID, string, []byte, func(link.PushResult)) {}
	})
	cfg := serviceAt(addr)
	cfg.Links = 1
	if err := r.Apply(map[string]dynamic.Service{"svc": cfg}); err != nil {
		t.Fatal(err)
	}
	if got := <-full; got != link.PushQueueFull {
		t.Errorf("the third of two: got %v, want queue_full", got)
	}
	if got := <-told; !strings.Contains(got, "bad_frame") || !strings.Contains(got, "in flight") {
		t.Errorf("a stream id twice: the backend was told %q, want bad_frame", got)
	}
}

// A link that leaves waits for the results of its pushes.
func TestLeavingLinkDeliversPushResults(t *testing.T) {
	srv := &sdk.Server{Handler: echo}
	pushed := make(chan func(link.PushResult), 1)
	r := linked(t, srv, func(_ wire.ClientID, _ string, _ []byte, done func(link.PushResult)) { pushed <- done }, nil)
	type outcome struct {
		result link.PushResult
		err    error
	}
	ended := make(chan outcome, 1)
	go func() {
		result, err := srv.Push(context.Background(), wire.ClientID{}, "news", nil)
		ended <- outcome{result, err}
	}()
	done := <-pushed
	if err := r.Apply(nil); err != nil {
		t.Fatal(err)
	}
	r.eventually("the service has left the table", func() bool { return r.ask("svc", "1").err.Code == wire.CodeNoSuchService })
	done(link.PushAcknowledged)
	if got := <-ended; got.err != nil || got.result != link.PushAcknowledged {
		t.Errorf("got %v, %v; want acknowledged", got.result, got.err)
	}
}
