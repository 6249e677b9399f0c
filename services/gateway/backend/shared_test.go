package backend

// Services at the same endpoint share its links: a backend sees links × endpoints
// connections, however many services it has.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/dynamic"
	sdk "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// counted counts the connections that a listener has accepted, and those still open.
type counted struct {
	net.Listener
	accepted, open atomic.Int64
}

type countedConn struct {
	net.Conn
	of     *counted
	closed atomic.Bool
}

func (l *counted) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	l.open.Add(1)
	return &countedConn{Conn: nc, of: l}, nil
}

func (c *countedConn) Close() error {
	if !c.closed.Swap(true) {
		c.of.open.Add(-1)
	}
	return c.Conn.Close()
}

// serveCounted runs a backend and counts its connections.
func serveCounted(t *testing.T, srv *sdk.Server) (*counted, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &counted{Listener: ln}
	serveOn(t, srv, l)
	return l, ln.Addr().String()
}

// with is a service with so many links.
func with(links int, endpoints ...string) dynamic.Service {
	s := serviceAt(endpoints...)
	s.Links = links
	return s
}

// wantConnections waits until a backend has so many connections, and the router no others.
func (r *testRouter) wantConnections(name string, l *counted, want int64) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("%s: %d connections", name, want), func() bool { return l.open.Load() == want })
}

func TestServicesShareLinks(t *testing.T) {
	ln, addr := serveCounted(t, &sdk.Server{Handler: echo})
	other, otherAddr := serveCounted(t, &sdk.Server{Handler: echo})
	r := newTestRouter(t, nil)
	table := func(services map[string]dynamic.Service) {
		t.Helper()
		if err := r.Apply(services); err != nil {
			t.Fatal(err)
		}
	}
	table(map[string]dynamic.Service{"a": with(2, addr), "b": with(3, addr, otherAddr), "c": with(1, addr)})
	r.wantConnections("the most that any service wants", ln, 3)
	r.wantConnections("an endpoint of one service", other, 3)
	for _, name := range []string{"a", "b", "c"} {
		r.eventually(name+" shows the links that it uses", func() bool {
			return r.metric("goshield_backend_links", "service", name, "endpoint", addr) == 3
		})
		wantBody(t, name, r.ask(name, "1"), "1")
	}
	tr := r.traffic("a")
	for _, step := range []struct {
		name            string
		services        map[string]dynamic.Service
		want, wantOther int64
	}{
		{"without the one that wants most", map[string]dynamic.Service{"a": with(2, addr), "c": with(1, addr)}, 2, 0},
		{"one wants more", map[string]dynamic.Service{"a": with(2, addr), "c": with(4, addr)}, 4, 0},
		{"and less again", map[string]dynamic.Service{"a": with(2, addr), "c": with(1, addr)}, 2, 0},
		{"one moves elsewhere", map[string]dynamic.Service{"a": with(2, addr), "c": with(1, otherAddr)}, 2, 1},
		{"and back, with another", map[string]dynamic.Service{"a": with(2, addr), "c": with(1, addr), "d": with(1, addr)}, 2, 0},
		{"one alone", map[string]dynamic.Service{"a": with(1, addr)}, 1, 0},
	} {
		before := tr.count.Load()
		table(step.services)
		r.wantConnections(step.name, ln, step.want)
		r.wantConnections(step.name+", elsewhere", other, step.wantOther)
		r.eventually(step.name+": requests are answered", func() bool { return tr.count.Load() > before+20 && len(r.Unavailable()) == 0 })
		for name := range step.services {
			wantBody(t, step.name, r.ask(name, "1"), "1")
		}
	}
	tr.end()
	table(nil)
	r.wantConnections("no service", ln, 0)
	r.eventually("nothing is at work", func() bool { return len(r.all()) == 0 && len(r.allPools()) == 0 })
	table(map[string]dynamic.Service{"e": with(2, addr)})
	r.wantConnections("a service anew", ln, 2)
}

// A service that takes another's place at an endpoint takes over its links.
func TestRenamedServiceKeepsLinks(t *testing.T) {
	ln, addr := serveCounted(t, &sdk.Server{Handler: echo})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"old": serviceAt(addr)})
	r.apply(map[string]dynamic.Service{"new": serviceAt(addr)})
	wantBody(t, "at once", r.ask("new", "1"), "1")
	r.eventually("the old one has gone", func() bool { return len(r.all()) == 1 })
	if got := ln.accepted.Load(); got != 2 {
		t.Errorf("the backend accepted %d connections, want 2", got)
	}
}

