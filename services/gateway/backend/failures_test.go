package backend

// Backends that die, hang, send garbage or never come up. RELIABILITY rows 26 and 27.

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/secret"
	sdk "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// RELIABILITY row 26: the requests in flight fail at once, long before their
// timeout; the rest go elsewhere.
func TestBackendKilled(t *testing.T) {
	began := make(chan struct{}, 100)
	dying := &sdk.Server{Handler: hanging(began)}
	r := newTestRouter(t, nil)
	cfg := serviceAt(serve(t, dying))
	cfg.Timeout = dynamic.Duration(10 * time.Minute)
	r.apply(map[string]dynamic.Service{"svc": cfg})
	w := newReplies(t)
	for tag := range uint32(20) {
		r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, tag)
		<-began
	}
	cfg.Endpoints = append(cfg.Endpoints, serve(t, &sdk.Server{Handler: echo}))
	r.apply(map[string]dynamic.Service{"svc": cfg})
	dying.Close()
	for tag := range uint32(20) {
		wantCode(t, "in flight", w.wait(tag), wire.CodeBackendUnavailable)
	}
	for range 100 {
		wantBody(t, "after it", r.ask("svc", "1"), "1")
	}
	if up := r.metric("goshield_backend_up", "endpoint", cfg.Endpoints[0]); up != 0 {
		t.Errorf("the dead endpoint: up is %v, want 0", up)
	}
}

// A backend that comes back is used again.
func TestBackendComesBack(t *testing.T) {
	first := &sdk.Server{Handler: named("first")}
	ln, err := net.Listen("tcp", porttest.Held(t))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, first, ln)
	addr := ln.Addr().String()
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)})
	wantBody(t, "before", r.ask("svc", "1"), `"first"`)
	first.Close()
	r.eventually("the service is unavailable", func() bool { return len(r.Unavailable()) == 1 })
	wantCode(t, "without backend", r.ask("svc", "1"), wire.CodeBackendUnavailable)
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	serveOn(t, &sdk.Server{Handler: named("second")}, ln)
	r.eventually("the service is available", func() bool { return len(r.Unavailable()) == 0 })
	wantBody(t, "after", r.ask("svc", "1"), `"second"`)
}

// Between two attempts to reach a backend that is away there is a pause, which doubles up to a limit. A link
// that breaks soon after it was opened does not start it anew.
func TestRedialBacksOff(t *testing.T) {
	flapping := hostile(t, link.Hello{}, func(net.Conn) {}) // closes after the handshake
	for name, dial := range map[string]func(ctx context.Context, addr string) (net.Conn, error){
		"refused": func(context.Context, string) (net.Conn, error) { return nil, errors.New("refused") },
		"flapping": func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", flapping)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTestRouter(t, func(_ *Config, times *timing) {
				times.minPause, times.maxPause = 2*time.Millisecond, 16*time.Millisecond
				times.stable = time.Hour // however long the machine takes for a handshake
			})
			attempts := make(chan time.Time, 1000)
			r.connect = func(ctx context.Context, addr string) (net.Conn, error) {
				attempts <- time.Now()
				return dial(ctx, addr)
			}
			cfg := serviceAt("127.0.0.1:1")
			cfg.Links = 1
			if err := r.Apply(map[string]dynamic.Service{"svc": cfg}); err != nil {
				t.Fatal(err)
			}
			last := <-attempts
			for i, leastMS := range []int{1, 2, 4, 8, 8, 8} { // a pause is at least half of what it may be
				next := <-attempts
				if got, least := next.Sub(last), time.Duration(leastMS)*time.Millisecond; got < least {
					t.Errorf("pause %d is %v, want at least %v", i+1, got, least)
				}
				last = next
			}
		})
	}
}

