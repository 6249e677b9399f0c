package stack

// More than usual: a load beyond what there is room for, a tenant beyond his limit, and everybody at once: RELIABILITY
// rows 17, 18 and 19.

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/wire"
)

// counter is a backend with so many hands, each of which takes so long for a request, whatever is asked.
func counter(t *testing.T, dir string, hands int, each time.Duration) (addr string) {
	t.Helper()
	files, err := ensureSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := os.ReadFile(files.Backend)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	free := make(chan struct{}, hands)
	srv := &backend.Server{
		Secrets:    []string{strings.TrimSpace(string(secret))},
		Log:        slog.New(slog.DiscardHandler),
		MaxStreams: 4 * hands, // on each link: more would wait in vain
		Handler: func(ctx context.Context, req backend.Request) (backend.Response, error) {
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				return backend.Response{}, ctx.Err()
			}
			<-time.After(each) // the work itself
			<-free
			return backend.Response{Body: req.Body}, nil
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})
	return ln.Addr().String()
}

// Row 17: at twice the load that its backends carry, what is over is refused at once, and what is carried is as much
// as at the peak.
func TestTwiceTheLoad(t *testing.T) {
	// A service without bounds would answer next to nothing: all would wait until it is too late.
	const hands, each, duration, share = 4, 20 * time.Millisecond, 30 * time.Second, 0.9
	dir := t.TempDir()
	doc := quickDocument()
	doc.Services = map[string]dynamic.Service{"echo": {
		Endpoints: []string{counter(t, dir, hands, each)}, Timeout: dynamic.Duration(time.Second),
	}}
	f := startIn(t, dir, doc, nil)
	peak := float64(hands) / each.Seconds()
	if !long { // a machine with other things to do has bad moments; what breaks down under the load has no good ones
		l := begin(t, f.bench(40, 2*peak, 10*time.Minute))
		l.wait(t, 3*time.Minute, "half of what can be carried is answered within a second", func(p bench.Progress) bool {
			return p.PerSecond >= peak/2 && float64(p.Answered+p.Failed) > 5*2*peak // of five seconds
		})
		wantOverflow(t, l.end(t))
		return
	}
	goodput := func(rate float64) (*bench.Result, float64) {
		t.Helper()
		cfg := f.bench(40, rate, duration)
		cfg.RequestTimeout = 2 * time.Second
		r := runBench(t, cfg)
		return r, float64(r.Requests.Answered) / duration.Seconds()
	}
	_, at := goodput(peak)
	r, over := goodput(2 * peak)
	t.Logf("answered a second: %.0f at %.0f/s, %.0f at %.0f/s", at, peak, over, 2*peak)
	if over < share*at {
		t.Errorf("answered %.0f a second of twice the load, want at least %.2f of %.0f: %v", over, share, at, r.Errors)
	}
	wantOverflow(t, r)
	t.Attr("goodput_at_twice_the_load", fmt.Sprintf("%.2f of the peak", over/at))
}

// wantOverflow wants what was too much to have been refused, and nothing else to have happened.
func wantOverflow(t *testing.T, r *bench.Result) {
	t.Helper()
	if len(r.Sessions.Disconnects) != 0 || r.Requests.Wrong != 0 {
		t.Errorf("connections lost: %v, %d wrong answers; want none", r.Sessions.Disconnects, r.Requests.Wrong)
	}
	if r.Errors[string(wire.CodeBackendUnavailable)] == 0 {
		t.Errorf("errors %v, want what was too much to be refused", r.Errors)
	}
}