// A service leaves a pool that another uses: what it has in flight is answered, and it
// is at work until then.
func TestServiceLeavesSharedLinks(t *testing.T) {
	began, release := make(chan struct{}, 1), make(chan struct{})
	ln, addr := serveCounted(t, &sdk.Server{Handler: func(_ context.Context, req sdk.Request) (sdk.Response, error) {
		if req.Service == "leaves" {
			began <- struct{}{}
			<-release
		}
		return sdk.Response{Body: req.Body}, nil
	}})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"stays": serviceAt(addr), "leaves": serviceAt(addr)})
	w := newReplies(t)
	r.Send(Request{Service: "leaves", Body: []byte("1"), JSON: true}, w, 1)
	<-began
	r.apply(map[string]dynamic.Service{"stays": serviceAt(addr)})
	wantCode(t, "after it has left", r.ask("leaves", "1"), wire.CodeNoSuchService)
	wantBody(t, "the one that stays", r.ask("stays", "2"), "2")
	if n := len(r.all()); n != 2 {
		t.Errorf("%d services are at work, want 2: one has a request in flight", n)
	}
	close(release)
	wantBody(t, "in flight", w.wait(1), "1")
	r.eventually("one service is at work", func() bool { return len(r.all()) == 1 })
	if got := ln.accepted.Load(); got != 2 {
		t.Errorf("the backend accepted %d connections, want 2", got)
	}
}

// Health is each service's own: a backend that answers one of them and swallows the
// other's requests is ejected for that one only.
func TestSharedLinksHealthApart(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	answer := func(_ context.Context, req sdk.Request) (sdk.Response, error) {
		if req.Service == "hangs" {
			<-over // an answer at the deadline might still be in time
		}
		return sdk.Response{Body: req.Body}, nil
	}
	_, addr := serveCounted(t, &sdk.Server{Handler: answer})
	well := serve(t, &sdk.Server{Handler: echo})
	r := newTestRouter(t, nil)
	hangs := serviceAt(addr, well)
	hangs.Timeout = dynamic.Duration(time.Second) // enough for the one that is well
	r.apply(map[string]dynamic.Service{"hangs": hangs, "well": serviceAt(addr, well)})
	up := func(service string) float64 {
		return r.metric("goshield_backend_up", "service", service, "endpoint", addr)
	}
	w := newReplies(t)
	for tag := uint32(0); up("hangs") == 1; { // at once: half of them time out together
		for first := tag; tag < first+20; tag++ {
			r.Send(Request{Service: "hangs", Body: []byte("1"), JSON: true}, w, tag)
		}
		for sent := tag - 20; sent < tag; sent++ {
			w.wait(sent)
		}
	}
	if n := r.metric("goshield_backend_ejections_total", "service", "hangs", "endpoint", addr); n != 1 {
		t.Errorf("ejections of the one that hangs: %v, want 1", n)
	}
	if n := r.metric("goshield_backend_ejections_total", "service", "well"); n != 0 || up("well") != 1 {
		t.Errorf("the other service: %v ejections and up %v, want none and 1", n, up("well"))
	}
	for range 20 {
		wantBody(t, "the other service", r.ask("well", "1"), "1")
	}
}

// A link that breaks is one failure for every service that lost requests by it, and none
// for the others.
func TestSharedLinkLost(t *testing.T) {
	began := make(chan struct{}, 10)
	srv := &sdk.Server{Handler: hanging(began)}
	_, addr := serveCounted(t, srv)
	well := serve(t, &sdk.Server{Handler: echo})
	r := newTestRouter(t, func(_ *Config, times *timing) { times.ejectAfter = 1 })
	r.apply(map[string]dynamic.Service{"a": with(1, addr), "b": with(1, addr), "c": with(1, addr, well)})
	w := newReplies(t)
	for tag, name := range []string{"a", "b", "b"} {
		r.Send(Request{Service: name, Body: []byte("1"), JSON: true}, w, uint32(tag))
		<-began
	}
	for name, want := range map[string]float64{"a": 1, "b": 2, "c": 0} {
		if got := r.metric("goshield_backend_inflight", "service", name, "endpoint", addr); got != want {
			t.Errorf("in flight of %s: got %v, want %v", name, got, want)
		}
	}
	srv.Close()
	for tag := range uint32(3) {
		wantCode(t, "in flight", w.wait(tag), wire.CodeBackendUnavailable)
	}
	for name, want := range map[string]float64{"a": 1, "b": 1, "c": 0} {
		if got := r.metric("goshield_backend_ejections_total", "service", name); got != want {
			t.Errorf("ejections of %s: got %v, want %v", name, got, want)
		}
	}
}

