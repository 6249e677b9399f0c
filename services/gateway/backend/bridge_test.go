package backend

// Services that speak HTTP or gRPC: the same answers and errors as over links.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/backend/backendpb"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/bridge"
)

// foreign is a service of a protocol that needs a bridge. Its services are
// commands:
//
//	echo    answers with the body
//	hang    answers when the call's context has ended
//	fail    fails in the protocol's own way
//	big     answers 65536 bytes
//	none    answers nothing
//	twelve  answers "ok" to the request that a dozen are at work with
type foreign struct {
	cfg      dynamic.Service // as a route to it has it, with the endpoint
	failure  string          // how the message of "fail" begins
	stop     func()
	setWell  func(bool)
	began    chan struct{} // a call of "hang" is here
	ended    chan struct{} // and its context has ended
	together *sync.WaitGroup
	probes   atomic.Int64           // of its health, by HTTP
	seen     atomic.Pointer[string] // client_id, request id and secret of the last call
}

func (f *foreign) command(ctx context.Context, name string, body []byte) (answer []byte, failed bool) {
	switch name {
	case "echo":
		return body, false
	case "hang":
		f.began <- struct{}{}
		<-ctx.Done()
		f.ended <- struct{}{}
	case "big":
		return bytes.Repeat([]byte("1"), wire.MaxPayload+1), false
	case "none":
		return nil, false
	case "twelve":
		f.together.Done()
		f.together.Wait()
		return []byte(`"ok"`), false
	}
	return nil, true
}

func newForeign(protocol, version string) *foreign {
	f := &foreign{began: make(chan struct{}, 100), ended: make(chan struct{}, 100), together: new(sync.WaitGroup)}
	f.together.Add(12)
	f.cfg = dynamic.Service{
		Protocol: protocol, HTTPVersion: version, Algorithm: "round_robin", Links: 1, Timeout: dynamic.Duration(patience),
	}
	return f
}

func httpService(t testing.TB, version string) *foreign {
	f := newForeign("http", version)
	f.cfg.HealthPath = "/healthz"
	f.failure = "the backend answered HTTP status 418"
	var sick atomic.Bool
	f.setWell = func(well bool) { sick.Store(!well) }
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			f.probes.Add(1)
			if sick.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return
		}
		if want := map[string]int{"": 1, "1.1": 1, "2": 2}[version]; r.ProtoMajor != want || r.Method != http.MethodPost {
			t.Errorf("got %s in HTTP/%d, want POST in %d", r.Method, r.ProtoMajor, want)
		}
		seen := strings.Join([]string{r.Header.Get("Goshield-Client-Id"), r.Header.Get("Goshield-Request-Id"), r.Header.Get("Authorization"), r.Header.Get("Content-Type")}, " ")
		f.seen.Store(&seen)
		body, _ := io.ReadAll(r.Body)
		answer, failed := f.command(r.Context(), strings.TrimPrefix(r.URL.Path, "/"), body)
		if failed {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = w.Write(answer)
	}))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	f.stop = sync.OnceFunc(func() { srv.CloseClientConnections(); srv.Close() })
	t.Cleanup(f.stop)
	f.cfg.Endpoints = []string{srv.Listener.Addr().String()}
	return f
}

// grpcService also pushes: what is put into push goes out on the gateway's stream.
type grpcService struct {
	backendpb.UnimplementedBackendServer
	*foreign
	push    chan *backendpb.PushRequest
	results chan *backendpb.PushResult
	code    codes.Code // of what fails; set before the first call
}

func newGRPCService(t testing.TB) *grpcService {
	f := newForeign("grpc", "")
	f.failure = "FailedPrecondition: no"
	g := &grpcService{foreign: f, push: make(chan *backendpb.PushRequest), results: make(chan *backendpb.PushResult, 10), code: codes.FailedPrecondition}
	health := grpchealth.NewServer()
	f.setWell = func(well bool) {
		s := healthpb.HealthCheckResponse_SERVING
		if !well {
			s = healthpb.HealthCheckResponse_NOT_SERVING
		}
		health.SetServingStatus("", s)
	}
	srv := grpc.NewServer()
	backendpb.RegisterBackendServer(srv, g)
	healthpb.RegisterHealthServer(srv, health)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(ln) }()
	f.stop = sync.OnceFunc(func() { srv.Stop(); <-served })
	t.Cleanup(f.stop)
	f.cfg.Endpoints = []string{ln.Addr().String()}
	return g
}

