package balancer

// Start, drain and end.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/health"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/service"
)

var _ service.Server = (*Server)(nil)

func TestShutdownWaitsForConnections(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	r := start(t, testConfig(a.addr))
	r.waitUp(t, 1)
	c, _ := r.connect(t)
	ended := make(chan error, 1)
	go func() { ended <- r.Shutdown(shutdownContext(t)) }()
	eventually(t, "not ready", func() bool { ready, _ := r.Health().Ready(); return !ready })
	eventually(t, "the listener is closed", func() bool {
		conn, err := net.Dial("tcp", r.Addr("device"))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	c.echo(t)
	select {
	case err := <-ended:
		t.Fatalf("Shutdown returned %v with a connection open", err)
	default:
	}
	_ = c.Close()
	if err := <-ended; err != nil {
		t.Errorf("Shutdown = %v, want nil", err)
	}
	if err := r.Shutdown(shutdownContext(t)); err != nil {
		t.Errorf("second Shutdown = %v, want nil", err)
	}
}

func TestShutdownCutsWhatIsLeft(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	r := start(t, testConfig(a.addr))
	r.waitUp(t, 1)
	c, _ := r.connect(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := r.Shutdown(ctx)
	if want := "1 connections were cut: context deadline exceeded"; err == nil || err.Error() != want {
		t.Errorf("Shutdown = %v, want %s", err, want)
	}
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("the connection is still there")
	}
}

// Within the window new connections are taken, though readiness is off: those who
// send them may not have noticed yet.
func TestDrainWindow(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	cfg := testConfig(a.addr)
	cfg.Drain = Drain{Window: time.Hour, Timeout: time.Hour}
	r := start(t, cfg)
	r.waitUp(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Shutdown(ctx) }()
	eventually(t, "not ready", func() bool {
		ready, text := r.Health().Ready()
		return !ready && text == "not ready: draining\n"
	})
	c, _ := r.connect(t)
	c.echo(t)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown = %v, want %v", err, context.Canceled)
	}
}

func TestKill(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	r := start(t, testConfig(a.addr))
	r.waitUp(t, 1)
	c, _ := r.connect(t)
	r.Kill()
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("the connection is still there")
	}
	if _, err := net.Dial("tcp", r.Addr("device")); err == nil {
		t.Error("still listening")
	}
}

// What cannot be bound is named by its key, and nothing stays open.
func TestStartOnTakenAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free := porttest.Held(t)
	cfg := testConfig("127.0.0.1:1")
	cfg.Listeners = []Listener{{Name: "free", Address: free}, {Name: "taken", Address: taken.Addr().String()}}
	s, err := New(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	var ce *config.Error
	if err := s.Start(); !errors.As(err, &ce) || ce.Key != "listeners[1].address" {
		t.Fatalf("Start = %v, want an error of listeners[1].address", err)
	}
	if c, err := net.Dial("tcp", free); err == nil {
		_ = c.Close()
		t.Error("the other listener was left open")
	}
}

func TestVIPMetric(t *testing.T) {
	for _, tt := range []struct {
		vip  string
		want float64
	}{{"127.0.0.1", 1}, {"::ffff:127.0.0.1", 1}, {"192.0.2.1", 0}} {
		cfg := testConfig("127.0.0.1:1")
		cfg.VIP = tt.vip
		r := start(t, cfg)
		if got := r.sum("goshield_keepalived_master", nil); got != tt.want {
			t.Errorf("%s: goshield_keepalived_master = %v, want %v", tt.vip, got, tt.want)
		}
		r.Kill()
	}
}

// With the defaults, a gateway that no longer answers its checks gets no new
// connection after five seconds at most, whenever it froze.
func TestFrozenGatewayIsLeft(t *testing.T) {
	for at := time.Duration(0); at < time.Second; at += 50 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			frozen := time.Now().Add(3*time.Second + at)
			probe := func(ctx context.Context) error {
				if time.Now().Before(frozen) {
					return nil
				}
				<-ctx.Done()
				return ctx.Err()
			}
			down := make(chan time.Duration, 1)
			m := health.Start(probe, DefaultConfig().Health.rule(), func(c health.Change) {
				if c.To == health.Down {
					down <- time.Since(frozen)
				}
			})
			defer m.Stop()
			if took := <-down; took > 5*time.Second {
				t.Errorf("frozen %s after a second: left after %s, want at most 5s", at, took)
			}
		})
	}
}

// The names that dashboards and alerts rely on (docs/ARCHITECTURE.md).
func TestMetrics(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	r := start(t, testConfig(a.addr))
	r.waitUp(t, 1)
	c, _ := r.connect(t)
	c.echo(t)
	for _, tt := range []struct {
		name   string
		labels map[string]string
		want   float64
	}{
		{"goshield_lb_connections_total", map[string]string{"listener": "device", "upstream": a.addr}, 1},
		{"goshield_lb_connections", map[string]string{"listener": "device", "upstream": a.addr}, 1},
		{"goshield_lb_upstream_up", map[string]string{"upstream": a.addr}, 1},
		{"goshield_lb_bytes_total", map[string]string{"direction": "to_upstream"}, 5},
		{"goshield_lb_bytes_total", map[string]string{"direction": "to_client"}, float64(len("a "+c.LocalAddr().String()+"\n") + 5)},
		{"goshield_lb_connect_duration_seconds", nil, 1},
		{"goshield_lb_rejected_total", nil, 0},
		{"goshield_lb_closed_total", nil, 0},
	} {
		// Bytes are counted after they were written: they may be here first.
		eventually(t, fmt.Sprintf("%s%v = %v", tt.name, tt.labels, tt.want), func() bool { return r.sum(tt.name, tt.labels) == tt.want })
	}
	_ = c.Close()
	eventually(t, "the connection is counted as closed", func() bool {
		return r.sum("goshield_lb_connections", nil) == 0 && r.sum("goshield_lb_closed_total", map[string]string{"reason": "finished"}) == 1
	})
	if got := r.sum("goshield_lb_connections_total", nil); got != 1 {
		t.Errorf("connections = %v, want 1", got)
	}
}
