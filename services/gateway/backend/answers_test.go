package backend

// Answers: each to its own request, whatever a backend sends. RELIABILITY rows 28
// and 29.

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	sdk "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// identity is what tells one request from every other.
func identity(id wire.ClientID, service, body string) string {
	return fmt.Sprintf("[%q,%q,%s]", hex.EncodeToString(id[:4]), service, body)
}

// load sends n requests from several devices, each with so many in flight, and checks that each
// gets its own answer, once.
func load(t *testing.T, r *testRouter, devices, inFlight, n int) {
	var wg sync.WaitGroup
	for device := range devices {
		wg.Go(func() {
			w := &deviceWaiter{id: wire.ClientID{0xde, byte(device >> 8), byte(device), 1}, slots: make(chan uint32, inFlight), want: make([]string, inFlight)}
			for i := range inFlight {
				w.slots <- uint32(i)
			}
			service := fmt.Sprintf("svc-%d", device%2)
			for i := range n / devices {
				tag := <-w.slots
				body := fmt.Sprintf("[%d,%d]", device, i)
				w.want[tag] = identity(w.id, service, body)
				r.Send(Request{ClientID: w.id, Service: service, Body: []byte(body), JSON: true}, w, tag)
			}
			for range inFlight {
				<-w.slots
			}
			if msg := w.wrong.Load(); msg != nil {
				t.Errorf("device %d: %s", device, *msg)
			}
		})
	}
	wg.Wait()
}

// deviceWaiter gets one device's answers. A tag is used again as soon as it was
// answered, so that an answer too many would show.
type deviceWaiter struct {
	id    wire.ClientID
	slots chan uint32
	want  []string
	wrong atomic.Pointer[string]
}

// Done implements Waiter.
func (w *deviceWaiter) Done(tag uint32, r Reply) {
	if r.Err != nil || string(r.Body) != w.want[tag] {
		msg := fmt.Sprintf("got %q, %v; want %q", r.Body, r.Err, w.want[tag])
		w.wrong.CompareAndSwap(nil, &msg)
	}
	select {
	case w.slots <- tag:
	default:
		msg := fmt.Sprintf("tag %d was answered twice", tag)
		w.wrong.CompareAndSwap(nil, &msg)
	}
}

func TestEveryAnswerIsItsRequests(t *testing.T) {
	answer := func(_ context.Context, req sdk.Request) (sdk.Response, error) {
		return sdk.Response{Body: []byte(identity(req.ClientID, req.Service, string(req.Body)))}, nil
	}
	r := newTestRouter(t, nil)
	both := serviceAt(serve(t, &sdk.Server{Handler: answer}), serve(t, &sdk.Server{Handler: answer}), serve(t, &sdk.Server{Handler: answer}))
	least := both
	least.Algorithm = "least_inflight"
	r.apply(map[string]dynamic.Service{"svc-0": both, "svc-1": least})
	load(t, r, 40, 8, 50_000)
	if n := r.metric("goshield_backend_dropped_answers_total"); n != 0 {
		t.Errorf("%v answers were dropped, want none", n)
	}
	if n := r.metric("goshield_backend_inflight"); n != 0 {
		t.Errorf("%v requests count as in flight, want none", n)
	}
}

// RELIABILITY row 29: around each true answer the backend sends others, with ids that are wrong in every
// way that comes to mind. They are dropped and counted, and never reach
// a device.
func TestWrongStreamIDsAreDropped(t *testing.T) {
	const requests = 50_000
	var lies atomic.Int64
	addr := hostile(t, link.Hello{}, onRequest(func(nc net.Conn, stream uint64, req link.Request) bool {
		poison := []byte(`"another device's answer"`)
		var out []byte
		wrong := []uint64{0, stream + 2, stream - 2, stream + 1, stream ^ 1<<uint(1+rand.N(63)), stream >> 1, 2 * uint64(rand.N(4096)), rand.Uint64()}
		for _, id := range wrong[rand.N(4):] {
			if id == stream || id == 0 {
				continue
			}
			out = link.AppendResponse(out, id, poison)
			out = link.AppendError(out, id, wire.CodeBackendError, "another's error")
			lies.Add(2)
		}
		out = link.AppendResponse(out, stream, []byte(identity(req.ClientID, req.Service, string(req.Body))))
		out = link.AppendResponse(out, stream, poison) // once more
		lies.Add(1)
		_, err := nc.Write(out)
		return err == nil
	}))
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc-0": serviceAt(addr), "svc-1": serviceAt(addr)})
	load(t, r, 20, 16, requests)
	r.eventually("every lie is counted", func() bool {
		return r.metric("goshield_backend_dropped_answers_total", "reason", "unknown") == float64(lies.Load())
	})
	if n := r.metric("goshield_backend_links"); n != 4 { // two, which both services show
		t.Errorf("got %v links, want 4: wrong ids are no reason to close", n)
	}
}

