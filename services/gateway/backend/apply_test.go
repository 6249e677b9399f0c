package backend

// The table changes while requests are sent: nothing fails that could be
// answered.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	sdk "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// traffic asks a service without a pause until stop, and fails the test for each
// request that is not answered.
type traffic struct {
	stop   chan struct{}
	asking sync.WaitGroup
	count  atomic.Int64
}

func (r *testRouter) traffic(service string) *traffic {
	tr := &traffic{stop: make(chan struct{})}
	for range 4 {
		tr.asking.Go(func() { // ends with stop
			for {
				select {
				case <-tr.stop:
					return
				default:
				}
				w := newReplies(r.t)
				r.Send(Request{Service: service, Body: []byte(`1`), JSON: true}, w, 1)
				select {
				case got := <-w.channel(1):
					if got.err != nil {
						r.t.Errorf("a request failed: %v", got.err)
						return
					}
				case <-time.After(patience):
					r.t.Error("a request was not answered")
					return
				}
				tr.count.Add(1)
			}
		})
	}
	return tr
}

func (tr *traffic) end() {
	close(tr.stop)
	tr.asking.Wait()
}

func TestTablesChangeUnderLoad(t *testing.T) {
	var addrs []string
	for range 3 {
		addrs = append(addrs, serve(t, &sdk.Server{Handler: echo}))
	}
	r := newTestRouter(t, nil)
	table := func(change func(*dynamic.Service), endpoints ...string) map[string]dynamic.Service {
		s := serviceAt(endpoints...)
		if change != nil {
			change(&s)
		}
		return map[string]dynamic.Service{"svc": s}
	}
	r.apply(table(nil, addrs...))
	tr := r.traffic("svc")
	for _, step := range []struct {
		name string
		next map[string]dynamic.Service
		want []string // endpoints with links
	}{
		{"one less", table(nil, addrs[:2]...), addrs[:2]},
		{"altogether others", table(nil, addrs[2]), addrs[2:]},
		{"more links", table(func(s *dynamic.Service) { s.Links = 5 }, addrs[2]), addrs[2:]},
		{"fewer links", table(func(s *dynamic.Service) { s.Links = 1 }, addrs[2]), addrs[2:]},
		{"another algorithm", table(func(s *dynamic.Service) { s.Algorithm = "least_response_time" }, addrs...), addrs},
		{"another timeout", table(func(s *dynamic.Service) { s.Timeout /= 2 }, addrs...), addrs},
		{"idempotent", table(func(s *dynamic.Service) { s.Idempotent = true }, addrs...), addrs},
		{"twice the same endpoint", table(nil, addrs[0], addrs[0]), addrs[:1]},
		{"the same again", table(nil, addrs[0]), addrs[:1]},
	} {
		before := tr.count.Load()
		r.apply(step.next)
		links := float64(step.next["svc"].Links)
		r.eventually(step.name, func() bool {
			for _, addr := range addrs {
				want := 0.0
				if slices.Contains(step.want, addr) {
					want = links
				}
				if r.metric("goshield_backend_links", "endpoint", addr) != want {
					return false
				}
			}
			return tr.count.Load() > before+50
		})
	}
	tr.end()
}

// A service that is taken out answers what it has, and only that.
func TestServiceIsTakenOut(t *testing.T) {
	began, release := make(chan struct{}, 1), make(chan struct{})
	addr := serve(t, &sdk.Server{Handler: func(context.Context, sdk.Request) (sdk.Response, error) {
		began <- struct{}{}
		<-release
		return sdk.Response{Body: []byte("1")}, nil
	}})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)})
	w := newReplies(t)
	r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, 1)
	<-began
	if err := r.Apply(nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "after it was taken out", r.ask("svc", "1"), wire.CodeNoSuchService)
	close(release)
	wantBody(t, "in flight", w.wait(1), "1")
	r.eventually("nothing of it is at work", func() bool { return len(r.all()) == 0 })
	if n := r.metric("goshield_backend_links"); n != 0 {
		t.Errorf("%v links are still shown", n)
	}
}