// A backend that shuts down gracefully answers what it has, and no request fails meanwhile.
func TestBackendShutsDown(t *testing.T) {
	began, release := make(chan struct{}, 1), make(chan struct{})
	leaving := &sdk.Server{Handler: func(_ context.Context, req sdk.Request) (sdk.Response, error) {
		if string(req.Body) == `"wait"` {
			began <- struct{}{}
			<-release
		}
		return sdk.Response{Body: req.Body}, nil
	}}
	r := newTestRouter(t, nil)
	leavingAddr := serve(t, leaving)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(leavingAddr)})
	w := newReplies(t)
	r.Send(Request{Service: "svc", Body: []byte(`"wait"`), JSON: true}, w, 1)
	<-began
	r.apply(map[string]dynamic.Service{"svc": serviceAt(leavingAddr, serve(t, &sdk.Server{Handler: echo}))})
	ended := make(chan error, 1)
	go func() { ended <- leaving.Shutdown(context.Background()) }()
	for r.metric("goshield_backend_links", "endpoint", leavingAddr) > 0 {
		wantBody(t, "meanwhile", r.ask("svc", "1"), "1")
	}
	w.none(1)
	close(release)
	wantBody(t, "in flight", w.wait(1), `"wait"`)
	if err := <-ended; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// RELIABILITY row 27: the requests it swallows end with their deadline; it is ejected, and
// nobody else notices.
func TestBackendSwallowsRequests(t *testing.T) {
	// On a machine that is short of time the other one's answers, too, may take longer than the deadline.
	for timeout := 500 * time.Millisecond; !swallows(t, timeout); timeout *= 4 {
		if timeout > patience {
			t.Fatalf("an endpoint that is well did not answer within %v", timeout)
		}
	}
}

// swallows reports whether all requests were answered within the timeout that were not swallowed.
func swallows(t *testing.T, timeout time.Duration) bool {
	t.Helper()
	var swallowed atomic.Int64
	var swallowing atomic.Bool
	swallowing.Store(true)
	black := hostile(t, link.Hello{}, onRequest(func(nc net.Conn, stream uint64, req link.Request) bool {
		if swallowing.Load() {
			swallowed.Add(1)
			return true
		}
		_, err := nc.Write(link.AppendResponse(nil, stream, req.Body))
		return err == nil
	}))
	well := serve(t, &sdk.Server{Handler: echo})
	r := newTestRouter(t, nil)
	cfg := serviceAt(black, well)
	cfg.Timeout = dynamic.Duration(timeout)
	r.apply(map[string]dynamic.Service{"svc": cfg})
	w := newReplies(t)
	const burst = 40
	for tag := range uint32(burst) {
		r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, tag)
	}
	timeouts := 0
	for tag := range uint32(burst) {
		if got := w.wait(tag); got.err != nil {
			wantCode(t, "swallowed", got, wire.CodeBackendTimeout)
			timeouts++
		}
	}
	if timeouts > burst/2 {
		return false
	}
	if timeouts < burst/2 {
		t.Errorf("%d of %d timed out, want those of one endpoint of two", timeouts, burst)
	}
	r.eventually("it is ejected", func() bool {
		return r.metric("goshield_backend_ejections_total", "endpoint", black) == 1 && r.metric("goshield_backend_up", "endpoint", black) == 0
	})
	before, ejected := swallowed.Load(), time.Now()
	for range 100 {
		began := time.Now()
		if got := r.ask("svc", "1"); time.Since(began) >= timeout {
			return false
		} else if time.Since(ejected) < 4*time.Second { // an ejection lasts five, then the endpoint is tried once more
			wantBody(t, "after the ejection", got, "1")
		}
	}
	if n := swallowed.Load() - before; n != 0 && time.Since(ejected) < 4*time.Second {
		t.Errorf("%d requests went to the ejected endpoint", n)
	}
	return true
}

