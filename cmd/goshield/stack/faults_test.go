package stack

// What holds while a part is lost under load: RELIABILITY rows 21, 26 and 47.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// Row 21: a gateway's devices are back on another within ten seconds, with the
// tokens they had, and nothing was carried out twice.
func TestGatewayKilled(t *testing.T) {
	dir := t.TempDir()
	ledger := newLedger(t, dir)
	doc := quickDocument()
	doc.Services = map[string]dynamic.Service{"echo": {Endpoints: []string{ledger.addr}}}
	f := startIn(t, dir, doc, nil)
	const devices = 60
	l := begin(t, f.bench(devices, 300, 10*time.Minute))
	served := int64(f.sessions("gateway-1"))
	killed := time.Now()
	f.KillGateway(0)
	answered := l.wait(t, time.Minute, "every device is back", func(p bench.Progress) bool {
		return p.Online == devices && p.Reconnects >= served
	}).Answered
	took := time.Since(killed)
	t.Logf("every device was back within %v", took.Round(10*time.Millisecond))
	if long && took > 10*time.Second {
		t.Errorf("every device was back within %v, want 10 s at most", took)
	}
	l.wait(t, time.Minute, "requests are answered", func(p bench.Progress) bool { return p.Answered > answered+300 })
	if err := f.StartGateway(0); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "the balancer takes the gateway back", func() bool {
		_, page := get(t, "http://"+f.AdminAddr()+"/metrics", "")
		return strings.Contains(page, fmt.Sprintf(`goshield_lb_upstream_up{node="lb",upstream=%q} 1`, f.gateways[0].addr))
	})
	r := l.end(t)
	if r.Requests.Wrong != 0 || r.Sessions.EnrolledAnew != 0 || r.Sessions.Ended != 0 {
		t.Errorf("%d wrong answers, %d enrolled anew, %d gave up; want none", r.Requests.Wrong, r.Sessions.EnrolledAnew, r.Sessions.Ended)
	}
	if served == 0 {
		t.Error("no device had to reconnect: the gateway that was killed served none")
	}
	ledger.check(t, r.Requests.Answered)
	for kind := range r.Errors {
		switch kind {
		case "connection_lost", "timeout", "interrupted", "network":
		default:
			t.Errorf("errors of kind %s: %s", kind, r.Samples[kind])
		}
	}
}

// ledger is a backend that notes what it is asked: every request of a load is another.
type ledger struct {
	addr string

	mu   sync.Mutex
	seen map[string]int
}

func newLedger(t *testing.T, dir string) *ledger {
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
	l := &ledger{addr: ln.Addr().String(), seen: map[string]int{}}
	srv := &backend.Server{
		Secrets: []string{strings.TrimSpace(string(secret))},
		Log:     slog.New(slog.DiscardHandler),
		Handler: func(_ context.Context, req backend.Request) (backend.Response, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.seen[string(req.Body)]++
			return backend.Response{Body: req.Body}, nil
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})
	return l
}

// check wants that nothing was carried out twice, and that all that was answered was carried out.
func (l *ledger) check(t *testing.T, answered int64) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if int64(len(l.seen)) < answered {
		t.Errorf("%d requests were answered, %d carried out", answered, len(l.seen))
	}
	for body, times := range l.seen {
		if times > 1 {
			t.Errorf("carried out %d times: %s", times, body)
		}
	}
}

// Row 26: what a backend had in flight fails at once, the rest goes elsewhere,
// and no device notices otherwise.
func TestBackendKilled(t *testing.T) {
	f := start(t, quickDocument(), nil)
	l := begin(t, f.bench(40, 400, 10*time.Minute))
	f.KillBackend(0)
	until(t, time.Minute, "both gateways have noticed", func() bool { return f.backendUp(t, 0, 0) })
	l.goesOn(t, 400) // what had failed by then has been counted, too
	failed := l.now().Failed
	l.goesOn(t, 800)
	if now := l.now().Failed; now != failed {
		t.Errorf("%d requests failed after the others had taken over", now-failed)
	}
	if err := f.StartBackend(0); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "both gateways use the backend again", func() bool { return f.backendUp(t, 0, 1) })
	r := l.end(t)
	if len(r.Sessions.Disconnects) != 0 || r.Requests.Wrong != 0 {
		t.Errorf("connections lost: %v, %d wrong answers; want none", r.Sessions.Disconnects, r.Requests.Wrong)
	}
	for kind := range r.Errors {
		if kind != string(wire.CodeBackendUnavailable) && kind != "interrupted" {
			t.Errorf("errors of kind %s: %s", kind, r.Samples[kind])
		}
	}
}

// backendUp reports whether both gateways say that the echo service's backend i is up, for 1, or down, for 0.
func (f *fleet) backendUp(t *testing.T, i, up int) bool {
	t.Helper()
	_, page := get(t, "http://"+f.AdminAddr()+"/metrics", "")
	for _, node := range []string{"gateway-1", "gateway-2"} {
		if !strings.Contains(page, fmt.Sprintf("goshield_backend_up{endpoint=%q,node=%q,service=\"echo\"} %d\n", f.backends[i].addr, node, up)) {
			return false
		}
	}
	return true
}

