package admin

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/leaktest"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestPages(t *testing.T) {
	defer leaktest.None(t)
	reg := prometheus.NewRegistry()
	health := NewHealth(reg, "redis", "auth")
	s := New("127.0.0.1:0", reg, zap.NewNop(), health)
	s.Mux().HandleFunc("GET /api/extra", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "extra") })
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Shutdown(context.Background()) }()
	url := "http://" + s.Addr()
	want := func(path string, status int, text string) {
		t.Helper()
		if code, body := get(t, url+path); code != status || !strings.Contains(body, text) {
			t.Errorf("%s: got %d %q, want %d and %q", path, code, body, status, text)
		}
	}
	want("/healthz", 200, "ok")
	want("/readyz", 503, "not ready: starting")
	health.SetReady()
	want("/readyz", 200, "ready\n")
	health.SetDegraded("redis", "no answer")
	want("/readyz", 200, "degraded: redis: no answer")
	want("/metrics", 200, `goshield_degraded{dependency="redis"} 1`)
	want("/metrics", 200, `goshield_degraded{dependency="auth"} 0`)
	health.SetNotReady("draining")
	want("/readyz", 503, "not ready: draining\ndegraded: redis: no answer\n")
	want("/debug/pprof/cmdline", 200, "")
	want("/api/extra", 200, "extra")
	want("/nonsense", 404, "")
}

func TestDegradedReportsChangesOnce(t *testing.T) {
	h := NewHealth(prometheus.NewRegistry(), "redis")
	for i, step := range []struct {
		wrong string
		want  bool
	}{{"", false}, {"away", true}, {"still away", false}, {"", true}, {"", false}} {
		if got := h.SetDegraded("redis", step.wrong); got != step.want {
			t.Errorf("step %d: changed %v, want %v", i, got, step.want)
		}
	}
	if got := testutil.ToFloat64(h.gauge.WithLabelValues("redis")); got != 0 {
		t.Errorf("gauge %v, want 0", got)
	}
}

func TestForget(t *testing.T) {
	reg := prometheus.NewRegistry()
	h := NewHealth(reg, "redis", "auth")
	h.SetReady()
	h.SetDegraded("redis", "away")
	h.Forget("redis")
	if _, text := h.Ready(); text != "ready\n" {
		t.Errorf("readiness = %q, want nothing of what was forgotten", text)
	}
	if n := testutil.CollectAndCount(h.gauge); n != 1 {
		t.Errorf("%d series, want that of auth", n)
	}
}

func TestSeveralHealthsAreReadyTogether(t *testing.T) {
	defer leaktest.None(t)
	one, two := NewHealth(prometheus.NewRegistry()), NewHealth(prometheus.NewRegistry())
	s := New("127.0.0.1:0", prometheus.NewRegistry(), zap.NewNop(), one, two)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Shutdown(context.Background()) }()
	one.SetReady()
	if code, _ := get(t, "http://"+s.Addr()+"/readyz"); code != 503 {
		t.Errorf("one of two ready: got %d, want 503", code)
	}
	two.SetReady()
	if code, _ := get(t, "http://"+s.Addr()+"/readyz"); code != 200 {
		t.Errorf("both ready: got %d, want 200", code)
	}
}

func TestShutdownWithoutStart(t *testing.T) {
	if err := New("127.0.0.1:0", prometheus.NewRegistry(), zap.NewNop()).Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// Who had connected when the server was told to end is answered: in a hot restart it would have been the next process,
// had it come a moment later.
func TestShutdownAnswersWhoHadConnected(t *testing.T) {
	defer leaktest.None(t)
	s := New("127.0.0.1:0", prometheus.NewRegistry(), zap.NewNop(), NewHealth(prometheus.NewRegistry()))
	s.silence = time.Minute
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	for deadline := time.Now().Add(time.Minute); s.arrivals.count() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not accepted within a minute")
		}
	}
	ended := make(chan error)
	go func() { ended <- s.Shutdown(t.Context()) }()
	<-s.done
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
		t.Errorf("answered %q, %v, want 200", answer, err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// Who has connected and says nothing does not hold up the end.
func TestShutdownOverASilentConnection(t *testing.T) {
	defer leaktest.None(t)
	s := New("127.0.0.1:0", prometheus.NewRegistry(), zap.NewNop(), NewHealth(prometheus.NewRegistry()))
	s.silence = 10 * time.Millisecond
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}