// A backend that is too slow hears, under the request's own number, that nobody waits any more; its answer comes late.
func TestTimeoutIsCancelled(t *testing.T) {
	addr := hostile(t, link.Hello{}, func(nc net.Conn) {
		for {
			h, _, err := nextFrame(nc)
			if err != nil {
				return
			}
			if h.Type != link.TypeCancel {
				continue
			}
			if _, err := nc.Write(link.AppendResponse(nil, h.Stream, []byte("1"))); err != nil {
				return
			}
		}
	})
	r := newTestRouter(t, nil)
	cfg := serviceAt(addr)
	cfg.Timeout = dynamic.Duration(5 * time.Millisecond)
	r.apply(map[string]dynamic.Service{"svc": cfg})
	for range 3 {
		wantCode(t, "not answered", r.ask("svc", "1"), wire.CodeBackendTimeout)
	}
	r.eventually("the answers to what was cancelled are late", func() bool {
		return r.metric("goshield_backend_dropped_answers_total", "reason", "late", "endpoint", addr) == 3
	})
	if n := r.metric("goshield_backend_dropped_answers_total", "reason", "unknown"); n != 0 {
		t.Errorf("%v answers of unknown streams, want none: CANCEL named others", n)
	}
}

// After an ejection an endpoint gets one request at a time until it has answered
// one.
func TestProbation(t *testing.T) {
	began := make(chan struct{}, 100)
	hangs := serve(t, &sdk.Server{Handler: hanging(began)})
	well := serve(t, &sdk.Server{Handler: echo})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(hangs, well)})
	s := (*r.table.Load())["svc"]
	s.mu.Lock()
	e := s.endpoints[0]
	if e.address() != hangs {
		e = s.endpoints[1]
	}
	s.mu.Unlock()
	for range r.timing.ejectAfter {
		e.ejector.Failed(errTimedOut)
	}
	if e.up.Load() {
		t.Fatal("it is not ejected")
	}
	e.ejector.Pardon("the test says so")
	if !e.up.Load() || !e.probation.Load() {
		t.Fatalf("up %v, on probation %v; want both", e.up.Load(), e.probation.Load())
	}
	w := newReplies(t)
	var handles []Handle
	for tag := range uint32(50) {
		handles = append(handles, r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, tag))
	}
	answered := 0
	for tag := range uint32(50) {
		if handles[tag].link.pool != e.pool {
			wantBody(t, "elsewhere", w.wait(tag), "1")
			answered++
		}
	}
	if answered != 49 {
		t.Errorf("%d requests went elsewhere, want 49 of 50", answered)
	}
	for _, h := range handles {
		h.Cancel()
	}
	e.target.Acquire() // as if one were in flight
	r.apply(map[string]dynamic.Service{"svc": serviceAt(hangs)})
	r.eventually("the other has left", func() bool { return r.metric("goshield_backend_links", "endpoint", well) == 0 })
	h := r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, 100)
	if h.link == nil || h.link.pool != e.pool {
		t.Error("without another endpoint, the one on probation is not used")
	}
	h.Cancel()
	e.target.Release()
}

// However many fail, some endpoint is in use.
func TestNeverAreAllEjected(t *testing.T) {
	a, b := serve(t, &sdk.Server{Handler: echo}), serve(t, &sdk.Server{Handler: echo})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(a, b)})
	s := (*r.table.Load())["svc"]
	eject := func(i int) {
		s.mu.Lock()
		e := s.endpoints[i]
		s.mu.Unlock()
		for range r.timing.ejectAfter {
			e.ejector.Failed(errors.New("the test says so"))
		}
		if !e.ejector.Ejected() {
			t.Fatal("not ejected")
		}
	}
	eject(0)
	if up := r.metric("goshield_backend_up"); up != 1 {
		t.Errorf("one of two ejected: %v are up, want 1", up)
	}
	eject(1)
	if up := r.metric("goshield_backend_up"); up != 2 {
		t.Errorf("both ejected: %v are up, want 2", up)
	}
	wantBody(t, "both ejected", r.ask("svc", "1"), "1")
}

