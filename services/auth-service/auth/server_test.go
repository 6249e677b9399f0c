package auth_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
)

func TestMain(m *testing.M) {
	redisdb.LogTo(zap.NewNop()) // outages are what some tests are about
	redistest.VerifyTestMain(m)
}

const (
	gatewaySecret = "gateway-secret-of-the-tests"
	adminSecret   = "admin-secret-of-the-tests"
)

// world is an auth-service over a Redis, and all that it says.
type world struct {
	t       *testing.T
	srv     *auth.Server
	cfg     auth.Config
	metrics *prometheus.Registry
	log     *capture
	client  *http.Client
}

// capture keeps log lines, as JSON.
type capture struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *capture) Sync() error { return nil }

func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// lines are the log's entries of a logger.
func (c *capture) lines(t *testing.T, logger string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(c.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		if m["logger"] == logger {
			found = append(found, m)
		}
	}
	return found
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs an auth-service over rdb until the test ends.
func start(t *testing.T, rdb redisdb.Config, change func(*auth.Config)) *world {
	t.Helper()
	cfg := auth.DefaultConfig()
	cfg.Listen = porttest.Held(t) // which a test can give up
	cfg.Redis = rdb
	cfg.Redis.Timeout = 20 * time.Second
	cfg.Redis.DialTimeout = 20 * time.Second
	cfg.GatewaySecretFile = writeFile(t, gatewaySecret)
	cfg.AdminSecretFile = writeFile(t, adminSecret)
	if change != nil {
		change(&cfg)
	}
	w := &world{t: t, cfg: cfg, metrics: prometheus.NewRegistry(), log: &capture{}, client: &http.Client{Transport: &http.Transport{}}}
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), w.log, zapcore.DebugLevel)
	srv, err := auth.New(cfg, service.Deps{Log: zap.New(core), Metrics: w.metrics})
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	if err := srv.Start(); err != nil {
		t.Fatalf("Start() = %v", err)
	}
	srv.WaitFor(10 * time.Second) // a replica on a busy machine is late, not away
	w.srv = srv
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown() = %v, want nil", err)
		}
	})
	return w
}

// each runs a test over an auth-service on every Redis there is.
func each(t *testing.T, change func(*auth.Config), test func(t *testing.T, w *world)) {
	t.Run("embedded", func(t *testing.T) {
		e, _ := redistest.Embedded(t)
		test(t, start(t, e.Config(), change))
	})
	if addrs := redistest.ClusterAddrs(); addrs != nil {
		t.Run("cluster", func(t *testing.T) { test(t, start(t, redisdb.Config{Addresses: addrs}, change)) })
	}
}

// response is an answer, read.
type response struct {
	status int
	header http.Header
	body   []byte
}

// exchange makes a request; a body that is no io.Reader is sent as JSON.
func (w *world) exchange(method, path, bearer string, body any) (response, error) {
	reader, isReader := body.(io.Reader)
	if !isReader && body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return response{}, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://"+w.srv.Addr()+path, reader)
	if err != nil {
		return response{}, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, data}, err
}

// send is an exchange that gets an answer. Only the test's own goroutine may call it.
func (w *world) send(method, path, bearer string, body any) response {
	w.t.Helper()
	resp, err := w.exchange(method, path, bearer, body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

// ok makes a request that must be answered with status, and reads the answer into out (or not, if
// it is nil).
func (w *world) ok(status int, method, path, bearer string, body, out any) {
	w.t.Helper()
	resp := w.send(method, path, bearer, body)
	if resp.status != status {
		w.t.Fatalf("%s %s: status %d (%s), want %d", method, path, resp.status, resp.body, status)
	}
	if out != nil {
		if err := json.Unmarshal(resp.body, out); err != nil {
			w.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

// refused makes a request that must be answered with this problem.
func (w *world) refused(status int, code wire.Code, method, path, bearer string, body any) authapi.Problem {
	w.t.Helper()
	resp := w.send(method, path, bearer, body)
	var p authapi.Problem
	if err := json.Unmarshal(resp.body, &p); err != nil {
		w.t.Fatalf("%s %s: status %d, body %q: %v", method, path, resp.status, resp.body, err)
	}
	if resp.status != status || p.Status != status || p.Code != code {
		w.t.Errorf("%s %s: status %d, problem %+v; want %d, %s", method, path, resp.status, p, status, code)
	}
	if got := resp.header.Get("Content-Type"); got != authapi.ProblemType {
		w.t.Errorf("%s %s: Content-Type %q, want %q", method, path, got, authapi.ProblemType)
	}
	return p
}

// counter is the value of a counter or gauge with these label values, in the order of the names.
func (w *world) counter(name string, values ...string) float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if labelsAre(m, values) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func labelsAre(m *dto.Metric, values []string) bool {
	if len(m.GetLabel()) != len(values) {
		return false
	}
	for i, l := range m.GetLabel() {
		if l.GetValue() != values[i] {
			return false
		}
	}
	return true
}

func newID() (id wire.ClientID) {
	_, _ = rand.Read(id[:])
	return id
}

// enrol issues a token to a device of session n/1.
func (w *world) enrol(id wire.ClientID) authapi.IssueAnswer {
	w.t.Helper()
	var a authapi.IssueAnswer
	w.ok(http.StatusCreated, http.MethodPost, authapi.PathTokens, gatewaySecret,
		authapi.IssueRequest{ClientID: id, Owner: "n/1", RemoteIP: "192.0.2.1"}, &a)
	return a
}