// RELIABILITY row 28: over one link, requests that take long do not hold up the others.
func TestSlowRequestsHoldUpNobody(t *testing.T) {
	release := make(chan struct{})
	addr := serve(t, &sdk.Server{Handler: func(_ context.Context, req sdk.Request) (sdk.Response, error) {
		if string(req.Body) == `"slow"` {
			<-release
		}
		return sdk.Response{Body: req.Body}, nil
	}})
	r := newTestRouter(t, nil)
	cfg := serviceAt(addr)
	cfg.Links = 1
	r.apply(map[string]dynamic.Service{"svc": cfg})
	slow := newReplies(t)
	for tag := range uint32(100) {
		r.Send(Request{Service: "svc", Body: []byte(`"slow"`), JSON: true}, slow, tag)
	}
	for range 100 {
		wantBody(t, "a fast one", r.ask("svc", `"fast"`), `"fast"`)
	}
	slow.none(0)
	close(release)
	for tag := range uint32(100) {
		wantBody(t, "a slow one", slow.wait(tag), `"slow"`)
	}
}

func TestAnswersADeviceCannotTake(t *testing.T) {
	addr := serve(t, &sdk.Server{Handler: func(_ context.Context, req sdk.Request) (sdk.Response, error) {
		switch string(req.Body) {
		case `"not JSON"`:
			return sdk.Response{Body: []byte("{")}, nil
		case `"empty"`:
			return sdk.Response{}, nil
		case `"long"`:
			return sdk.Response{Body: []byte(`"` + strings.Repeat("x", 100) + `"`)}, nil
		case `"foreign code"`:
			return sdk.Response{}, nil
		}
		return sdk.Response{Body: []byte("{}")}, nil
	}})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)})
	for _, c := range []struct {
		body     string
		json     bool
		maxReply int
		want     string // in the message; "" for no error
	}{
		{`"not JSON"`, true, 0, "not JSON"},
		{`"not JSON"`, false, 0, ""},
		{`"empty"`, true, 0, "not JSON"},
		{`"empty"`, false, 0, ""},
		{`"long"`, true, 101, "102 bytes long, over the limit of 101"},
		{`"long"`, true, 102, ""},
		{`"fine"`, true, 2, ""},
	} {
		w := newReplies(t)
		r.Send(Request{Service: "svc", Body: []byte(c.body), JSON: c.json, MaxReply: c.maxReply}, w, 1)
		got := w.wait(1)
		switch {
		case c.want == "" && got.err != nil:
			t.Errorf("%s: got %v, want an answer", c.body, got.err)
		case c.want != "" && (got.err == nil || got.err.Code != wire.CodeBackendError || !strings.Contains(got.err.Message, c.want)):
			t.Errorf("%s: got %q, %v; want backend_error with %q", c.body, got.body, got.err, c.want)
		}
	}
}

// What a backend says went wrong reaches the device, if it is a backend's to say.
func TestErrorsOfBackends(t *testing.T) {
	addr := hostile(t, link.Hello{}, onRequest(func(nc net.Conn, stream uint64, req link.Request) bool {
		code, message, _ := strings.Cut(string(req.Body), "|")
		_, err := nc.Write(link.AppendError(nil, stream, wire.Code(code), message))
		return err == nil
	}))
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)})
	long := strings.Repeat("é", 10_000)
	for _, c := range []struct {
		body    string
		code    wire.Code
		message string
	}{
		{"backend_error|no", wire.CodeBackendError, "no"},
		{"no_such_service|which", wire.CodeNoSuchService, "which"},
		{"backend_unavailable|later", wire.CodeBackendUnavailable, "later"},
		{"backend_timeout|slow", wire.CodeBackendTimeout, "slow"},
		{"revoked|your token", wire.CodeBackendError, "revoked: your token"},
		{"own_code|%s", wire.CodeBackendError, "own_code: %s"},
		{"backend_failed|mine", wire.CodeBackendError, "mine"},
		{"backend_error|" + long, wire.CodeBackendError, long[:maxMessage]},
	} {
		w := newReplies(t)
		r.Send(Request{Service: "svc", Body: []byte(c.body)}, w, 1)
		got := w.wait(1)
		if got.err == nil || got.err.Code != c.code || got.err.Message != c.message || got.err.Close {
			t.Errorf("%.40s: got %v, want %s: %.40s", c.body, got.err, c.code, c.message)
		}
	}
}