// Whatever a backend sends instead of frames, its link ends, what was in flight
// on it fails at once, and it is tried again.
func TestGarbageFromABackend(t *testing.T) {
	for name, garbage := range map[string][]byte{
		"nothing":               nil,
		"text":                  []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"unknown type":          link.Header{Type: 99}.Append(nil),
		"too long":              link.Header{Type: link.TypeResponse, Length: 1 << 31, Stream: 2}.Append(nil),
		"cut in the header":     link.AppendGoaway(nil)[:7],
		"cut in the payload":    link.AppendResponse(nil, 2, []byte("12345678"))[:20],
		"a request":             link.AppendRequest(nil, 2, &link.Request{Service: "x"}),
		"an error without code": link.Header{Type: link.TypeError, Stream: 2}.Append(nil),
		"a push without device": link.Header{Type: link.TypePush, Stream: 3}.Append(nil),
		"a push of even stream": link.AppendPush(nil, 2, &link.Push{Service: "x"}),
		"hello again":           link.AppendHello(nil, &link.Hello{MaxFrame: 4096, MaxStreams: 1}),
		"its own refusal":       link.AppendError(nil, 0, "overloaded", "go away"),
	} {
		t.Run(name, func(t *testing.T) {
			var links atomic.Int64
			arrived := make(chan struct{}, 100)
			addr := hostile(t, link.Hello{}, func(nc net.Conn) {
				if links.Add(1) > 1 {
					onRequest(func(nc net.Conn, stream uint64, req link.Request) bool {
						_, err := nc.Write(link.AppendResponse(nil, stream, req.Body))
						return err == nil
					})(nc)
					return
				}
				for range 3 {
					if _, _, err := nextFrame(nc); err != nil {
						return
					}
					arrived <- struct{}{}
				}
				if _, err := nc.Write(garbage); err == nil && len(garbage) >= link.HeaderSize && !strings.HasPrefix(name, "cut") {
					drop(nc) // the router is to close
				}
			})
			r := newTestRouter(t, nil)
			cfg := serviceAt(addr)
			cfg.Links = 1
			r.apply(map[string]dynamic.Service{"svc": cfg})
			w := newReplies(t)
			for tag := range uint32(3) {
				r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, tag)
			}
			for tag := range uint32(3) {
				wantCode(t, "in flight", w.wait(tag), wire.CodeBackendUnavailable)
			}
			r.eventually("a new link", func() bool { return len(r.Unavailable()) == 0 })
			wantBody(t, "over the new link", r.ask("svc", "1"), "1")
		})
	}
}

// A backend takes so many requests and so large ones; what is over that is refused
// at once.
func TestBackendsLimits(t *testing.T) {
	addr := hostile(t, link.Hello{MaxStreams: 3}, drop)
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)}) // two links
	w := newReplies(t)
	r.Send(Request{Service: "svc", Body: make([]byte, 2<<20)}, w, 7)
	wantCode(t, "too large", w.wait(7), wire.CodeBackendError)
	for tag := range uint32(6) {
		r.Send(Request{Service: "svc", Body: []byte("1")}, w, tag)
	}
	r.Send(Request{Service: "svc", Body: []byte("1")}, w, 6)
	if got := w.wait(6); got.err == nil || got.err.Code != wire.CodeBackendUnavailable || !strings.Contains(got.err.Message, "busy") {
		t.Errorf("the seventh of six: got %v, want backend_unavailable, busy", got.err)
	}
	if n := r.metric("goshield_backend_inflight"); n != 6 {
		t.Errorf("in flight: got %v, want 6", n)
	}
	wantCode(t, "no such service", r.ask("other", "1"), wire.CodeNoSuchService)
	for _, p := range r.allPools() {
		p.cut()
	}
	for tag := range uint32(6) {
		wantCode(t, "in flight", w.wait(tag), wire.CodeBackendUnavailable)
	}
}

