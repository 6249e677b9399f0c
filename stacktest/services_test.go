package stacktest

// Gateways, auth-service and backends.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

func scaleGateways(t *testing.T, s *stack) {
	s.noneFailed(t, func() {
		for _, n := range []int{5, 2} {
			up(t, "--no-recreate", "--scale", fmt.Sprintf("gateway=%d", n))
			if got := len(containers(t, "gateway")); got != n {
				t.Errorf("%d gateways, want %d", got, n)
			}
			s.fleet.settle(t)
		}
	})
}

func rollGateways(t *testing.T, s *stack) {
	s.noneFailed(t, func() { s.roll(t, containers(t, "gateway")...) })
}

func rollOthers(t *testing.T, s *stack) {
	s.noneFailed(t, func() {
		s.roll(t, containers(t, "auth-service")...)
		s.roll(t, containers(t, "echo-backend")...)
	})
}

func gatewayDies(t *testing.T, s *stack) {
	r := s.broken(t, func() { docker(t, "kill", containers(t, "gateway")[0]) })
	r.onlyLost(t)
	r.back(t, within10)
}

// gatewayFreezes stops one for half a minute. New connections go elsewhere; devices that it had
// wait, or come back to another one. Awake again, it must know whose sessions are no longer its own.
func gatewayFreezes(t *testing.T, s *stack) {
	victim := containers(t, "gateway")[0]
	upstream := addressIn(t, victim, "inside") + ":8443"
	r := s.broken(t, func() {
		docker(t, "pause", victim)
		start := time.Now()
		for _, side := range []string{"a", "b"} {
			await(t, "lb-"+side+" leaves the frozen gateway", time.Minute, func() error {
				body, err := get(adminOf[side] + "/metrics")
				if err == nil && !strings.Contains(body, fmt.Sprintf("goshield_lb_upstream_up{upstream=%q} 0\n", upstream)) {
					err = errors.New("it has not")
				}
				return err
			})
		}
		t.Logf("the load balancers left it within %v", time.Since(start).Round(100*time.Millisecond))
		f := startFleet(t, s.keys, visitors, 5, vip+":8443", client.MemoryStore())
		f.settle(t)
		f.stop()
		time.Sleep(time.Until(start.Add(30 * time.Second)))
		docker(t, "unpause", victim)
	})
	// A request that the frozen one had ends with the device's own patience.
	r.onlyLost(t)
	await(t, "each device has one session", patience, func() error {
		sessions, err := series(`sum(goshield_gateway_connections{state=~"active|parked"})`)
		if err == nil && (len(sessions) != 1 || sessions[0] != fmt.Sprint(devices)) {
			err = fmt.Errorf("%v sessions, want %d", sessions, devices)
		}
		return err
	})
}

func authGone(t *testing.T, s *stack) {
	s.unnoticed(t, func() {
		compose(t, "kill", "auth-service")
		refusedWithHint(t, s)
		s.fleet.settle(t)
		compose(t, "start", "auth-service")
	})
	startFleet(t, s.keys, visitors, 3, vip+":8443", client.MemoryStore()).stop()
}

// refusedWithHint lets a new device knock, which must be told to come again, and when.
func refusedWithHint(t *testing.T, s *stack) {
	t.Helper()
	cfg := s.keys.config(visitors, vip+":8443", client.MemoryStore())
	cfg.KeepDialing = false
	cfg.ConnectTimeout = 10 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := client.Dial(ctx, cfg)
	var refusal *wire.Error
	switch {
	case err == nil:
		_ = c.Close()
		t.Error("a new device was let in")
	case !errors.As(err, &refusal):
		t.Errorf("a new device was not told why: %v", err)
	case refusal.Code != wire.CodeAuthUnavailable || refusal.RetryAfter <= 0:
		t.Errorf("a new device was told %s, to come again after %v, want %s and a time", refusal.Code, refusal.RetryAfter, wire.CodeAuthUnavailable)
	default:
		t.Logf("a new device was told to come again after %v", refusal.RetryAfter)
	}
}
