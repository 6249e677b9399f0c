package stack

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/client"
)

// long asks for the full sizes: scripts/test long sets it.
var long = os.Getenv("GOSHIELD_TEST_LONG") != ""

func TestMain(m *testing.M) {
	if runElsewhere() {
		return
	}
	redistest.VerifyTestMain(m)
}

// log is everything that the stack under test has logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// Sync implements zapcore.WriteSyncer.
func (l *logBuffer) Sync() error { return nil }

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// fleet is the stack under test and what devices need to reach it.
type fleet struct {
	*Stack
	log *logBuffer
	tls *tls.Config
}

// quickDocument makes heartbeats frequent and every one of them rotate.
func quickDocument() dynamic.Document {
	doc := dynamic.Default()
	doc.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(time.Second), Missed: 10}
	doc.Token.RotateProbability = 1
	doc.DeviceLimit.Rate, doc.DeviceLimit.Burst = 1000, 1000
	return doc
}

// start runs a stack until the test ends; it must end cleanly.
func start(t *testing.T, doc dynamic.Document, redis []string) *fleet {
	t.Helper()
	return startIn(t, t.TempDir(), doc, redis)
}

func startIn(t *testing.T, dir string, doc dynamic.Document, redis []string) *fleet {
	t.Helper()
	return startWith(t, Config{Gateways: 2, DataDir: dir, Document: doc, Redis: redis})
}

// startWith fills in what cfg leaves open. All that is logged is kept. Calls to Redis may take long: all is one
// process here, which is slow when the machine is.
func startWith(t *testing.T, cfg Config) *fleet {
	t.Helper()
	if cfg.RedisTimeout == 0 {
		cfg.RedisTimeout = 10 * time.Second
	}
	return startLogging(t, cfg, zapcore.DebugLevel)
}

// startAsInProduction is startWith with the time for calls to Redis that services have in production.
func startAsInProduction(t *testing.T, doc dynamic.Document, redis []string) *fleet {
	t.Helper()
	return startLogging(t, Config{Gateways: 2, DataDir: t.TempDir(), Document: doc, Redis: redis}, zapcore.DebugLevel)
}

// startLogging keeps what is logged at that level and above. Every gateway reaches every backend when it returns: Start
// does not wait for that as long as a busy machine may take.
func startLogging(t *testing.T, cfg Config, level zapcore.Level) *fleet {
	t.Helper()
	f := startUnlinked(t, cfg, level)
	until(t, time.Minute, "the gateways reach the backends", f.linked)
	return f
}

// startUnlinked is startLogging for a document that names backends that are not there.
func startUnlinked(t *testing.T, cfg Config, level zapcore.Level) *fleet {
	t.Helper()
	logs := &logBuffer{}
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	cfg.free = func() string { return porttest.Held(t) }
	cfg.Listen, cfg.Push = cfg.free(), cfg.free() // of parts that are started again
	cfg.WebSocket, cfg.MQTT, cfg.Admin = anyPort, anyPort, anyPort
	cfg.Backends, cfg.DrainTimeout = 3, 30*time.Second
	cfg.Log = zap.New(zapcore.NewCore(encoder, logs, level))
	s, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if t.Failed() {
			text := logs.String()
			t.Logf("the stack's log ends with:\n%s", text[max(0, len(text)-4000):])
		}
	})
	ca, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("ca.pem holds no certificate")
	}
	return &fleet{Stack: s, log: logs, tls: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
}

// dial connects a device that, as devices do, comes again when it is told to: on a busy machine auth-service, or Redis, may
// not answer in time.
func dial(t *testing.T, cfg client.Config) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cfg.KeepDialing = true
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// eachRedis runs a test over the embedded Redis and, where there is one, a real cluster.
func eachRedis(t *testing.T, f func(t *testing.T, redis []string)) {
	t.Run("embedded", func(t *testing.T) { f(t, nil) })
	if addrs := redistest.ClusterAddrs(); len(addrs) > 0 {
		t.Run("cluster", func(t *testing.T) { f(t, addrs) })
	}
}

// load is a fleet of devices that ask for as long as the test says.
type load struct {
	result chan *bench.Result
	cancel context.CancelFunc

	mu     sync.Mutex
	latest bench.Progress
}

func (f *fleet) bench(devices int, rate float64, d time.Duration) bench.Config {
	return bench.Config{
		Addr: f.Addr(), TLS: f.tls, Devices: devices, Rate: rate, Duration: d, Connecting: 16,
		FirstMAC: firstMAC(), BackoffBase: 100 * time.Millisecond, BackoffCap: time.Second,
		RequestTimeout: time.Minute, // also while a busy machine lets a device wait for its next connection
	}
}

// macs keeps the devices of different tests apart: a real cluster remembers them.
var macs = struct {
	sync.Mutex
	next uint64
}{next: uint64(time.Now().UnixNano())}

func firstMAC() uint64 {
	macs.Lock()
	defer macs.Unlock()
	macs.next += 10_000
	return 0x02_00_00_00_00_00 | macs.next&0xff_ff_ff_ff_ff
}

// begin starts a load and waits until its devices are connected.
func begin(t *testing.T, cfg bench.Config) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{result: make(chan *bench.Result, 1), cancel: cancel}
	cfg.Progress = func(p bench.Progress) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.latest = p
	}
	go func() {
		r, err := bench.Run(ctx, cfg)
		if err != nil {
			t.Errorf("bench: %v", err)
		}
		l.result <- r
	}()
	t.Cleanup(cancel)
	l.wait(t, 5*time.Minute, "all devices are asking", func(p bench.Progress) bool { return p.Phase == "load" && p.Answered > 0 })
	return l
}

// now is how far the load was when it told last.
func (l *load) now() bench.Progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latest
}

// wait waits for something of the load's progress.
func (l *load) wait(t *testing.T, limit time.Duration, what string, ok func(bench.Progress) bool) bench.Progress {
	t.Helper()
	var p bench.Progress
	until(t, limit, what, func() bool {
		p = l.now()
		return ok(p)
	})
	return p
}

// end stops the load and returns what it measured.
func (l *load) end(t *testing.T) *bench.Result {
	t.Helper()
	l.cancel()
	select {
	case r := <-l.result:
		if r == nil {
			t.FailNow()
		}
		return r
	case <-time.After(3 * time.Minute):
		t.Fatal("the load did not end")
		return nil
	}
}

// until polls for a condition.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
}

// get reads a page of the stack.
func get(t *testing.T, url, bearer string) (int, string) {
	t.Helper()
	return call(t, http.MethodGet, url, bearer, "")
}

func call(t *testing.T, method, url, bearer, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	caller := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := caller.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