// A backend that does not read fills its link's queue, and no more.
func TestBackendDoesNotRead(t *testing.T) {
	block := make(chan struct{})
	addr := hostile(t, link.Hello{}, func(net.Conn) { <-block })
	t.Cleanup(func() { close(block) })
	r := newTestRouter(t, nil)
	cfg := serviceAt(addr)
	cfg.Links = 1
	r.apply(map[string]dynamic.Service{"svc": cfg})
	body := make([]byte, 60_000)
	var busy *wire.Error
	w := waiterFunc(func(_ uint32, got Reply) { busy = got.Err })
	sent := 0
	var handles []Handle
	for busy == nil && sent < 4096 {
		handles = append(handles, r.Send(Request{Service: "svc", Body: body}, w, 0))
		sent++
	}
	if busy == nil || busy.Code != wire.CodeBackendUnavailable || sent > 1000 {
		t.Fatalf("after %d requests: got %v, want backend_unavailable much earlier", sent, busy)
	}
	for _, h := range handles {
		h.Cancel()
	}
	for _, p := range r.allPools() {
		p.cut() // or it would be shut down by the write's timeout
	}
}

// A wrong secret: the service stays unavailable, and the log says why without saying it.
func TestWrongSecret(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	r := newTestRouter(t, func(cfg *Config, _ *timing) {
		cfg.Secret, cfg.Log = secret.Static("not the right secret"), zap.New(core)
	})
	addr := serve(t, &sdk.Server{Handler: echo})
	if err := r.Apply(map[string]dynamic.Service{"svc": serviceAt(addr)}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the refusal is logged", func() bool { return logs.FilterMessage("link cannot be opened").Len() == 2 })
	for _, entry := range logs.All() {
		for _, f := range entry.ContextMap() {
			if s, ok := f.(string); ok && (strings.Contains(s, "not the right secret") || strings.Contains(s, shared)) {
				t.Errorf("the log shows a secret: %s", s)
			}
		}
	}
	if got := r.Unavailable(); len(got) != 1 || got[0] != "svc" {
		t.Errorf("Unavailable: got %v, want [svc]", got)
	}
	wantCode(t, "a request", r.ask("svc", "1"), wire.CodeBackendUnavailable)
}

func TestShutdown(t *testing.T) {
	t.Run("waits for what is in flight", func(t *testing.T) {
		began, release := make(chan struct{}, 1), make(chan struct{})
		addr := serve(t, &sdk.Server{Handler: func(_ context.Context, req sdk.Request) (sdk.Response, error) {
			if string(req.Body) == "1" {
				began <- struct{}{}
				<-release
			}
			return sdk.Response{Body: req.Body}, nil
		}})
		r := newTestRouter(t, nil)
		r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)})
		w := newReplies(t)
		r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, 1)
		<-began
		ended := make(chan error, 1)
		go func() { ended <- r.Shutdown(context.Background()) }()
		r.eventually("new requests are refused", func() bool { return r.ask("svc", "2").err != nil })
		select {
		case err := <-ended:
			t.Fatalf("Shutdown did not wait: %v", err)
		default:
		}
		close(release)
		wantBody(t, "in flight", w.wait(1), "1")
		if err := <-ended; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := r.Apply(nil); err == nil {
			t.Error("Apply after Shutdown: got no error")
		}
	})
	t.Run("is cut short", func(t *testing.T) {
		began := make(chan struct{}, 1)
		r := newTestRouter(t, nil)
		r.apply(map[string]dynamic.Service{"svc": serviceAt(serve(t, &sdk.Server{Handler: hanging(began)}))})
		w := newReplies(t)
		r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, 1)
		<-began
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if err := r.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || !contains(err, "1 requests") {
			t.Errorf("Shutdown: got %v, want one request cut short", err)
		}
		wantCode(t, "in flight", w.wait(1), wire.CodeBackendUnavailable)
		// Another router of the same registry can follow.
		next := NewRouter(Config{Node: "gw-2", Secret: secret.Static(shared), Log: zap.NewNop(), Metrics: r.reg})
		if err := next.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}
