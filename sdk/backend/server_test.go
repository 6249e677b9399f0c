package backend_test

// A server as a gateway sees it: requests, answers, cancellation, the end.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/internal/leaktest"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const secret = "a secret of this test"

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func wait[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}

// start serves srv on a port of its own until the test ends.
func start(t testing.TB, srv *backend.Server) (addr string) {
	t.Helper()
	if srv.Secrets == nil && srv.Authorize == nil {
		srv.Secrets = []string{secret}
	}
	if srv.Log == nil {
		srv.Log = slog.New(slog.DiscardHandler)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := wait(t, "the end of Serve", ended); err != backend.ErrServerClosed {
			t.Errorf("Serve: got %v, want ErrServerClosed", err)
		}
	})
	return ln.Addr().String()
}

// answer is what came back for one request.
type answer struct {
	body string
	err  *wire.Error
}

// gateway plays a gateway's end of a link.
type gateway struct {
	t       testing.TB
	conn    *link.Conn
	streams *link.Streams[chan answer]
	pushes  chan link.Push // what came; the test answers
	pushIDs chan uint64
	goaway  chan struct{}
	ended   chan error
}

func dial(t testing.TB, addr, node string) *gateway {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := link.Open(context.Background(), nc, link.Config{Node: node, Secret: secret, HandshakeTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{
		t: t, conn: conn,
		streams: link.NewStreams[chan answer](link.Gateway, link.MaxStreams),
		pushes:  make(chan link.Push, 100),
		pushIDs: make(chan uint64, 100),
		goaway:  make(chan struct{}),
		ended:   make(chan error, 1),
	}
	go func() { g.ended <- conn.Serve(g.handle) }()
	t.Cleanup(conn.Close)
	return g
}

func (g *gateway) handle(f link.Frame) error {
	switch f.Type {
	case link.TypeResponse, link.TypeError:
		ch, ok := g.streams.Take(f.Stream)
		if !ok {
			g.t.Errorf("%v of stream %d, which nobody waits for", f.Type, f.Stream)
			return nil
		}
		if f.Type == link.TypeResponse {
			ch <- answer{body: string(f.Payload)}
			return nil
		}
		e, err := f.Error()
		ch <- answer{err: e}
		return err
	case link.TypePush:
		p, err := f.Push()
		p.Body = bytes.Clone(p.Body)
		g.pushes <- p
		g.pushIDs <- f.Stream
		return err
	case link.TypeGoaway:
		close(g.goaway)
	}
	return nil
}

// request sends a request; the answer comes on the channel.
func (g *gateway) request(req link.Request) (stream uint64, ch chan answer) {
	g.t.Helper()
	ch = make(chan answer, 1)
	stream, err := g.streams.Open(ch)
	if err != nil {
		g.t.Fatal(err)
	}
	if req.Service == "" {
		req.Service = "test"
	}
	if err := g.conn.Request(stream, &req); err != nil {
		g.t.Fatal(err)
	}
	return stream, ch
}

// ask sends a request and waits for the answer.
func (g *gateway) ask(req link.Request) answer {
	g.t.Helper()
	_, ch := g.request(req)
	return wait(g.t, "the answer", ch)
}

func TestEveryAnswerIsItsRequests(t *testing.T) {
	addr := start(t, &backend.Server{Handler: func(_ context.Context, req backend.Request) (backend.Response, error) {
		return backend.Response{Body: fmt.Appendf(nil, "%x %s %v %s %s", req.ClientID[:2], req.Service, req.JSON, req.Gateway, req.Body)}, nil
	}})
	var wg sync.WaitGroup
	for n := range 2 {
		g := dial(t, addr, fmt.Sprintf("gw-%d", n))
		for m := range 20 {
			wg.Go(func() {
				for i := range 100 {
					id := wire.ClientID{byte(m), byte(i)}
					body := fmt.Sprint(n, m, i)
					got := g.ask(link.Request{ClientID: id, Service: "svc", JSON: i%2 == 0, Body: []byte(body)})
					want := fmt.Sprintf("%x svc %v gw-%d %s", id[:2], i%2 == 0, n, body)
					if got.body != want || got.err != nil {
						t.Errorf("got %q, %v; want %q", got.body, got.err, want)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestFailures(t *testing.T) {
	var logged lockedBuffer
	addr := start(t, &backend.Server{
		Services: []string{"plain", "coded", "foreign", "wrapped", "late", "panics", "large", "fine"},
		MaxFrame: 2048,
		Log:      slog.New(slog.NewTextHandler(&logged, nil)),
		Handler: func(ctx context.Context, req backend.Request) (backend.Response, error) {
			switch req.Service {
			case "plain":
				return backend.Response{}, errors.New("plain words")
			case "coded":
				return backend.Response{}, wire.Errorf(wire.CodeBackendUnavailable, "try later")
			case "foreign":
				return backend.Response{}, wire.Errorf(wire.CodeBadToken, "not for a backend to say")
			case "wrapped":
				return backend.Response{}, fmt.Errorf("around: %w", wire.Errorf(wire.CodeNoSuchService, "inside"))
			case "late":
				<-ctx.Done()
				return backend.Response{}, ctx.Err()
			case "panics":
				panic("out of order")
			case "large":
				return backend.Response{Body: make([]byte, 2049)}, nil
			}
			return backend.Response{Body: []byte("ok")}, nil
		},
	})
	g := dial(t, addr, "gw")
	for _, c := range []struct {
		service string
		code    wire.Code
		message string // is contained
	}{
		{"plain", wire.CodeBackendError, "plain words"},
		{"coded", wire.CodeBackendUnavailable, "try later"},
		{"foreign", wire.CodeBackendError, "not for a backend to say"},
		{"wrapped", wire.CodeNoSuchService, "inside"},
		{"late", wire.CodeBackendTimeout, ""},
		{"panics", wire.CodeBackendError, "the backend failed"},
		{"large", wire.CodeBackendError, "2049 bytes"},
		{"elsewhere", wire.CodeNoSuchService, "elsewhere"},
	} {
		got := g.ask(link.Request{Service: c.service, Deadline: 20 * time.Millisecond})
		if got.err == nil || got.err.Code != c.code || !strings.Contains(got.err.Message, c.message) {
			t.Errorf("%s: got %q, %v; want %s with %q", c.service, got.body, got.err, c.code, c.message)
		}
	}
	if got := g.ask(link.Request{Service: "fine"}); got.body != "ok" {
		t.Errorf("after all that: got %q, %v; want ok", got.body, got.err)
	}
	if s := logged.String(); !strings.Contains(s, "out of order") || !strings.Contains(s, "server_test.go") {
		t.Errorf("the panic and its stack were not logged: %s", s)
	}
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// RELIABILITY row 12, the far end: a request nobody waits for is cancelled, whichever
// way that comes about.
func TestCancellation(t *testing.T) {
	for _, c := range []struct {
		name     string
		deadline time.Duration
		act      func(srv *backend.Server, g *gateway, stream uint64)
		want     error
	}{
		{"CANCEL", 0, func(_ *backend.Server, g *gateway, stream uint64) {
			g.streams.GiveUp(stream)
			if err := g.conn.Cancel(stream); err != nil {
				g.t.Error(err)
			}
		}, context.Canceled},
		{"link lost", 0, func(_ *backend.Server, g *gateway, _ uint64) { g.conn.Close() }, context.Canceled},
		{"server closed", 0, func(srv *backend.Server, g *gateway, stream uint64) { srv.Close() }, context.Canceled},
		{"deadline", 30 * time.Millisecond, func(_ *backend.Server, g *gateway, stream uint64) {}, context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			began, ended := make(chan time.Time, 1), make(chan error, 1)
			srv := &backend.Server{Handler: func(ctx context.Context, _ backend.Request) (backend.Response, error) {
				deadline, _ := ctx.Deadline()
				began <- deadline
				derived, cancel := context.WithCancel(ctx)
				defer cancel()
				<-derived.Done()
				ended <- ctx.Err()
				return backend.Response{}, ctx.Err()
			}}
			g := dial(t, start(t, srv), "gw")
			stream, _ := g.request(link.Request{Deadline: c.deadline})
			deadline := wait(t, "the handler", began)
			if deadline.IsZero() != (c.deadline == 0) || time.Until(deadline) > c.deadline {
				t.Errorf("its deadline is %v from now, want %v at most", time.Until(deadline), c.deadline)
			}
			c.act(srv, g, stream)
			if err := wait(t, "the end of its context", ended); err != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// A context outlives its handler, as contexts do, and has then ended.
func TestContextEndsWithItsHandler(t *testing.T) {
	contexts := make(chan context.Context, 1)
	addr := start(t, &backend.Server{Handler: func(ctx context.Context, _ backend.Request) (backend.Response, error) {
		contexts <- ctx
		if ctx.Err() != nil || ctx.Value("nothing") != nil {
			return backend.Response{}, errors.New("the context is not as new")
		}
		return backend.Response{Body: []byte("ok")}, nil
	}})
	g := dial(t, addr, "gw")
	if got := g.ask(link.Request{}); got.body != "ok" {
		t.Fatal(got.err)
	}
	ctx := wait(t, "the context", contexts)
	wait(t, "its end", ctx.Done())
}

// At most MaxStreams handlers run for one link, cancelled ones that go on included.
func TestConcurrencyIsBounded(t *testing.T) {
	var running, most atomic.Int32
	began, release := make(chan struct{}, 10), make(chan struct{})
	addr := start(t, &backend.Server{MaxStreams: 3, Handler: func(context.Context, backend.Request) (backend.Response, error) {
		began <- struct{}{}
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		<-release
		running.Add(-1)
		return backend.Response{Body: []byte("ok")}, nil
	}})
	g := dial(t, addr, "gw")
	if got := g.conn.Limits().MaxStreams; got != 3 {
		t.Fatalf("MaxStreams: got %d, want 3", got)
	}
	var first []chan answer
	for i := range 3 {
		stream, ch := g.request(link.Request{})
		wait(t, "the call", began) // one that is cancelled before it begins does not count
		if i == 0 {
			g.streams.GiveUp(stream)
			if err := g.conn.Cancel(stream); err != nil {
				t.Fatal(err)
			}
		} else {
			first = append(first, ch)
		}
	}
	for range 5 {
		if got := g.ask(link.Request{}); got.err == nil || got.err.Code != wire.CodeBackendUnavailable {
			t.Errorf("over the limit: got %q, %v; want backend_unavailable", got.body, got.err)
		}
	}
	close(release)
	for _, ch := range first {
		if got := wait(t, "the answer", ch); got.body != "ok" {
			t.Errorf("within the limit: got %v", got.err)
		}
	}
	if most.Load() > 3 {
		t.Errorf("%d ran at once, want 3 at most", most.Load())
	}
}

// Two requests of one stream id are a fault of the gateway's.
func TestStreamInFlightTwice(t *testing.T) {
	addr := start(t, &backend.Server{Handler: func(ctx context.Context, _ backend.Request) (backend.Response, error) {
		<-ctx.Done()
		return backend.Response{}, ctx.Err()
	}})
	g := dial(t, addr, "gw")
	for range 2 {
		if err := g.conn.Request(2, &link.Request{Service: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := wait(t, "the end of the link", g.ended); !errors.Is(err, &wire.Error{Code: wire.CodeBadFrame}) {
		t.Errorf("got %v, want bad_frame", err)
	}
}

func TestShutdownFinishesWhatIsInFlight(t *testing.T) {
	began, release := make(chan struct{}, 2), make(chan struct{})
	srv := &backend.Server{Handler: func(ctx context.Context, req backend.Request) (backend.Response, error) {
		began <- struct{}{}
		<-release
		return backend.Response{Body: []byte("ok")}, ctx.Err()
	}}
	addr := start(t, srv)
	g := dial(t, addr, "gw")
	_, first := g.request(link.Request{})
	wait(t, "the handler", began)
	ended := make(chan error, 1)
	go func() { ended <- srv.Shutdown(context.Background()) }()
	wait(t, "GOAWAY", g.goaway)
	_, crossing := g.request(link.Request{}) // sent before GOAWAY was read, as far as the server knows
	wait(t, "the handler", began)
	if nc, err := net.Dial("tcp", addr); err == nil { // the port may be another's by now
		if conn, err := link.Open(context.Background(), nc, link.Config{Secret: secret}); err == nil {
			conn.Close()
			t.Error("the server accepts links while it shuts down")
		}
	}
	close(release)
	for name, ch := range map[string]chan answer{"in flight": first, "crossing": crossing} {
		if got := wait(t, name, ch); got.body != "ok" {
			t.Errorf("%s: got %v, want ok", name, got.err)
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("Shutdown ended before the gateway closed: %v", err)
	default:
	}
	g.conn.Finish()
	if err := wait(t, "the end of Shutdown", ended); err != nil {
		t.Errorf("Shutdown: got %v, want nil", err)
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Errorf("a second Shutdown: %v", err)
	}
}

func TestShutdownIsCutShort(t *testing.T) {
	began := make(chan struct{}, 1)
	srv := &backend.Server{Handler: func(ctx context.Context, _ backend.Request) (backend.Response, error) {
		began <- struct{}{}
		<-ctx.Done()
		return backend.Response{}, ctx.Err()
	}}
	g := dial(t, start(t, srv), "gw")
	g.request(link.Request{})
	wait(t, "the handler", began)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := srv.Shutdown(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 links with 1 requests") {
		t.Errorf("got %v, want one link and one request cut short", err)
	}
	wait(t, "the end of the link", g.ended)
}

// A server nobody could be kept away from does not start.
func TestServerIsNotStartedWithout(t *testing.T) {
	echo := func(context.Context, backend.Request) (backend.Response, error) { return backend.Response{}, nil }
	for _, c := range []struct {
		name string
		srv  *backend.Server
		want string
	}{
		{"handler", &backend.Server{Secrets: []string{secret}}, "Handler"},
		{"secret", &backend.Server{Handler: echo}, "Secrets"},
		{"empty secret", &backend.Server{Handler: echo, Secrets: []string{""}}, "Secrets"},
	} {
		if err := c.srv.ListenAndServe("127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error about %s", c.name, err, c.want)
		}
		if err := c.srv.Shutdown(context.Background()); err != nil {
			t.Errorf("%s: Shutdown: %v", c.name, err)
		}
	}
	srv := &backend.Server{Handler: echo, Secrets: []string{secret}}
	srv.Close()
	if err := srv.ListenAndServe("127.0.0.1:0"); err != backend.ErrServerClosed {
		t.Errorf("a closed one: got %v, want ErrServerClosed", err)
	}
}

// Strangers are refused, and as many connections as there may be links are the most
// they can hold.
func TestStrangers(t *testing.T) {
	addr := start(t, &backend.Server{MaxLinks: 2, Handler: func(context.Context, backend.Request) (backend.Response, error) {
		return backend.Response{}, nil
	}})
	open := func(shown string) error {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := link.Open(context.Background(), nc, link.Config{Secret: shown, HandshakeTimeout: patience})
		if err == nil {
			t.Cleanup(conn.Close)
		}
		return err
	}
	if err := open("wrong"); !errors.Is(err, &wire.Error{Code: link.CodeBadSecret}) {
		t.Errorf("a wrong secret: got %v, want bad_secret", err)
	}
	first, second := open(secret), open(secret)
	deadline := time.Now().Add(patience) // the stranger's place may be taken for a moment
	for second != nil && time.Now().Before(deadline) {
		second = open(secret)
	}
	if first != nil || second != nil {
		t.Fatalf("the first two: %v, %v", first, second)
	}
	if err := open(secret); err == nil {
		t.Error("a third link of two was taken")
	}
}