// The most that a link takes is what all its services together may have in flight.
func TestSharedLinksBound(t *testing.T) {
	began := make(chan struct{}, 10)
	_, addr := serveCounted(t, &sdk.Server{Handler: hanging(began), MaxStreams: 3})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"a": with(2, addr), "b": with(2, addr)})
	w := newReplies(t)
	var handles []Handle
	for tag := range uint32(6) {
		handles = append(handles, r.Send(Request{Service: []string{"a", "b"}[tag%2], Body: []byte("1"), JSON: true}, w, tag))
		<-began
	}
	wantCode(t, "the seventh of six", r.ask("a", "1"), wire.CodeBackendUnavailable)
	for _, h := range handles {
		h.Cancel()
	}
	r.eventually("nothing is in flight", func() bool { return r.metric("goshield_backend_inflight") == 0 })
}

// A backend that sends its links away with what they have in flight, again and again, gathers no more than twice what its links
// take; nor does one whose name comes and goes. What is over that is refused and counted, until something is answered.
func TestInFlightOfAnEndpointIsBounded(t *testing.T) {
	const streams = 3
	for _, tt := range []struct {
		name string
		// again has the endpoint get new links while what the old ones have is in flight.
		again func(t *testing.T, r *testRouter, leave chan<- struct{}, cfg dynamic.Service)
	}{
		{"links are sent away", func(_ *testing.T, _ *testRouter, leave chan<- struct{}, _ dynamic.Service) { leave <- struct{}{} }},
		{"the endpoint comes and goes", func(t *testing.T, r *testRouter, _ chan<- struct{}, cfg dynamic.Service) {
			for _, services := range []map[string]dynamic.Service{nil, {"svc": cfg}} {
				if err := r.Apply(services); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leave := make(chan struct{})
			opened := make(chan struct{}, 10)
			addr := hostile(t, link.Hello{MaxStreams: streams}, func(nc net.Conn) {
				opened <- struct{}{}
				ended := make(chan struct{})
				go func() {
					select {
					case <-leave:
						_, _ = nc.Write(link.AppendGoaway(nil)) // or it has ended
					case <-ended:
					}
				}()
				drop(nc)
				close(ended)
			})
			r := newTestRouter(t, nil)
			cfg := with(1, addr)
			r.apply(map[string]dynamic.Service{"svc": cfg})
			w := newReplies(t)
			var handles []Handle
			for range 2 {
				<-opened
				r.eventually("the link is there", func() bool { return len(r.Unavailable()) == 0 })
				for range streams {
					handles = append(handles, r.Send(Request{Service: "svc", Body: []byte("1")}, w, uint32(len(handles))))
				}
				tt.again(t, r, leave, cfg)
				r.eventually("the link leaves", func() bool {
					return slices.ContainsFunc(r.allPools(), func(p *pool) bool { return len(*p.gone.links.Load()) == len(handles)/streams })
				})
			}
			<-opened
			r.eventually("the third link is there", func() bool { return len(r.Unavailable()) == 0 })
			got := r.ask("svc", "1")
			if wantCode(t, "over the bound", got, wire.CodeBackendUnavailable); got.err != nil && !strings.Contains(got.err.Message, "busy") {
				t.Errorf("refused with %v, want busy", got.err)
			}
			for tag := range uint32(len(handles)) {
				w.none(tag)
			}
			if n := r.metric("goshield_backend_refusals_total", "service", "svc", "endpoint", addr, "reason", "in_flight"); n != 1 {
				t.Errorf("refusals: got %v, want 1", n)
			}
			handles[0].Cancel()
			over := r.Send(Request{Service: "svc", Body: []byte("1")}, w, 100)
			w.none(100)
			for _, h := range append(handles[1:], over) {
				h.Cancel()
			}
			r.eventually("nothing is in flight", func() bool { return r.metric("goshield_backend_inflight") == 0 })
		})
	}
}

// A service that hangs may not use up the links that it shares: half of what they take is set aside, the same for each
// service.
func TestSharedLinksLeaveRoomForOthers(t *testing.T) {
	began := make(chan struct{}, 100)
	hang := hanging(began)
	_, addr := serveCounted(t, &sdk.Server{MaxStreams: 12, Handler: func(ctx context.Context, req sdk.Request) (sdk.Response, error) {
		if req.Service == "well" {
			return sdk.Response{Body: req.Body}, nil
		}
		return hang(ctx, req)
	}})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"hangs": with(2, addr), "too": with(2, addr), "well": with(2, addr)})
	w := newReplies(t)
	var handles []Handle
	send := func(service string, n int) {
		t.Helper()
		for range n {
			handles = append(handles, r.Send(Request{Service: service, Body: []byte("1"), JSON: true}, w, uint32(len(handles))))
			<-began
		}
	}
	// Of 24 requests 4 are set aside for each.
	send("hangs", 24-2*4)
	wantCode(t, "what is set aside for two others", r.ask("hangs", "1"), wire.CodeBackendUnavailable)
	send("too", 4)
	wantCode(t, "what is set aside for the last one", r.ask("too", "1"), wire.CodeBackendUnavailable)
	for range 20 {
		wantBody(t, "the one that is well", r.ask("well", "1"), "1")
	}
	// What was set aside for a service that has left is the others'.
	r.apply(map[string]dynamic.Service{"hangs": with(2, addr), "too": with(2, addr)})
	r.eventually("the service has left", func() bool { return len(r.all()) == 2 })
	send("too", 1)
	for _, h := range handles {
		h.Cancel()
	}
	r.eventually("nothing is in flight", func() bool { return r.metric("goshield_backend_inflight") == 0 })
}