func (g *grpcService) Handle(ctx context.Context, r *backendpb.HandleRequest) (*backendpb.HandleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	encoding := map[backendpb.Encoding]string{backendpb.Encoding_ENCODING_JSON: "application/json", backendpb.Encoding_ENCODING_BYTES: "application/octet-stream"}[r.Encoding]
	seen := strings.Join([]string{fmt.Sprintf("%x", r.ClientId), r.RequestId, strings.Join(md.Get("authorization"), ","), encoding}, " ")
	g.seen.Store(&seen)
	answer, failed := g.command(ctx, r.Service, r.Body)
	if failed {
		return nil, grpcstatus.Error(g.code, "no")
	}
	return &backendpb.HandleResponse{Body: answer}, nil
}

func (g *grpcService) Push(stream grpc.BidiStreamingServer[backendpb.PushResult, backendpb.PushRequest]) error {
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			g.results <- r
		}
	}()
	for {
		select {
		case p := <-g.push:
			if err := stream.Send(p); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

// eachForeign runs f with a service of each protocol.
func eachForeign(t *testing.T, f func(t *testing.T, s *foreign)) {
	t.Run("HTTP 1.1", func(t *testing.T) { t.Parallel(); f(t, httpService(t, "")) })
	t.Run("HTTP 2", func(t *testing.T) { t.Parallel(); f(t, httpService(t, "2")) })
	t.Run("gRPC", func(t *testing.T) { t.Parallel(); f(t, newGRPCService(t).foreign) })
}

// routes names the commands of a foreign service.
func (f *foreign) routes(timeout time.Duration) map[string]dynamic.Service {
	table := make(map[string]dynamic.Service)
	for _, name := range []string{"echo", "hang", "fail", "big", "none", "twelve"} {
		cfg := f.cfg
		if timeout > 0 {
			cfg.Timeout = dynamic.Duration(timeout)
		}
		table[name] = cfg
	}
	return table
}

func TestBridgeAnswers(t *testing.T) {
	eachForeign(t, func(t *testing.T, f *foreign) {
		r := newTestRouter(t, nil)
		r.apply(f.routes(0))
		wantBody(t, "echo", r.ask("echo", `{"a":[1]}`), `{"a":[1]}`)
		var id, request string
		seen := *f.seen.Load()
		if n, _ := fmt.Sscan(seen, &id, &request); n != 2 || id != strings.Repeat("00", 32) || !strings.HasPrefix(request, "gw-test/") ||
			!strings.HasSuffix(seen, " Bearer "+shared+" application/json") {
			t.Errorf("the call showed %q", seen)
		}
		body := `"` + strings.Repeat("x", 60000) + `"`
		wantBody(t, "a long body", r.ask("echo", body), body)

		w := newReplies(t)
		r.Send(Request{Service: "echo", Body: []byte("\x00\xff")}, w, 1)
		wantBody(t, "bytes", w.wait(1), "\x00\xff")
		if !strings.HasSuffix(*f.seen.Load(), "application/octet-stream") {
			t.Errorf("the call showed %q, want bytes", *f.seen.Load())
		}
		got := r.ask("fail", `1`)
		wantCode(t, "fail", got, wire.CodeBackendError)
		if got.err != nil && !strings.HasPrefix(got.err.Message, f.failure) {
			t.Errorf("fail: got %q, want %q", got.err.Message, f.failure)
		}
		wantCode(t, "an answer over any limit", r.ask("big", `1`), wire.CodeBackendError)
		for i := range uint32(12) { // all at once, or none would be answered
			r.Send(Request{Service: "twelve", Body: []byte(`1`), JSON: true}, w, 100+i)
		}
		for i := range uint32(12) {
			wantBody(t, "one of twelve", w.wait(100+i), `"ok"`)
		}
	})
}

func TestBridgeEmptyAnswer(t *testing.T) {
	f := httpService(t, "1.1")
	r := newTestRouter(t, nil)
	r.apply(f.routes(0))
	wantBody(t, "nothing, to a JSON device", r.ask("none", `1`), "null")
	w := newReplies(t)
	r.Send(Request{Service: "none", Body: []byte(`1`)}, w, 1)
	wantBody(t, "nothing, to another", w.wait(1), "")
}

// The deadline is the service's, and the call is cancelled with it, as it is when
// nobody waits any more.
func TestBridgeTimeoutAndCancel(t *testing.T) {
	eachForeign(t, func(t *testing.T, f *foreign) {
		r := newTestRouter(t, nil)
		r.apply(f.routes(3 * time.Second)) // the call is there by then
		wantCode(t, "hang", r.ask("hang", `1`), wire.CodeBackendTimeout)
		wantSignal(t, "the call that times out", f.began)
		wantSignal(t, "the end of the call that timed out", f.ended)
		r.apply(f.routes(0))
		w := newReplies(t)
		h := r.Send(Request{Service: "hang", Body: []byte(`1`), JSON: true}, w, 1)
		wantSignal(t, "the call that is to be cancelled", f.began)
		if !h.Cancel() {
			t.Fatal("Cancel: false, want true")
		}
		wantSignal(t, "the end of the call that was cancelled", f.ended)
		w.none(1)
	})
}

// A service has so many calls under way and no more; when it has, it is busy and not unwell.
func TestBridgeCallsAreBounded(t *testing.T) {
	eachForeign(t, func(t *testing.T, f *foreign) {
		r := newTestRouter(t, nil)
		r.apply(map[string]dynamic.Service{"hang": f.cfg})
		w := newReplies(t)
		var handles []Handle
		for tag := range uint32(bridge.MaxCalls) {
			handles = append(handles, r.Send(Request{Service: "hang", Body: []byte(`1`), JSON: true}, w, tag))
			<-f.began
		}
		got := r.ask("hang", `1`)
		if wantCode(t, "one more", got, wire.CodeBackendUnavailable); got.err != nil && !strings.Contains(got.err.Message, "busy") {
			t.Errorf("one more: got %v, want busy", got.err)
		}
		if n := r.metric("goshield_backend_inflight"); n != bridge.MaxCalls {
			t.Errorf("in flight: got %v, want %d", n, bridge.MaxCalls)
		}
		if f.cfg.Protocol == "http" {
			seen := f.probes.Load()
			r.eventually("more probes than may fail", func() bool { return f.probes.Load() > seen+3 })
			if p := r.allPools()[0]; len(p.links()) != 1 || !p.connected() {
				t.Errorf("%d links, connected %v; want the one that was there", len(p.links()), p.connected())
			}
		}
		for _, h := range handles {
			h.Cancel()
		}
		for range handles {
			wantSignal(t, "the end of a call", f.ended)
		}
	})
}

func wantSignal(t testing.TB, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
	}
}

// A service whose health check fails is left, and found again. RELIABILITY row 26.
func TestBridgeHealth(t *testing.T) {
	eachForeign(t, func(t *testing.T, f *foreign) {
		r := newTestRouter(t, nil)
		up := func(want float64) func() bool {
			return func() bool { return r.metric("goshield_backend_up", "service", "echo") == want }
		}
		r.apply(map[string]dynamic.Service{"echo": f.cfg})
		f.setWell(false)
		r.eventually("the service is left", up(0))
		wantCode(t, "while it is not well", r.ask("echo", `1`), wire.CodeBackendUnavailable)
		f.setWell(true)
		r.eventually("the service is found again", up(1))
		wantBody(t, "afterwards", r.ask("echo", `1`), `1`)
		f.stop()
		wantCode(t, "a service that died", r.ask("echo", `1`), wire.CodeBackendUnavailable)
		r.eventually("the dead service is left", up(0))
	})
}

// A route may change what its endpoints speak.
func TestBridgeProtocolChanges(t *testing.T) {
	f := httpService(t, "")
	r := newTestRouter(t, nil)
	r.apply(f.routes(0))
	wantBody(t, "in HTTP 1.1", r.ask("none", `1`), "null")
	f2 := httpService(t, "2")
	two := f2.routes(0)
	r.apply(two)
	wantBody(t, "in HTTP 2", r.ask("none", `1`), "null")
}

func TestBridgePushes(t *testing.T) {
	g := newGRPCService(t)
	pushed := make(chan string, 10)
	r := newTestRouter(t, func(cfg *Config, _ *timing) {
		cfg.OnPush = func(id wire.ClientID, service string, body []byte, done func(link.PushResult)) {
			pushed <- fmt.Sprintf("%x %s %s", id[:2], service, body)
			done(map[string]link.PushResult{"full": link.PushQueueFull, "gone": link.PushNotConnected, "late": link.PushTimedOut}[service])
		}
	})
	r.apply(map[string]dynamic.Service{"echo": g.cfg})
	id := make([]byte, 32)
	id[0], id[1] = 0xab, 0xcd
	for i, tt := range []struct {
		service string
		id      []byte
		want    backendpb.Outcome
		arrives bool
	}{
		{"alerts", id, backendpb.Outcome_OUTCOME_ACKNOWLEDGED, true},
		{"full", id, backendpb.Outcome_OUTCOME_QUEUE_FULL, true},
		{"gone", id, backendpb.Outcome_OUTCOME_NOT_CONNECTED, true},
		{"late", id, backendpb.Outcome_OUTCOME_TIMED_OUT, true},
		{"alerts", id[:31], backendpb.Outcome_OUTCOME_NOT_CONNECTED, false},
		{"", id, backendpb.Outcome_OUTCOME_NOT_CONNECTED, false},
	} {
		select {
		case g.push <- &backendpb.PushRequest{Id: uint64(i), ClientId: tt.id, Service: tt.service, Body: []byte(`{"n":1}`)}:
		case <-time.After(patience):
			t.Fatal("no gateway took the push")
		}
		select {
		case got := <-g.results:
			if got.Id != uint64(i) || got.Outcome != tt.want {
				t.Errorf("push of %q: got %d %s, want %d %s", tt.service, got.Id, got.Outcome, i, tt.want)
			}
		case <-time.After(patience):
			t.Fatal("no result came")
		}
		if !tt.arrives {
			continue
		}
		if got, want := <-pushed, fmt.Sprintf("abcd %s {\"n\":1}", tt.service); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// statusService answers every request with that status, after counting it.
func statusService(t *testing.T, status int, asked *atomic.Int64) (addr string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `1`)
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// A status that tells of the service, and not of the request, is a failure of the endpoint, though an answer to the device.
func TestBridgeStatusEjects(t *testing.T) {
	for status, ejected := range map[int]bool{
		500: true, 502: true, 503: true, 504: true, 507: true,
		302: false, 404: false, 418: false, 429: false, 501: false, 505: false,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			var bad, good atomic.Int64
			cfg := newForeign("http", "").cfg
			cfg.Endpoints = []string{statusService(t, status, &bad), statusService(t, http.StatusOK, &good)}
			r := newTestRouter(t, nil)
			r.apply(map[string]dynamic.Service{"svc": cfg})
			begun := time.Now()
			for range 2 * (r.timing.ejectAfter + 3) {
				if got := r.ask("svc", `1`); got.err != nil {
					wantCode(t, "an answer", got, wire.CodeBackendError)
					if want := fmt.Sprintf("the backend answered HTTP status %d", status); got.err.Message != want {
						t.Errorf("the device is told %q, want %q", got.err.Message, want)
					}
				}
			}
			n, asked := r.metric("goshield_backend_ejections_total", "endpoint", cfg.Endpoints[0]), bad.Load()
			switch most := int64(r.timing.ejectAfter); {
			case !ejected && (n != 0 || asked != most+3):
				t.Errorf("%v ejections, and asked %d times; want none, and %d", n, asked, most+3)
			case ejected && (n == 0 || asked < most):
				t.Errorf("%v ejections, and asked %d times; want one, and %d", n, asked, most)
			case ejected && asked > most && time.Since(begun) < 4*time.Second: // an ejection lasts five
				t.Errorf("asked %d times, want %d and then no more", asked, most)
			}
		})
	}
}

// A service that fails at once is not the fastest.
func TestBridgeFailuresAreNotFast(t *testing.T) {
	var bad atomic.Int64
	well := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, `1`)
	}))
	t.Cleanup(well.Close)
	cfg := newForeign("http", "").cfg
	cfg.Algorithm = "least_response_time"
	cfg.Endpoints = []string{statusService(t, http.StatusServiceUnavailable, &bad), well.Listener.Addr().String()}
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": cfg})
	const requests = 60
	for range requests {
		r.ask("svc", `1`)
	}
	if n := bad.Load(); n == 0 || n > requests/6 {
		t.Errorf("%d of %d requests went to the endpoint that answers 503, want few", n, requests)
	}
}