// A table that cannot be used names the key and changes nothing.
func TestTableRefused(t *testing.T) {
	addr := serve(t, &sdk.Server{Handler: echo})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)})
	for _, c := range []struct {
		name   string
		change func(*dynamic.Service)
		key    string
	}{
		{"endpoint without port", func(s *dynamic.Service) { s.Endpoints = []string{"localhost"} }, "services.svc.endpoints"},
		{"endpoint without host", func(s *dynamic.Service) { s.Endpoints = []string{":9000"} }, "services.svc.endpoints"},
		{"port out of range", func(s *dynamic.Service) { s.Endpoints = []string{"localhost:70000"} }, "services.svc.endpoints"},
		{"dns without port", func(s *dynamic.Service) { s.Endpoints, s.DNS = nil, "echo-backend" }, "services.svc.dns"},
		{"algorithm", func(s *dynamic.Service) { s.Algorithm = "random" }, "services.svc.algorithm"},
		{"links", func(s *dynamic.Service) { s.Links = 0 }, "services.svc"},
		{"timeout", func(s *dynamic.Service) { s.Timeout = 0 }, "services.svc"},
	} {
		s := serviceAt(addr)
		c.change(&s)
		err := r.Apply(map[string]dynamic.Service{"svc": s, "new": serviceAt(addr)})
		var key *config.Error
		if !errors.As(err, &key) || key.Key != c.key {
			t.Errorf("%s: got %v, want an error of key %s", c.name, err, c.key)
		}
	}
	wantBody(t, "the old table", r.ask("svc", "1"), "1")
	wantCode(t, "nothing of the new one", r.ask("new", "1"), wire.CodeNoSuchService)
}

// names is a resolver that the test changes.
type names struct {
	mu    sync.Mutex
	found []string
	err   error
	asked atomic.Int64
}

func (n *names) set(err error, found ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.found, n.err = found, err
}

func (n *names) lookup(_ context.Context, host string) ([]string, error) {
	n.asked.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if host != "echo-backend" {
		return nil, errors.New("no such host")
	}
	return n.found, n.err
}

// serveAt is a backend on one of loopback's many addresses, at a given port; 0: any.
func serveAt(t *testing.T, ip, port string) (usedPort string) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(ip, port))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, &sdk.Server{Handler: named(ip)}, ln)
	_, usedPort, _ = net.SplitHostPort(ln.Addr().String())
	return usedPort
}

func TestEndpointsByName(t *testing.T) {
	port := serveAt(t, "127.0.0.2", "0")
	serveAt(t, "127.0.0.3", port)
	dns := &names{}
	dns.set(errors.New("not yet"))
	r := newTestRouter(t, func(cfg *Config, _ *timing) { cfg.Lookup = dns.lookup })
	cfg := serviceAt()
	cfg.DNS = "echo-backend:" + port
	if err := r.Apply(map[string]dynamic.Service{"svc": cfg}); err != nil {
		t.Fatal(err)
	}
	links := func(ip string) float64 {
		return r.metric("goshield_backend_links", "endpoint", net.JoinHostPort(ip, port))
	}
	r.eventually("failures are counted", func() bool {
		return r.metric("goshield_backend_resolve_failures_total", "service", "svc") > 2
	})
	wantCode(t, "before there is an answer", r.ask("svc", "1"), wire.CodeBackendUnavailable)
	dns.set(nil, "127.0.0.2", "127.0.0.2")
	r.eventually("the first address", func() bool { return links("127.0.0.2") == 2 })
	tr := r.traffic("svc")
	dns.set(nil, "127.0.0.3", "127.0.0.2")
	r.eventually("both addresses", func() bool { return links("127.0.0.2") == 2 && links("127.0.0.3") == 2 })
	dns.set(nil, "127.0.0.3")
	r.eventually("the second address", func() bool { return links("127.0.0.2") == 0 && links("127.0.0.3") == 2 })
	for _, failure := range []struct {
		err   error
		found []string
	}{{errors.New("server failure"), nil}, {nil, nil}} {
		dns.set(failure.err, failure.found...)
		asked := dns.asked.Load()
		r.eventually("look-ups that fail", func() bool { return dns.asked.Load() > asked+3 })
		if links("127.0.0.3") != 2 {
			t.Error("a look-up that failed took the last answer out of force")
		}
	}
	cfg.DNS = ""
	cfg.Endpoints = []string{net.JoinHostPort("127.0.0.2", port)}
	r.apply(map[string]dynamic.Service{"svc": cfg})
	r.eventually("a list instead of the name", func() bool { return links("127.0.0.3") == 0 })
	asked := dns.asked.Load()
	tr.end()
	if n := dns.asked.Load(); n != asked {
		t.Errorf("the name is looked up still: %d times more", n-asked)
	}
	wantBody(t, "the list", r.ask("svc", "1"), `"127.0.0.2"`)
}

