package bench_test

// The fleet against a gateway that does as it should, and against some that do not.

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/cmd/goshield/internal/echogateway"
	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// checkLeaks fails the test if goroutines are left once its gateway has ended.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { leaktest.None(t) }) // runs after the gateway's own Cleanup
}

func configFor(g *echogateway.Gateway) bench.Config {
	return bench.Config{
		Addr: g.Addr(), TLS: &tls.Config{RootCAs: g.CA().Pool()}, Devices: 10, Rate: 200, Duration: time.Second,
		BackoffBase: 10 * time.Millisecond, BackoffCap: 100 * time.Millisecond,
	}
}

func run(t *testing.T, cfg bench.Config) *bench.Result {
	t.Helper()
	r, err := bench.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRun(t *testing.T) {
	checkLeaks(t)
	g := echogateway.Start(t, true, func(g *echogateway.Gateway) { g.Heartbeat, g.Rotate = 100*time.Millisecond, true })
	cfg := configFor(g)
	var seen atomic.Int64
	cfg.Progress = func(p bench.Progress) {
		seen.Add(1)
		if p.Devices != 10 || p.Phase == "" {
			t.Errorf("progress: got %+v", p)
		}
	}
	cfg.Duration = 2500 * time.Millisecond
	r := run(t, cfg)
	if err := r.Err(); err != nil {
		t.Errorf("Err: %v %v", err, r.Samples)
	}
	const requests = 500
	for _, test := range []struct {
		name      string
		got, want int64
	}{
		{"connected", int64(r.Connect.Connected), 10},
		{"enrolled", r.Connect.Enrolled, 10},
		{"resumed", r.Connect.Resumed, 0},
		{"connect times", r.Connect.Latency.Count, 10},
		{"handshakes", r.Connect.Handshakes, 10},
		{"sent", r.Requests.Sent, requests},
		{"answered", r.Requests.Answered, requests},
		{"latencies", r.Requests.Latency.Count, requests},
		{"lags", r.Requests.Lag.Count, requests},
		{"errors", int64(len(r.Errors)), 0},
		{"devices that rotated", int64(r.Sessions.Rotated), 10},
		{"reconnects", r.Sessions.Reconnects, 0},
		{"enrolled anew", r.Sessions.EnrolledAnew, 0},
	} {
		if test.got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, test.got, test.want)
		}
	}
	if q := r.Requests.Latency; q.P50 <= 0 || q.P50 > q.P90 || q.P90 > q.P99 || q.P99 > q.P999 || q.P999 > q.Max {
		t.Errorf("latency: got %v, want it to rise", q)
	}
	if r.Requests.Seconds < 2.4 || r.Requests.PerSecond <= 0 || r.Connect.PerSecond <= 0 || r.Connect.HandshakesPerSecond <= 0 {
		t.Errorf("rates: got %+v %+v", r.Requests, r.Connect)
	}
	if seen.Load() < 1 {
		t.Error("progress was never told")
	}
}

func TestResultReads(t *testing.T) {
	checkLeaks(t)
	g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			e := wire.Errorf(wire.CodeBackendTimeout, "no answer within 5s")
			e.ID, e.HasID = req.ID, true
			return e
		}
	})
	cfg := configFor(g)
	cfg.Rate, cfg.Duration = 20, 500*time.Millisecond
	r := run(t, cfg)
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"devices      10 of 10 connected in ", " TLS handshakes a second", "tokens     10 enrolled, 0 resumed",
		"requests     10 sent in ", "p99.9", "errors       10\n", "backend_timeout            10   backend_timeout: no answer within 5s",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("text: no %q in\n%s", want, text.String())
		}
	}
	if err := r.Err(); err == nil || err.Error() != "10 of 10 requests failed" {
		t.Errorf("Err: got %v", err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var again struct {
		Connect  struct{ Connected int }
		Requests struct {
			Sent    int
			Latency struct {
				P99 *float64 `json:"p99_ms"`
			}
		}
		Errors map[string]int
	}
	if err := json.Unmarshal(data, &again); err != nil || again.Connect.Connected != 10 || again.Requests.Sent != 10 ||
		again.Requests.Latency.P99 == nil || again.Errors["backend_timeout"] != 10 {
		t.Errorf("JSON: got %s, %v", data, err)
	}
}

// An answer that is another's, or none, is a fault, not an answer.
func TestWrongAnswers(t *testing.T) {
	checkLeaks(t)
	var n atomic.Int64
	g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			body := req.Body
			if n.Add(1)%4 == 0 {
				body = bytes.Replace(body, []byte(`"request":`), []byte(`"request":1`), 1)
			}
			return &wire.Response{ID: req.ID, Body: body}
		}
	})
	r := run(t, configFor(g))
	if r.Requests.Wrong != 50 || r.Errors["wrong_answer"] != 50 || r.Requests.Answered != 150 || r.Err() == nil {
		t.Errorf("got %d wrong of %d right, %v, %v, want 50 of 150", r.Requests.Wrong, r.Requests.Answered, r.Errors, r.Err())
	}
}

