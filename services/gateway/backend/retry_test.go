package backend

// One retry on another endpoint, for idempotent services only and within a
// budget.

import (
	"net"
	"sync/atomic"
	"testing"

	"github.com/goshield/goshield/internal/dynamic"
	sdk "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// suicidal closes the link on each request, after counting it.
func suicidal(t *testing.T, asked *atomic.Int64) string {
	return hostile(t, link.Hello{}, onRequest(func(net.Conn, uint64, link.Request) bool {
		asked.Add(1)
		return false
	}))
}

// refusing answers each request with backend_unavailable, after counting it.
func refusing(t *testing.T, asked *atomic.Int64) string {
	return hostile(t, link.Hello{}, onRequest(func(nc net.Conn, stream uint64, _ link.Request) bool {
		asked.Add(1)
		_, err := nc.Write(link.AppendError(nil, stream, wire.CodeBackendUnavailable, "not now"))
		return err == nil
	}))
}

func TestRetryElsewhere(t *testing.T) {
	for name, failing := range map[string]func(*testing.T, *atomic.Int64) string{"link lost": suicidal, "refused": refusing} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			bad, good := failing(t, &asked), serve(t, &sdk.Server{Handler: echo})
			r := newTestRouter(t, func(_ *Config, times *timing) { times.ejectAfter = 0 })
			cfg := serviceAt(bad, good)
			cfg.Idempotent = true
			r.apply(map[string]dynamic.Service{"svc": cfg})
			for asked.Load() < 8 {
				r.saved("svc")
				wantBody(t, "whatever its first endpoint", r.ask("svc", `"x"`), `"x"`)
			}
			eventually(t, "as many retries are counted as there were", func() bool { // the answer may be faster than the count
				return r.metric("goshield_backend_retries_total", "result", "sent") == float64(asked.Load())
			})
		})
	}
}

func TestNoRetryUnlessIdempotent(t *testing.T) {
	var asked atomic.Int64
	r := newTestRouter(t, func(_ *Config, times *timing) { times.ejectAfter = 0 })
	r.apply(map[string]dynamic.Service{"svc": serviceAt(refusing(t, &asked), serve(t, &sdk.Server{Handler: echo}))})
	failed := 0
	for range 10 {
		if got := r.ask("svc", "1"); got.err != nil {
			wantCode(t, "refused", got, wire.CodeBackendUnavailable)
			failed++
		}
	}
	if failed != 5 || asked.Load() != 5 {
		t.Errorf("%d of 10 failed and %d reached the refusing endpoint; want 5 and 5", failed, asked.Load())
	}
	if n := r.metric("goshield_backend_retries_total"); n != 0 {
		t.Errorf("%v retries, want none", n)
	}
}

// saved fills a service's budget.
func (r *testRouter) saved(service string) {
	(*r.table.Load())[service].budget.tenths.Store(maxRetries * retryCost)
}

// A request is sent twice at most, and never to the same endpoint.
func TestRetryOnce(t *testing.T) {
	var a, b atomic.Int64
	r := newTestRouter(t, func(_ *Config, times *timing) { times.ejectAfter = 0 })
	cfg := serviceAt(refusing(t, &a), refusing(t, &b))
	cfg.Idempotent = true
	r.apply(map[string]dynamic.Service{"svc": cfg})
	wantCode(t, "refused twice", r.ask("svc", "1"), wire.CodeBackendUnavailable)
	if a.Load() != 1 || b.Load() != 1 {
		t.Errorf("asked %d and %d times, want once each", a.Load(), b.Load())
	}
	cfg.Endpoints = cfg.Endpoints[:1]
	r.apply(map[string]dynamic.Service{"svc": cfg})
	r.eventually("the other has left", func() bool { return r.metric("goshield_backend_links") == 2 })
	a.Store(0)
	b.Store(0)
	r.saved("svc")
	wantCode(t, "without another endpoint", r.ask("svc", "1"), wire.CodeBackendUnavailable)
	if n := a.Load() + b.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
}

// Retries are a tenth of the requests, and one for a service that has had none yet.
func TestRetryBudget(t *testing.T) {
	var a, b atomic.Int64
	r := newTestRouter(t, func(_ *Config, times *timing) { times.ejectAfter = 0 })
	cfg := serviceAt(refusing(t, &a), refusing(t, &b))
	cfg.Idempotent = true
	r.apply(map[string]dynamic.Service{"svc": cfg})
	const requests = 500
	for range requests {
		wantCode(t, "refused", r.ask("svc", "1"), wire.CodeBackendUnavailable)
	}
	var sent, over float64
	r.eventually("every loss is counted, the last one perhaps after its answer", func() bool {
		sent, over = r.metric("goshield_backend_retries_total", "result", "sent"), r.metric("goshield_backend_retries_total", "result", "over_budget")
		return sent+over == requests
	})
	if sent != requests/10+firstRetries {
		t.Errorf("%v retries and %v over the budget; want %d and the rest of %d", sent, over, requests/10+firstRetries, requests)
	}
	if n := a.Load() + b.Load(); n != requests+int64(sent) {
		t.Errorf("the backends were asked %d times, want %d", n, requests+int64(sent))
	}
}

// However many requests were answered before, few retries are saved: and few are as many for a service that is seldom asked.
func TestRetriesSaved(t *testing.T) {
	var b budget
	spend := func() (n int) {
		for b.spend() {
			n++
		}
		return n
	}
	for range 100_000 {
		b.earn()
	}
	if n := spend(); n != 10 {
		t.Errorf("%d retries after 100 000 requests, want 10", n)
	}
	for range 9 {
		b.earn()
	}
	if n := spend(); n != 0 {
		t.Errorf("%d retries after 9 requests, want none", n)
	}
	b.earn()
	if n := spend(); n != 1 {
		t.Errorf("%d retries after 10 requests, want 1", n)
	}
}

// A cancelled request is not sent again, and one that was sent again can be cancelled.
func TestCancelOfARetry(t *testing.T) {
	began := make(chan struct{}, 10)
	var asked atomic.Int64
	r := newTestRouter(t, func(_ *Config, times *timing) { times.ejectAfter = 0 })
	cfg := serviceAt(refusing(t, &asked), serve(t, &sdk.Server{Handler: hanging(began)}))
	cfg.Idempotent = true
	r.apply(map[string]dynamic.Service{"svc": cfg})
	r.saved("svc")
	w := newReplies(t)
	for tag := range uint32(8) { // one way or the other it ends up where it hangs
		h := r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, tag)
		<-began
		if !h.Cancel() {
			t.Fatalf("Cancel of request %d: got false, want true", tag)
		}
		if h.Cancel() {
			t.Errorf("Cancel of request %d once more: got true, want false", tag)
		}
	}
	r.eventually("nothing is in flight", func() bool { return r.metric("goshield_backend_inflight") == 0 })
	for tag := range uint32(8) {
		w.none(tag)
	}
	if asked.Load() == 0 {
		t.Error("no request was sent again: the test shows nothing")
	}
}