// The link over TLS: the certificate must be for the endpoint's host, or for
// the name it was found by.
func TestTLS(t *testing.T) {
	ca, err := certs.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := ca.Issue(certs.Leaf{CommonName: "echo", DNS: []string{"echo-backend"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, ValidFor: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	port := "0"
	for _, ip := range []string{"127.0.0.1", "127.0.0.5", "127.0.0.6"} {
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, port))
		if err != nil {
			t.Fatal(err)
		}
		serveOn(t, &sdk.Server{Handler: echo, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}, ln)
		_, port, _ = net.SplitHostPort(ln.Addr().String())
	}
	dns := &names{}
	dns.set(nil, "127.0.0.5")
	r := newTestRouter(t, func(cfg *Config, _ *timing) {
		cfg.TLS, cfg.Lookup = func() *tls.Config { return &tls.Config{RootCAs: roots} }, dns.lookup
	})
	byName := serviceAt()
	byName.DNS = "echo-backend:" + port
	if err := r.Apply(map[string]dynamic.Service{
		"address": serviceAt("127.0.0.1:" + port),
		"name":    byName,
		"foreign": serviceAt("127.0.0.6:" + port),
	}); err != nil {
		t.Fatal(err)
	}
	r.eventually("links to certified endpoints", func() bool { return slices.Equal(r.Unavailable(), []string{"foreign"}) })
	wantBody(t, "by address", r.ask("address", "1"), "1")
	wantBody(t, "by name", r.ask("name", "1"), "1")
	wantCode(t, "of another name", r.ask("foreign", "1"), wire.CodeBackendUnavailable)
}

// least_response_time prefers the endpoint that answers sooner.
func TestLeastResponseTime(t *testing.T) {
	// On a machine that is short of time the fast one may be the slower one, now and then.
	for slowness := 50 * time.Millisecond; !prefersTheFast(t, slowness); slowness *= 4 {
		if slowness > 10*time.Second {
			t.Fatalf("an endpoint did not answer sooner than within %v", slowness/2)
		}
	}
}

// prefersTheFast reports whether the fast one was faster throughout.
func prefersTheFast(t *testing.T, slowness time.Duration) bool {
	t.Helper()
	slow := serve(t, &sdk.Server{Handler: func(ctx context.Context, _ sdk.Request) (sdk.Response, error) {
		select {
		case <-time.After(slowness):
		case <-ctx.Done():
		}
		return sdk.Response{Body: []byte(`"slow"`)}, nil
	}})
	r := newTestRouter(t, nil)
	cfg := serviceAt(slow, serve(t, &sdk.Server{Handler: named("fast")}))
	cfg.Algorithm = "least_response_time"
	r.apply(map[string]dynamic.Service{"svc": cfg})
	count := map[string]int{}
	for range 60 {
		began := time.Now()
		body := r.ask("svc", "1").body
		if body == `"fast"` && time.Since(began) > slowness/2 {
			return false
		}
		count[body]++
	}
	if count[`"slow"`] > 10 || count[`"fast"`] < 50 {
		t.Errorf("got %v, want nearly all fast", count)
	}
	return true
}

// TestRefusalsAreNotFast: an endpoint that refuses most of its requests at once, too few in a row to be ejected, is not taken
// for the one that answers soonest.
func TestRefusalsAreNotFast(t *testing.T) {
	var asked atomic.Int64
	bad := hostile(t, link.Hello{}, onRequest(func(nc net.Conn, stream uint64, _ link.Request) bool {
		var err error
		if asked.Add(1)%3 == 0 {
			_, err = nc.Write(link.AppendResponse(nil, stream, []byte("1")))
		} else {
			_, err = nc.Write(link.AppendError(nil, stream, wire.CodeBackendUnavailable, "not now"))
		}
		return err == nil
	}))
	r := newTestRouter(t, nil)
	cfg := serviceAt(bad, serve(t, &sdk.Server{Handler: echo}))
	cfg.Algorithm = "least_response_time"
	r.apply(map[string]dynamic.Service{"svc": cfg})
	const requests = 60
	for range requests {
		r.ask("svc", "1")
	}
	if got := asked.Load(); got > requests/6 {
		t.Errorf("%d of %d requests went to the endpoint that refuses, want few", got, requests)
	}
}

// An endpoint that answers nothing but errors is not taken for the one that answers soonest, and is not ejected: the requests may be to
// blame. So with what no device can take.
func TestErrorsAreNotFast(t *testing.T) {
	for name, frame := range map[string]func(stream uint64) []byte{
		"backend_error":   func(stream uint64) []byte { return link.AppendError(nil, stream, wire.CodeBackendError, "no") },
		"no_such_service": func(stream uint64) []byte { return link.AppendError(nil, stream, wire.CodeNoSuchService, "no") },
		"its own code":    func(stream uint64) []byte { return link.AppendError(nil, stream, "own_code", "no") },
		"no JSON":         func(stream uint64) []byte { return link.AppendResponse(nil, stream, []byte("<html>")) },
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			bad := hostile(t, link.Hello{}, onRequest(func(nc net.Conn, stream uint64, _ link.Request) bool {
				asked.Add(1)
				_, err := nc.Write(frame(stream))
				return err == nil
			}))
			good := serve(t, &sdk.Server{Handler: slowEcho})
			r := newTestRouter(t, nil)
			cfg := serviceAt(bad, good)
			cfg.Algorithm = "least_response_time"
			r.apply(map[string]dynamic.Service{"svc": cfg})
			const requests = 40
			for range requests {
				if got := r.ask("svc", "1"); got.err != nil && got.err.Code == wire.CodeBackendUnavailable {
					t.Fatal(got.err)
				}
			}
			if got := asked.Load(); got == 0 || got > requests/3 {
				t.Errorf("%d of %d requests went to the endpoint that answers with errors, want few", got, requests)
			}
			if n := r.metric("goshield_backend_ejections_total"); n != 0 {
				t.Errorf("%v ejections, want none", n)
			}
		})
	}
}

