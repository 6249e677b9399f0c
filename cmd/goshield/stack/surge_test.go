package stack

// More than usual: a load beyond what there is room for, a tenant beyond his limit, and everybody at once: RELIABILITY
// rows 17, 18 and 19.

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
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

// Row 19: a tenant with ten times what he may have gets what he may have, and the others do not notice.
func TestGreedyTenant(t *testing.T) {
	const limit = 50.0
	dir := t.TempDir()
	doc := quickDocument()
	greedy := newLedger(t, dir)
	doc.Services = map[string]dynamic.Service{"greedy": {Endpoints: []string{greedy.addr}, Limit: dynamic.Bucket{Rate: limit, Burst: limit}}}
	f := startIn(t, dir, doc, nil)
	others := begin(t, f.bench(20, 200, 10*time.Minute))
	probes := f.connect(t, 10)
	began := time.Now()
	var got, refused int64
	greed := func() time.Duration {
		cfg := f.bench(20, 10*limit, 10*time.Minute)
		cfg.Service = "greedy"
		tenant := begin(t, cfg)
		p99 := percentile(t, probes, 99)
		r := tenant.end(t)
		got, refused = got+r.Requests.Answered, refused+r.Errors["rate_limited"]
		if len(r.Sessions.Disconnects) != 0 {
			t.Errorf("the tenant's connections lost: %v; want none", r.Sessions.Disconnects)
		}
		return p99
	}
	if long {
		o := unnoticed.Hold(t, func() time.Duration { return percentile(t, probes, 99) }, greed)
		t.Attr("p99_beside_a_greedy_tenant", o.String())
	} else { // with the race detector the tenant's devices, which share the cores, are what the others would notice
		t.Logf("p99 of the others: %v beside the tenant", greed())
	}
	if refused == 0 {
		t.Error("nothing of the tenant's was refused")
	}
	if most := limit * (time.Since(began).Seconds() + 2); float64(got) > most {
		t.Errorf("the tenant got %d answers, want at most %.0f", got, most)
	}
	others.quiet(t)
}

// fleetElsewhere describes devices in a process of their own: so many that one process has not the descriptors for both
// ends.
type fleetElsewhere struct {
	Devices int
	Rate    float64
	Gateway string // its address: the devices go past the load balancer; "": they do not

	// Filled in by elsewhere.
	Addr, CA string
	FirstMAC uint64
}

const fleetEnv = "GOSHIELD_TEST_FLEET_ELSEWHERE"

// fleetReport is a line of the other process.
type fleetReport struct {
	Online   int
	Answered int64
	Result   *fleetResult // the last line
	Fault    string
}

type fleetResult struct {
	Wrong, EnrolledAnew, Reconnects int64
	Ended                           int
}

// runAsFleet, in the other process, is the devices until standard input ends.
func runAsFleet() bool {
	text := os.Getenv(fleetEnv)
	if text == "" {
		return false
	}
	say := json.NewEncoder(os.Stdout)
	var spec fleetElsewhere
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(spec.CA))
	var dial func(ctx context.Context, network, addr string) (net.Conn, error)
	if spec.Gateway != "" {
		dial = pastBalancer(spec.Gateway)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // ends with the process at the latest
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	r, err := bench.Run(ctx, bench.Config{
		Addr: spec.Addr, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, DialContext: dial, Devices: spec.Devices, Rate: spec.Rate,
		Duration: time.Hour, FirstMAC: spec.FirstMAC, BackoffBase: 100 * time.Millisecond, BackoffCap: 5 * time.Second,
		Progress: func(p bench.Progress) { _ = say.Encode(fleetReport{Online: p.Online, Answered: p.Answered}) },
	})
	if err != nil {
		_ = say.Encode(fleetReport{Fault: err.Error()})
		return true
	}
	_ = say.Encode(fleetReport{Result: &fleetResult{
		Wrong: r.Requests.Wrong, EnrolledAnew: r.Sessions.EnrolledAnew, Reconnects: r.Sessions.Reconnects, Ended: r.Sessions.Ended,
	}})
	return true
}

// fleetProcess is the other process, seen from here.
type fleetProcess struct {
	t   *testing.T
	in  io.Closer
	say chan fleetReport // closed at its end
}

func (f *fleet) elsewhere(t *testing.T, what fleetElsewhere) *fleetProcess {
	t.Helper()
	ca, err := os.ReadFile(f.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	what.Addr, what.CA, what.FirstMAC = f.Addr(), string(ca), firstMAC()
	spec, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env, cmd.Stderr = append(os.Environ(), fleetEnv+"="+string(spec)), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &fleetProcess{t: t, in: in, say: make(chan fleetReport, 3600)} // a line a second
	go func() {
		defer close(p.say)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var r fleetReport
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				r.Fault = fmt.Sprintf("%v: %s", err, lines.Bytes())
			}
			p.say <- r
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		for range p.say {
		}
		_ = cmd.Wait()
	})
	return p
}

// wait waits for something of its progress.
func (p *fleetProcess) wait(limit time.Duration, what string, ok func(fleetReport) bool) fleetReport {
	p.t.Helper()
	for late := time.After(limit); ; {
		select {
		case r, open := <-p.say:
			if !open || r.Fault != "" || r.Result != nil {
				p.t.Fatalf("the devices ended: %s", r.Fault)
			}
			if ok(r) {
				return r
			}
		case <-late:
			p.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// end stops the devices.
func (p *fleetProcess) end() fleetResult {
	p.t.Helper()
	_ = p.in.Close()
	for late := time.After(time.Minute); ; {
		select {
		case r, open := <-p.say:
			if !open || r.Fault != "" {
				p.t.Fatalf("the devices ended without a result: %s", r.Fault)
			}
			if r.Result != nil {
				return *r.Result
			}
		case <-late:
			p.t.Fatal("the devices did not end")
		}
	}
}

// Row 18: the load balancer is lost and another one is there, so that all devices come back at once: all are back within
// a minute, with the tokens they had, and no gateway computes more handshakes at once than it may.
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
	if r := p.end(); r.Wrong != 0 || r.EnrolledAnew != 0 || r.Ended != 0 || r.Reconnects < int64(devices) {
		t.Errorf("%+v, want each of %d devices to have come back with its token", r, devices)
	}
}