// A request nobody waits for is cancelled at the backend, and its late answer is
// dropped and counted as late.
func TestCancel(t *testing.T) {
	streams, cancels := make(chan uint64, 1), make(chan uint64, 1)
	conns := make(chan net.Conn, 1)
	addr := hostile(t, link.Hello{}, func(nc net.Conn) {
		for {
			h, _, err := nextFrame(nc)
			switch {
			case err != nil:
				return
			case h.Type == link.TypeRequest:
				conns <- nc
				streams <- h.Stream
			case h.Type == link.TypeCancel:
				cancels <- h.Stream
			}
		}
	})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)})
	w := newReplies(t)
	h := r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, 1)
	nc, stream := <-conns, <-streams
	if !h.Cancel() {
		t.Fatal("Cancel: got false, want true")
	}
	if h.Cancel() || (Handle{}).Cancel() {
		t.Error("Cancel of what is over: got true, want false")
	}
	if got := <-cancels; got != stream {
		t.Errorf("CANCEL of stream %d, want %d", got, stream)
	}
	if _, err := nc.Write(link.AppendResponse(nil, stream, []byte("1"))); err != nil {
		t.Fatal(err)
	}
	r.eventually("the late answer is counted", func() bool {
		return r.metric("goshield_backend_dropped_answers_total", "reason", "late", "endpoint", addr) == 1
	})
	w.none(1)
	h = r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, 2)
	nc, stream = <-conns, <-streams
	if _, err := nc.Write(link.AppendResponse(nil, stream, []byte("1"))); err != nil {
		t.Fatal(err)
	}
	wantBody(t, "the second", w.wait(2), "1")
	if h.Cancel() {
		t.Error("Cancel after the answer: got true, want false")
	}
}

// Answers, deadlines, cancellations, links that break and a changing table race; each
// request is either answered once or cancelled.
func TestExactlyOnce(t *testing.T) {
	moody := func(ctx context.Context, req sdk.Request) (sdk.Response, error) {
		switch rand.N(20) {
		case 0:
			return sdk.Response{}, errors.New("moody")
		case 1:
			<-ctx.Done()
		case 2:
			time.Sleep(time.Duration(rand.N(20)) * time.Millisecond) // around the deadline
		}
		return sdk.Response{Body: req.Body}, nil
	}
	breaking := hostile(t, link.Hello{}, onRequest(func(nc net.Conn, stream uint64, _ link.Request) bool {
		out := link.AppendResponse(nil, stream, []byte("1"))
		if rand.N(50) == 0 {
			_, _ = nc.Write(out[:rand.N(len(out))]) // and close within the frame
			return false
		}
		_, err := nc.Write(out)
		return err == nil
	}))
	cfg := serviceAt(serve(t, &sdk.Server{Handler: moody}), breaking)
	cfg.Timeout = dynamic.Duration(10 * time.Millisecond)
	retried := cfg
	retried.Idempotent = true
	r := newTestRouter(t, func(_ *Config, times *timing) { times.ejectAfter = 0 })
	r.apply(map[string]dynamic.Service{"svc": cfg, "retried": retried})
	stop := make(chan struct{})
	var changing, sending sync.WaitGroup
	changing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			changed := cfg
			changed.Links = 1 + i%3
			if i%4 == 3 {
				changed.Endpoints = cfg.Endpoints[:1]
			}
			if err := r.Apply(map[string]dynamic.Service{"svc": changed, "retried": retried}); err != nil {
				t.Error(err)
			}
		}
	})
	const each = 3000
	var answered, cancelled [8 * each]atomic.Int32
	var all sync.WaitGroup
	all.Add(8 * each)
	done := waiterFunc(func(tag uint32, _ Reply) {
		answered[tag].Add(1)
		all.Done()
	})
	for n := range 8 {
		sending.Go(func() {
			for i := range each {
				tag := uint32(n*each + i)
				service := []string{"svc", "retried"}[i%2]
				h := r.Send(Request{ClientID: wire.ClientID{byte(n)}, Service: service, Body: []byte("1"), JSON: true}, done, tag)
				if i%5 == 0 && h.Cancel() {
					cancelled[tag].Add(1)
					all.Done()
				}
			}
		})
	}
	sending.Wait()
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("some requests were neither answered nor cancelled")
	}
	close(stop)
	changing.Wait()
	for tag := range answered {
		if n, m := answered[tag].Load(), cancelled[tag].Load(); n+m != 1 {
			t.Fatalf("request %d was answered %d times and cancelled %d times", tag, n, m)
		}
	}
	r.eventually("nothing counts as in flight", func() bool { return r.metric("goshield_backend_inflight") == 0 })
}

type waiterFunc func(tag uint32, r Reply)

func (f waiterFunc) Done(tag uint32, r Reply) { f(tag, r) }