// Row 19: a tenant with ten times what he may have gets what he may have, and the others do not notice: none of their
// requests fails, and their p99 while he asks is, within a fifth, what it is while his devices are connected and ask nothing. His
// devices are in a process of their own, but on the same few cores: what they cost counts as if it were the gateway's.
func TestGreedyTenant(t *testing.T) {
	const limit, times = 50.0, 10
	dir := t.TempDir()
	doc := quickDocument()
	greedy := newLedger(t, dir)
	doc.Services = map[string]dynamic.Service{"greedy": {Endpoints: []string{greedy.addr}, Limit: dynamic.Bucket{Rate: limit, Burst: limit}}}
	f := startIn(t, dir, doc, nil)
	cfg := f.bench(20, 200, 10*time.Minute)
	cfg.DialContext = pastBalancer(f.gateways[0].addr) // all meet in one gateway
	others := begin(t, cfg)
	probes := f.connect(t, 10)
	tenant := f.tenant(t, tenantElsewhere{Devices: 20, Rate: times * limit, Service: "greedy", Gateway: f.gateways[0].addr})
	began, asked := time.Now(), time.Duration(0)
	o := unnoticed.Hold(t, func() time.Duration { return p99(t, probes) }, func() time.Duration {
		tenant.ask(true)
		began := time.Now()
		defer func() {
			tenant.ask(false)
			asked += time.Since(began)
		}()
		return p99(t, probes)
	})
	t.Logf("p99 beside a greedy tenant: %v", o)
	if long {
		t.Attr("p99_beside_a_greedy_tenant", o.String())
	}
	got := tenant.ask(false)
	within := time.Since(began).Seconds()
	t.Logf("the tenant asked for %v: %+v", asked.Round(time.Millisecond), got)
	if got.Refused == 0 || got.Failed != 0 || got.Lost != 0 {
		t.Errorf("the tenant: %+v; want some refused, none failed, and no connection lost", got)
	}
	if most := limit * (within + 2); float64(got.Answered) > most {
		t.Errorf("the tenant got %d answers, want at most %.0f", got.Answered, most)
	}
	if long { // a machine with other things to do may not bring it about
		if least := 0.9 * limit * asked.Seconds(); float64(got.Answered) < least {
			t.Errorf("the tenant got %d answers, want what he may have: at least %.0f", got.Answered, least)
		}
		if least := 0.9 * times * limit * asked.Seconds(); float64(got.Answered+got.Refused) < least {
			t.Errorf("the tenant asked %d times, want at least %.0f", got.Answered+got.Refused, least)
		}
	}
	others.quiet(t)
}

// Row 18: the load balancer is lost and another one is there, so that all devices come back at once: all are back within
// a minute, with the tokens and TLS sessions they had, although each gateway computes few handshakes at once. That it computes no more than it
// may is gateway.TestHandshakesAreCapped's.
func TestEverybodyReconnects(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		if !long {
			t.Parallel() // it waits most of the time
		}
		everybodyReconnects(t, redis)
	})
}

func everybodyReconnects(t *testing.T, redis []string) {
	devices, rate := 120, 60.0
	if long {
		devices, rate = 5000, 500
	}
	if most := maxConnections(devices); most < devices { // the load balancer would refuse the others for ever
		t.Fatalf("%d devices, and this process may have descriptors for %d: raise ulimit -n", devices, most)
	}
	doc := quickDocument()
	doc.Heartbeat.Interval = dynamic.Duration(20 * time.Second)
	doc.GatewayLimit.MaxHandshakes = 4 // so that they have to queue
	f := start(t, doc, redis)
	p := f.elsewhere(t, fleetElsewhere{Devices: devices, Rate: rate})
	p.wait(5*time.Minute, "all are online and ask", func(r fleetReport) bool { return r.Online == devices && r.Answered > 0 })
	f.lb.kill()
	lost := time.Now()
	p.wait(time.Minute, "all have noticed", func(r fleetReport) bool { return r.Online < devices/10 })
	if err := f.lb.start(); err != nil {
		t.Fatal(err)
	}
	answered := p.wait(time.Minute, "all are back", func(r fleetReport) bool { return r.Online == devices }).Answered
	took := time.Since(lost)
	t.Logf("%d devices were back %v after the loss", devices, took.Round(time.Millisecond))
	if long {
		t.Attr("reconnected_within", took.Round(time.Millisecond).String())
	}
	p.wait(time.Minute, "requests are answered", func(r fleetReport) bool { return r.Answered > answered+int64(rate) })
	r := p.end()
	if r.Wrong != 0 || r.EnrolledAnew != 0 || r.Ended != 0 || r.Reconnects < int64(devices) {
		t.Errorf("%+v, want each of %d devices to have come back with its token", r, devices)
	}
	// Each has a ticket by then, which every gateway takes. For the first connection nobody had one.
	if r.TLSResumed < r.Reconnects*9/10 {
		t.Errorf("%d of %d reconnects resumed their TLS session, want nearly all", r.TLSResumed, r.Reconnects)
	}
	if long {
		t.Attr("tls_resumed", fmt.Sprintf("%d of %d reconnects", r.TLSResumed, r.Reconnects))
	}
}