// A gateway that stalls for half a second: the requests that were due then are late by as much, though
// hardly any was under way when it began (coordinated omission).
func TestStallShowsInFull(t *testing.T) {
	checkLeaks(t)
	var first atomic.Bool
	g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			if !first.Swap(true) {
				time.Sleep(500 * time.Millisecond) // it reads nothing else meanwhile
			}
			return &wire.Response{ID: req.ID, Body: req.Body}
		}
	})
	cfg := configFor(g)
	cfg.Devices, cfg.Rate = 1, 100
	r := run(t, cfg)
	if r.Requests.Sent != 100 || r.Err() != nil {
		t.Errorf("sent %d, %v, want all 100", r.Requests.Sent, r.Err())
	}
	// A tenth of all was due in the first 100 ms of the stall.
	if q := r.Requests.Latency; time.Duration(q.P90) < 350*time.Millisecond || time.Duration(q.Max) < 480*time.Millisecond {
		t.Errorf("latency: got %v, want the stall in it", q)
	}
}

func TestNoAnswer(t *testing.T) {
	checkLeaks(t)
	g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
		g.Answer = func(wire.ClientID, *wire.Request) wire.Message { return nil }
	})
	cfg := configFor(g)
	cfg.Rate, cfg.Duration, cfg.RequestTimeout = 10, 100*time.Millisecond, time.Second // one, due at once
	r := run(t, cfg)
	if r.Requests.Sent != 1 || r.Errors["timeout"] != 1 || r.Requests.Answered != 0 {
		t.Errorf("got %d sent, %v, want one and its timeout", r.Requests.Sent, r.Errors)
	}
}

// While as many requests are unanswered as may be, what is due is not sent.
func TestTooManyUnanswered(t *testing.T) {
	checkLeaks(t)
	answer := make(chan struct{})
	g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			<-answer
			return &wire.Response{ID: req.ID, Body: req.Body}
		}
	})
	goOn := sync.OnceFunc(func() { close(answer) })
	defer goOn()
	cfg := configFor(g)
	cfg.Rate, cfg.Duration, cfg.RequestTimeout, cfg.MaxOutstanding = 100, 500*time.Millisecond, time.Minute, 20
	cfg.Progress = func(p bench.Progress) { // once the fifty are due
		if p.Failed == 30 {
			goOn()
		}
	}
	r := run(t, cfg)
	if r.Requests.Sent != 20 || r.Requests.Answered != 20 || r.Errors["not_sent"] != 30 {
		t.Errorf("got %d sent, %d answered, %v, want 20, 20 and 30 not_sent", r.Requests.Sent, r.Requests.Answered, r.Errors)
	}
}

// Connections that break and tokens that are forgotten are counted, and the
// fleet goes on.
func TestDisconnects(t *testing.T) {
	for _, test := range []struct {
		name   string
		forget bool
	}{{"tokens stay", false}, {"tokens are forgotten", true}} {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var mu sync.Mutex
			broken := false
			g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
				g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
					mu.Lock()
					defer mu.Unlock()
					if !broken && bytes.Contains(req.Body, []byte(`"request":50,`)) {
						broken = true
						if test.forget {
							g.ForgetAndDisconnect()
						} else {
							g.Disconnect()
						}
					}
					return &wire.Response{ID: req.ID, Body: req.Body}
				}
			})
			cfg := configFor(g)
			cfg.Duration, cfg.RequestTimeout = time.Hour, time.Minute
			cfg.Progress = func(p bench.Progress) {
				if p.Reconnects >= 10 {
					stop() // all that there is to see
				}
			}
			r, err := bench.Run(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if r.Sessions.Reconnects != 10 || r.Connect.Connected != 10 {
				t.Errorf("reconnects: got %d of %d, want 10", r.Sessions.Reconnects, r.Connect.Connected)
			}
			wantAnew := int64(0)
			if test.forget {
				wantAnew = 10
			}
			if r.Sessions.EnrolledAnew != wantAnew {
				t.Errorf("enrolled anew: got %d, want %d", r.Sessions.EnrolledAnew, wantAnew)
			}
			lost := r.Errors["connection_lost"]
			if lost < 1 || len(r.Errors) != 1 || r.Requests.Answered+lost != r.Requests.Sent || r.Requests.Wrong != 0 {
				t.Errorf("got %v, %d answered of %d, want some connection_lost and no other error", r.Errors, r.Requests.Answered, r.Requests.Sent)
			}
			if len(r.Sessions.Disconnects) == 0 {
				t.Error("no disconnects counted")
			}
		})
	}
}