// Row 47: without auth-service live devices are served and new ones are told
// when to try again.
func TestAuthServiceKilled(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		f := start(t, quickDocument(), redis)
		l := begin(t, f.bench(40, 200, 10*time.Minute))
		f.KillAuth()
		_, err := client.Dial(t.Context(), f.device(t, client.MemoryStore()))
		var refused *wire.Error
		if !errors.As(err, &refused) || refused.Code != wire.CodeAuthUnavailable || refused.RetryAfter <= 0 {
			t.Errorf("a new device: got %v, want auth_unavailable with retry_after_ms", err)
		}
		until(t, time.Minute, "a gateway says that it is degraded", func() bool {
			_, page := get(t, "http://"+f.AdminAddr()+"/metrics", "")
			return strings.Contains(page, `goshield_degraded{dependency="auth",node="gateway-1"} 1`) ||
				strings.Contains(page, `goshield_degraded{dependency="auth",node="gateway-2"} 1`)
		})
		answered := l.wait(t, time.Minute, "heartbeats have passed", since(3*time.Second)).Answered
		l.wait(t, time.Minute, "requests are answered", func(p bench.Progress) bool { return p.Answered > answered+200 })
		if err := f.StartAuth(); err != nil {
			t.Fatal(err)
		}
		until(t, time.Minute, "a new device enrols", func() bool {
			c, err := client.Dial(t.Context(), f.device(t, client.MemoryStore()))
			if err != nil {
				return false
			}
			_ = c.Close()
			return true
		})
		r := l.end(t)
		if r.Requests.Wrong != 0 || len(r.Sessions.Disconnects) != 0 {
			t.Errorf("%d wrong answers, connections lost: %v; want none", r.Requests.Wrong, r.Sessions.Disconnects)
		}
		for kind := range r.Errors {
			if kind != "interrupted" {
				t.Errorf("errors of kind %s: %s", kind, r.Samples[kind])
			}
		}
	})
}

// A gateway that is killed while it drains ends once, and can be started again.
func TestGatewayKilledInMidDrain(t *testing.T) {
	f := startWith(t, Config{Gateways: 2, DataDir: t.TempDir(), Document: quickDocument(), DrainWindow: 20 * time.Second})
	l := begin(t, f.bench(10, 20, 10*time.Minute)) // devices make the drain last
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var draining sync.WaitGroup
	draining.Go(func() { _ = f.DrainGateway(ctx, 1) }) // cut short, or not
	until(t, time.Minute, "the balancer has left the gateway", func() bool { return !f.up(1) })
	f.KillGateway(1)
	draining.Wait()
	if err := f.StartGateway(1); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "the balancer takes the gateway back", func() bool { return f.up(1) })
	l.wait(t, time.Minute, "every device is online", func(p bench.Progress) bool { return p.Online == 10 })
	l.end(t)
}

// A gateway that is drained sends its devices to the other one; no request fails.
func TestGatewayDrained(t *testing.T) {
	f := start(t, quickDocument(), nil)
	const devices = 40
	l := begin(t, f.bench(devices, 200, 10*time.Minute))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.DrainGateway(ctx, 1); err != nil {
		t.Errorf("drain: %v", err)
	}
	answered := l.wait(t, time.Minute, "every device is on the other gateway", func(p bench.Progress) bool { return p.Online == devices }).Answered
	l.wait(t, time.Minute, "requests are answered", func(p bench.Progress) bool { return p.Answered > answered+200 })
	r := l.end(t)
	if r.Sessions.Reconnects == 0 {
		t.Error("no device moved")
	}
	delete(r.Errors, "interrupted") // by the end of the test
	if len(r.Errors) != 0 || r.Requests.Wrong != 0 || r.Sessions.EnrolledAnew != 0 {
		t.Errorf("errors %v %v, %d wrong answers, %d enrolled anew; want none", r.Errors, r.Samples, r.Requests.Wrong, r.Sessions.EnrolledAnew)
	}
}

// since is true of progress that was made so long after the first call.
func since(d time.Duration) func(bench.Progress) bool {
	var first time.Duration
	return func(p bench.Progress) bool {
		if first == 0 {
			first = p.Elapsed
		}
		return p.Elapsed-first >= d
	}
}

// device is a device of its own.
func (f *fleet) device(t *testing.T, store client.TokenStore) client.Config {
	t.Helper()
	id, err := wire.ClientIDFromMAC(fmt.Sprintf("%012x", firstMAC()))
	if err != nil {
		t.Fatal(err)
	}
	return client.Config{Addr: f.Addr(), TLS: f.tls, ClientID: id, TokenStore: store, RequestTimeout: 20 * time.Second}
}