// Links whose certificate must name something else are not shared.
func TestLinksOfAnotherNameAreNotShared(t *testing.T) {
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
	ln, addr := serveCounted(t, &sdk.Server{Handler: echo, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	_, port, _ := net.SplitHostPort(addr)
	dns := &names{}
	dns.set(nil, "127.0.0.1")
	r := newTestRouter(t, func(cfg *Config, _ *timing) {
		cfg.TLS, cfg.Lookup = func() *tls.Config { return &tls.Config{RootCAs: roots} }, dns.lookup
	})
	byName := serviceAt()
	byName.DNS = "echo-backend:" + port
	services := map[string]dynamic.Service{"address": serviceAt(addr), "same": serviceAt(addr), "name": byName}
	if err := r.Apply(services); err != nil {
		t.Fatal(err)
	}
	r.wantConnections("two pools of two", ln, 4)
	services["name"] = serviceAt(addr)
	if err := r.Apply(services); err != nil {
		t.Fatal(err)
	}
	r.wantConnections("one pool", ln, 2)
	r.eventually("it is up", func() bool { return len(r.Unavailable()) == 0 })
	wantBody(t, "it", r.ask("name", "1"), "1")
}

// TestEndedLinkDoesNotDepart: a link that has ended before it is withdrawn is kept nowhere.
func TestEndedLinkDoesNotDepart(t *testing.T) {
	p := &pool{gone: &departing{}}
	p.gone.links.Store(new([]*liveLink))
	p.live.Store(new([]*liveLink))
	for _, endsFirst := range []bool{false, true} {
		l := &liveLink{}
		if !p.enter(t.Context(), l) {
			t.Fatal("no room for a link")
		}
		if endsFirst {
			p.forget(l)
			p.withdraw(l)
		} else {
			p.withdraw(l)
			if len(*p.gone.links.Load()) != 1 {
				t.Error("a link that leaves is not counted")
			}
			p.forget(l)
		}
		if n := len(*p.gone.links.Load()) + len(*p.live.Load()) + len(p.all); n != 0 {
			t.Errorf("ended first %v: %d links are kept, want none", endsFirst, n)
		}
	}
}
