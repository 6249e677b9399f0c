package backend

// What the tests share: a router with short times, waiters that notice a second Done,
// backends that behave and backends that do not.

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/internal/secret"
	sdk "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const (
	shared = "a secret of these tests"
	// patience is how long a test waits for what must come.
	patience = time.Minute
)

// testRouter is a Router that is shut down with its test.
type testRouter struct {
	*Router
	t   testing.TB
	reg *prometheus.Registry
}

func newTestRouter(t testing.TB, change func(*Config, *timing)) *testRouter {
	t.Helper()
	reg := prometheus.NewRegistry()
	cfg := Config{Node: "gw-test", Secret: secret.Static(shared), Log: zap.NewNop(), Metrics: reg}
	times := defaultTiming()
	times.minPause, times.maxPause, times.resolve = 2*time.Millisecond, 20*time.Millisecond, 5*time.Millisecond
	times.dial = patience // what is away refuses connections
	if change != nil {
		change(&cfg, &times)
	}
	r := NewRouter(cfg)
	r.timing = times
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return &testRouter{Router: r, t: t, reg: reg}
}

// service is a configuration with the defaults of a document.
func serviceAt(endpoints ...string) dynamic.Service {
	return dynamic.Service{
		Protocol: "link", Endpoints: endpoints, Algorithm: "round_robin", Links: 2,
		Timeout: dynamic.Duration(patience),
	}
}

// apply puts the table in force and waits until every endpoint named in it is up.
func (r *testRouter) apply(services map[string]dynamic.Service) {
	r.t.Helper()
	if err := r.Apply(services); err != nil {
		r.t.Fatal(err)
	}
	for name, s := range services {
		for _, address := range s.Endpoints {
			r.eventually(fmt.Sprintf("%s has its links to %s", name, address), func() bool {
				return r.metric("goshield_backend_links", "service", name, "endpoint", address) == float64(s.Links) &&
					r.metric("goshield_backend_up", "service", name, "endpoint", address) == 1
			})
		}
	}
}

func (r *testRouter) eventually(what string, ok func() bool) {
	r.t.Helper()
	eventually(r.t, what, ok)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("did not come about: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// metric is the sum of the series with these labels, given as name, value, …
func (r *testRouter) metric(name string, labels ...string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			if hasLabels(m, labels) {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func hasLabels(m *dto.Metric, labels []string) bool {
	for i := 0; i < len(labels); i += 2 {
		found := false
		for _, l := range m.Label {
			found = found || (l.GetName() == labels[i] && l.GetValue() == labels[i+1])
		}
		if !found {
			return false
		}
	}
	return true
}

// replies is a Waiter that keeps every reply, and reports a second one to the test.
type replies struct {
	t testing.TB

	mu  sync.Mutex
	got map[uint32]chan reply
}

type reply struct {
	body string
	err  *wire.Error
}

func newReplies(t testing.TB) *replies { return &replies{t: t, got: make(map[uint32]chan reply)} }

func (w *replies) channel(tag uint32) chan reply {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.got[tag] == nil {
		w.got[tag] = make(chan reply, 1)
	}
	return w.got[tag]
}

// Done implements Waiter.
func (w *replies) Done(tag uint32, r Reply) {
	select {
	case w.channel(tag) <- reply{string(r.Body), r.Err}:
	default:
		w.t.Errorf("Done was called twice for tag %d: %q, %v", tag, r.Body, r.Err)
	}
}

func (w *replies) wait(tag uint32) reply {
	w.t.Helper()
	select {
	case r := <-w.channel(tag):
		return r
	case <-time.After(patience):
		w.t.Fatalf("no reply for tag %d", tag)
		panic("unreachable")
	}
}

// none reports a reply that came all the same.
func (w *replies) none(tag uint32) {
	w.t.Helper()
	select {
	case r := <-w.channel(tag):
		w.t.Errorf("tag %d: got %q, %v; want no reply", tag, r.body, r.err)
	default:
	}
}

// ask sends one request and waits.
func (r *testRouter) ask(service, body string) reply {
	r.t.Helper()
	w := newReplies(r.t)
	r.Send(Request{Service: service, Body: []byte(body), JSON: true}, w, 1)
	return w.wait(1)
}

// wantCode checks a reply's error code.
func wantCode(t testing.TB, name string, got reply, want wire.Code) {
	t.Helper()
	if got.err == nil || got.err.Code != want {
		t.Errorf("%s: got %.100q, %v; want %s", name, got.body, got.err, want)
	}
}

// wantBody checks a reply's body.
func wantBody(t testing.TB, name string, got reply, want string) {
	t.Helper()
	if got.err != nil || got.body != want {
		t.Errorf("%s: got %.100q, %v; want %.100q", name, got.body, got.err, want)
	}
}

// serve runs a backend made with the SDK, on a port of its own, until the test ends.
func serve(t testing.TB, srv *sdk.Server) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, srv, ln)
	return ln.Addr().String()
}

func serveOn(t testing.TB, srv *sdk.Server, ln net.Listener) {
	srv.Secrets, srv.Log = []string{shared}, slog.New(slog.DiscardHandler)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-ended; err != sdk.ErrServerClosed {
			t.Errorf("the backend's Serve: %v", err)
		}
	})
}

