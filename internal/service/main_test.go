package service

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/leaktest"
)

type fakeConfig struct {
	Admin string `yaml:"admin"`
	Fail  string `yaml:"fail"`
}

func (c *fakeConfig) Validate() error {
	if c.Fail == "validate" {
		return config.Errorf("fail", "must not be validate")
	}
	return nil
}

// fakeService drains until it is let go.
type fakeService struct {
	cfg     fakeConfig
	health  *admin.Health
	started chan struct{}
	letGo   chan struct{}
}

func (s *fakeService) Start() error {
	if s.cfg.Fail == "start" {
		return config.Errorf("listen", "address already in use")
	}
	s.health.SetReady()
	close(s.started)
	return nil
}

func (s *fakeService) Shutdown(ctx context.Context) error {
	s.health.SetNotReady("draining")
	select {
	case <-s.letGo:
		return nil
	case <-ctx.Done():
		return errors.New("cut short")
	}
}
func (s *fakeService) Health() *admin.Health        { return s.health }
func (s *fakeService) RegisterAdmin(*http.ServeMux) {}

func process(s *fakeService, drain time.Duration) Process[fakeConfig] {
	return Process[fakeConfig]{
		Name:     "fake",
		Defaults: func() fakeConfig { return fakeConfig{Admin: "127.0.0.1:0"} },
		New: func(cfg fakeConfig, deps Deps) (Server, error) {
			s.cfg, s.health = cfg, admin.NewHealth(deps.Metrics)
			return s, nil
		},
		Admin: func(c *fakeConfig) string { return c.Admin },
		Drain: func(*fakeConfig) time.Duration { return drain },
	}
}

func newFake() *fakeService {
	return &fakeService{started: make(chan struct{}), letGo: make(chan struct{})}
}

func TestFlags(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "fake.yaml")
	if err := os.WriteFile(bad, []byte("fail: validate\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		env  []string
		code int
		out  string // in stdout
		err  string // in stderr
	}{
		{"version", []string{"--version"}, nil, 0, "fake ", ""},
		{"check", []string{"--check-config"}, nil, 0, "configuration ok", ""},
		{"check of a bad file", []string{"--check-config", "--config", bad}, nil, 2, "", "fake: fake.yaml: fail: must not be validate"},
		{"bad environment", []string{"--check-config"}, []string{"GOSHIELD_FAIL=validate"}, 2, "", "fail: must not be validate"},
		{"missing file", []string{"--config", dir + "/none.yaml"}, nil, 2, "", "none.yaml"},
		{"unknown flag", []string{"--nonsense"}, nil, 2, "", "nonsense"},
		{"argument", []string{"extra"}, nil, 2, "", `unexpected argument "extra"`},
		{"help", []string{"--help"}, nil, 0, "", "-check-config"},
		{"probe of nothing", []string{"--probe", "http://127.0.0.1:1/readyz"}, nil, 1, "", "127.0.0.1:1"},
		{"start fails", nil, []string{"GOSHIELD_FAIL=start"}, 1, "", "listen: address already in use"},
	} {
		stderr, err := os.CreateTemp(dir, "stderr")
		if err != nil {
			t.Fatal(err)
		}
		var stdout bytes.Buffer
		code := run(process(newFake(), time.Second), tt.args, tt.env, &stdout, stderr)
		text, _ := os.ReadFile(stderr.Name())
		_ = stderr.Close()
		if code != tt.code || !strings.Contains(stdout.String(), tt.out) || !strings.Contains(string(text), tt.err) {
			t.Errorf("%s: got %d, stdout %q, stderr %q; want %d, %q, %q", tt.name, code, stdout.String(), text, tt.code, tt.out, tt.err)
		}
	}
}