// The statuses of gRPC count as those of HTTP that they stand for.
func TestBridgeGRPCStatusEjects(t *testing.T) {
	for code, ejected := range map[codes.Code]float64{
		codes.Unknown: 1, codes.Internal: 1, codes.DataLoss: 1, codes.Unavailable: 1,
		codes.FailedPrecondition: 0, codes.InvalidArgument: 0, codes.Unimplemented: 0, codes.ResourceExhausted: 0, codes.NotFound: 0,
	} {
		t.Run(code.String(), func(t *testing.T) {
			g := newGRPCService(t)
			g.code = code
			r := newTestRouter(t, nil)
			r.apply(map[string]dynamic.Service{"fail": g.cfg})
			for range r.timing.ejectAfter {
				if r.ask("fail", `1`).err == nil {
					t.Fatal("the call succeeded")
				}
			}
			if n := r.metric("goshield_backend_ejections_total"); n != ejected {
				t.Errorf("%v ejections, want %v", n, ejected)
			}
		})
	}
}

// What is no HTTP is the backend's error, and the connection is not used again.
func TestBridgeNonsense(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if n, _ := c.Read(make([]byte, 4096)); n > 0 {
					_, _ = c.Write([]byte("\x16\x03\x01 what?\r\n\r\n"))
				}
			}()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-served })
	r := newTestRouter(t, nil)
	cfg := newForeign("http", "").cfg
	cfg.Endpoints = []string{ln.Addr().String()}
	r.apply(map[string]dynamic.Service{"echo": cfg})
	for range 3 {
		wantCode(t, "nonsense", r.ask("echo", `1`), wire.CodeBackendError)
	}
}