// slowEcho takes longer than an error does.
func slowEcho(ctx context.Context, req sdk.Request) (sdk.Response, error) {
	select {
	case <-time.After(10 * time.Millisecond):
	case <-ctx.Done():
	}
	return sdk.Response{Body: req.Body}, nil
}

// least_inflight leaves an endpoint alone that has not answered yet.
func TestLeastInFlight(t *testing.T) {
	began := make(chan struct{}, 20)
	r := newTestRouter(t, nil)
	cfg := serviceAt(serve(t, &sdk.Server{Handler: hanging(began)}), serve(t, &sdk.Server{Handler: echo}))
	cfg.Algorithm = "least_inflight"
	r.apply(map[string]dynamic.Service{"svc": cfg})
	w := newReplies(t)
	var handles []Handle
	hung := 0
	for tag := range uint32(20) {
		handles = append(handles, r.Send(Request{Service: "svc", Body: []byte("1"), JSON: true}, w, tag))
		select {
		case <-began:
			hung++
		case got := <-w.channel(tag):
			wantBody(t, "elsewhere", got, "1")
		case <-time.After(patience):
			t.Fatal("a request got nowhere")
		}
	}
	if hung != 1 {
		t.Errorf("%d of 20 requests went where one hangs already, want that one", hung)
	}
	for _, h := range handles {
		h.Cancel()
	}
}

// What is unusual about a backend's HELLO: it answers for other services. It
// is used, for it will say so itself.
func TestBackendOfOtherServices(t *testing.T) {
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(serve(t, &sdk.Server{Handler: echo, Services: []string{"other"}}))})
	wantCode(t, "a request", r.ask("svc", "1"), wire.CodeNoSuchService)
}