func TestSignals(t *testing.T) {
	for _, tt := range []struct {
		name  string
		drain time.Duration
		after func(s *fakeService, signals chan<- os.Signal)
		want  string // in the error; "" for none
	}{
		{"drains", time.Minute, func(s *fakeService, _ chan<- os.Signal) { close(s.letGo) }, ""},
		{"a second signal ends it at once", time.Minute, func(s *fakeService, c chan<- os.Signal) { c <- syscall.SIGTERM }, "second signal"},
		{"the drain has an end", time.Millisecond, func(*fakeService, chan<- os.Signal) {}, "cut short"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newFake()
			signals := make(chan os.Signal, 2)
			ended := make(chan error, 1)
			go func() {
				r := running[fakeConfig]{Process: process(s, tt.drain), log: zap.NewNop(), ends: signals}
				ended <- r.serve(fakeConfig{Admin: "127.0.0.1:0"})
			}()
			<-s.started
			signals <- syscall.SIGTERM
			tt.after(s, signals)
			select {
			case err := <-ended:
				if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("did not end")
			}
		})
	}
	leaktest.None(t, goleak.IgnoreTopFunction("github.com/goshield/goshield/internal/service.(*fakeService).Shutdown"))
}

// reloadable takes a configuration while it runs, unless it says fail.
type reloadable struct {
	*fakeService
	told chan fakeConfig
}

func (s reloadable) Reload(cfg fakeConfig) error {
	s.told <- cfg
	if cfg.Fail == "reload" {
		return config.Errorf("fail", "cannot be reload")
	}
	return nil
}

// SIGHUP brings the configuration as it is then into force. What cannot be used is named in the
// log, once, and changes nothing; the drain is that of the configuration in force.
func TestReload(t *testing.T) {
	core, all := observer.New(zapcore.InfoLevel)
	s := newFake()
	srv := reloadable{s, make(chan fakeConfig, 1)}
	p := process(s, 0)
	p.New = func(cfg fakeConfig, deps Deps) (Server, error) {
		s.cfg, s.health = cfg, admin.NewHealth(deps.Metrics)
		return srv, nil
	}
	drained := make(chan fakeConfig, 1)
	p.Drain = func(cfg *fakeConfig) time.Duration {
		drained <- *cfg
		return time.Minute
	}
	loads := make(chan fakeConfig, 1)
	r := running[fakeConfig]{
		Process: p, log: zap.New(core), ends: make(chan os.Signal, 2), reloads: make(chan os.Signal, 1),
		load: func() (fakeConfig, error) {
			cfg := <-loads
			return cfg, cfg.Validate()
		},
	}
	defer signal.Stop(r.reloads)
	ended := make(chan error, 1)
	go func() { ended <- r.serve(fakeConfig{Admin: "127.0.0.1:0"}) }()
	<-s.started
	logged := func() []observer.LoggedEntry {
		return all.Filter(func(e observer.LoggedEntry) bool { return strings.Contains(e.Message, "reload") }).All()
	}
	hangUp := func(cfg fakeConfig, message, reason string) {
		t.Helper()
		before := len(logged())
		loads <- cfg
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(30 * time.Second); len(logged()) == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nothing was logged of the reload")
			}
		}
		entry := logged()[before]
		if got, _ := entry.ContextMap()["error"].(string); entry.Message != message || got != reason {
			t.Errorf("logged %q, error %q; want %q, %q", entry.Message, got, message, reason)
		}
	}
	const kept = "cannot reload the configuration, the one before stays in force"
	hangUp(fakeConfig{Fail: "validate"}, kept, "fail: must not be validate")
	hangUp(fakeConfig{Fail: "later"}, "configuration reloaded", "")
	if got := <-srv.told; got.Fail != "later" {
		t.Errorf("the service was told %+v, want later", got)
	}
	hangUp(fakeConfig{Fail: "reload"}, kept, "fail: cannot be reload")
	<-srv.told
	r.ends <- syscall.SIGTERM
	close(s.letGo)
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	if got := <-drained; got.Fail != "later" {
		t.Errorf("drained as %+v says, want the last one that could be used", got)
	}
}

func TestProbe(t *testing.T) {
	health := admin.NewHealth(prometheus.NewRegistry())
	adm := admin.New("127.0.0.1:0", prometheus.NewRegistry(), zap.NewNop(), health)
	if err := adm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = adm.Shutdown(context.Background()) }()
	url := "http://" + adm.Addr() + "/readyz"
	if err := probe(url, time.Minute); err == nil || !strings.Contains(err.Error(), "not ready: starting") {
		t.Errorf("not ready: got %v, want the reason", err)
	}
	health.SetReady()
	if err := probe(url, time.Minute); err != nil {
		t.Errorf("ready: got %v", err)
	}
}