func echo(_ context.Context, req sdk.Request) (sdk.Response, error) {
	return sdk.Response{Body: req.Body}, nil
}

// named answers with a name, in JSON.
func named(name string) sdk.Handler {
	return func(context.Context, sdk.Request) (sdk.Response, error) {
		return sdk.Response{Body: fmt.Appendf(nil, "%q", name)}, nil
	}
}

// hanging does not answer until its context ends; began hears of each request.
func hanging(began chan<- struct{}) sdk.Handler {
	return func(ctx context.Context, _ sdk.Request) (sdk.Response, error) {
		began <- struct{}{}
		<-ctx.Done()
		return sdk.Response{}, ctx.Err()
	}
}

// hostile runs a backend whose end of each link is played by play, after an honest
// handshake; the link closes when play returns.
func hostile(t testing.TB, limits link.Hello, play func(nc net.Conn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.Map
	var serving sync.WaitGroup
	limits.MaxFrame = 1 << 20
	if limits.MaxStreams == 0 {
		limits.MaxStreams = 4096
	}
	serving.Go(func() { // ends with the listener
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			open.Store(nc, nil)
			serving.Go(func() { // ends with the connection
				defer open.Delete(nc)
				defer nc.Close()
				if h, payload, err := nextFrame(nc); err != nil || h.Type != link.TypeHello || !bytes.Contains(payload, []byte(shared)) {
					return
				}
				if _, err := nc.Write(link.AppendHello(nil, &limits)); err == nil {
					play(nc)
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		open.Range(func(nc, _ any) bool { nc.(net.Conn).Close(); return true })
		serving.Wait()
	})
	return ln.Addr().String()
}

// nextFrame reads one frame.
func nextFrame(nc net.Conn) (link.Header, []byte, error) {
	b := make([]byte, link.HeaderSize)
	if _, err := readFull(nc, b); err != nil {
		return link.Header{}, nil, err
	}
	h, err := link.ParseHeader(b, link.MaxFrame)
	if err != nil {
		return h, nil, err
	}
	payload := make([]byte, h.Length)
	_, err = readFull(nc, payload)
	return h, payload, err
}

func readFull(nc net.Conn, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := nc.Read(b[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// drop reads and answers nothing.
func drop(nc net.Conn) {
	for {
		if _, _, err := nextFrame(nc); err != nil {
			return
		}
	}
}

// onRequest calls f for each request of a link.
func onRequest(f func(nc net.Conn, stream uint64, req link.Request) bool) func(net.Conn) {
	return func(nc net.Conn) {
		for {
			h, payload, err := nextFrame(nc)
			if err != nil {
				return
			}
			if h.Type != link.TypeRequest {
				continue
			}
			req, err := link.Frame{Header: h, Payload: payload}.Request()
			if err != nil || !f(nc, h.Stream, req) {
				return
			}
		}
	}
}

// contains reports whether an error's text has all of the words.
func contains(err error, words ...string) bool {
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			return false
		}
	}
	return true
}