func TestSecondRunResumes(t *testing.T) {
	checkLeaks(t)
	g := echogateway.Start(t, true, nil)
	store, err := client.FileStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg := configFor(g)
	cfg.TokenStore, cfg.Rate, cfg.Duration = store, 0, time.Millisecond
	first, second := run(t, cfg), run(t, cfg)
	if first.Connect.Enrolled != 10 || second.Connect.Enrolled != 0 || second.Connect.Resumed != 10 {
		t.Errorf("enrolled: got %d, then %d and %d resumed, want 10, then 0 and 10",
			first.Connect.Enrolled, second.Connect.Enrolled, second.Connect.Resumed)
	}
}

// Devices are told apart by addresses that count up.
func TestDevicesAreDistinct(t *testing.T) {
	checkLeaks(t)
	var refused atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	last, err := wire.ClientIDFromMAC("0a:00:00:00:00:09")
	if err != nil {
		t.Fatal(err)
	}
	g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
		g.OnHello = func(h *wire.Hello) *wire.Error {
			if h.ClientID == last {
				refused.Add(1)
				return wire.Errorf(wire.CodeUnknownClient, "not registered")
			}
			return nil
		}
	})
	cfg := configFor(g)
	cfg.FirstMAC, cfg.Rate, cfg.Duration = 0x0a_00_00_00_00_00, 0, time.Millisecond
	cfg.Progress = func(p bench.Progress) {
		if p.Online == 9 && refused.Load() > 1 { // it was told once at least
			stop()
		}
	}
	r, err := bench.Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Connect.Connected != 9 || r.Connect.Failed != 1 || r.Errors["unknown_client"] != 1 || refused.Load() < 1 {
		t.Errorf("got %d connected, %d failed, %v, want the tenth refused", r.Connect.Connected, r.Connect.Failed, r.Errors)
	}
	if err := r.Err(); err == nil || err.Error() != "1 of 10 devices could not connect" {
		t.Errorf("Err: got %v", err)
	}
}

func TestNobodyConnects(t *testing.T) {
	checkLeaks(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var dials atomic.Int64
	_, err := bench.Run(ctx, bench.Config{Addr: "127.0.0.1:1", Devices: 1, BackoffBase: time.Millisecond,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials.Add(1) == 3 {
				stop()
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}})
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v, want the cause", err)
	}
}

func TestInterrupted(t *testing.T) {
	checkLeaks(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int64
	g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			if asked.Add(1) == 20 {
				cancel()
			}
			return &wire.Response{ID: req.ID, Body: req.Body}
		}
	})
	cfg := configFor(g)
	cfg.Duration, cfg.RequestTimeout = time.Hour, time.Minute
	r, err := bench.Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests.Sent < 20 || r.Requests.Sent != r.Requests.Answered || r.Err() != nil {
		t.Errorf("got %d sent, %d answered, %v, want what was sent answered", r.Requests.Sent, r.Requests.Answered, r.Err())
	}
}

func TestBodies(t *testing.T) {
	checkLeaks(t)
	for _, size := range []int{1, 40, 64, 1000} {
		sizes := make(chan int, 1000)
		g := echogateway.Start(t, true, func(g *echogateway.Gateway) {
			g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
				sizes <- len(req.Body)
				return &wire.Response{ID: req.ID, Body: req.Body}
			}
		})
		cfg := configFor(g)
		cfg.Size, cfg.Duration = size, 100*time.Millisecond
		if r := run(t, cfg); r.Err() != nil {
			t.Errorf("size %d: %v", size, r.Err())
		}
		got := <-sizes
		if want := max(size, 26); got != size && (size >= 64 || got > want) {
			t.Errorf("size %d: body of %d bytes", size, got)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]bench.Config{
		"no devices":        {Addr: "a:1"},
		"negative rate":     {Addr: "a:1", Devices: 1, Rate: -1},
		"negative duration": {Addr: "a:1", Devices: 1, Duration: -1},
		"size":              {Addr: "a:1", Devices: 1, Size: 1 << 20},
		"MACs run over":     {Addr: "a:1", Devices: 2, FirstMAC: 1<<48 - 1},
	} {
		if _, err := bench.Run(t.Context(), cfg); err == nil || !strings.HasPrefix(err.Error(), "bench: ") {
			t.Errorf("%s: got %v, want an error about it", name, err)
		}
	}
}
