package stacktest

// Gateways, auth-service and backends.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

func scaleGateways(t *testing.T, s *stack) {
	s.noneFailed(t, func() {
		for _, n := range []int{5, 2} {
			up(t, "--scale", fmt.Sprintf("gateway=%d", n))
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

// twoGatewaysDrain stops two of four at once. Their devices are asked to go elsewhere, and each goes once.
func twoGatewaysDrain(t *testing.T, s *stack) {
	s.noneFailed(t, func() {
		up(t, "--scale", "gateway=4")
		s.levelled(t, 4)
		side := master(t)
		all := containers(t, "gateway")
		leaving := all[2:] // those that scaling back takes
		moving := int64(0)
		for _, gateway := range leaving {
			n, err := sessions(t, gateway)
			if err != nil {
				t.Fatal(err)
			}
			moving += n
		}
		moved := rebalanced(t)
		s.fleet.reset()
		start := time.Now() // before they begin to drain
		noticed := make(chan time.Duration, 1)
		go func() { noticed <- leftWithin(side, start, len(all)-len(leaving)) }()
		docker(t, append([]string{"stop", "-t", "60"}, leaving...)...)
		s.fleet.settle(t)
		took := <-noticed
		moved = rebalanced(t) - moved
		r := s.fleet.report()
		t.Logf("the load balancer had left both gateways within %v; %d devices moved, %d to even out", took.Round(10*time.Millisecond), moving, moved)
		// Devices begin to leave after half of the drain's window. If the load balancer has not noticed by then, as may
		// happen on a machine short of time, one may be sent from one to the other.
		if moving == 0 || r.connects < moving || r.connects > moving+moved && took < 5*time.Second {
			t.Errorf("%d reconnects of %d devices, want one each", r.connects, moving)
		}
	})
}

// sessions are the devices that a gateway has.
func sessions(t *testing.T, gateway string) (n int64, err error) {
	t.Helper()
	body, err := get("http://" + addressIn(t, gateway, "inside") + ":9090/metrics")
	for _, state := range []string{"active", "parked"} {
		if err == nil {
			var value int64
			value, err = metric(body, fmt.Sprintf("goshield_gateway_connections{state=%q}", state))
			n += value
		}
	}
	return n, err
}

// metric finds the value of a series in what /metrics answers. One that is not there is 0.
func metric(body, series string) (int64, error) {
	_, rest, found := strings.Cut(body, "\n"+series+" ")
	if !found {
		return 0, nil
	}
	var value float64 // large ones are written with an exponent
	_, err := fmt.Sscan(rest, &value)
	return int64(value), err
}

// levelled waits until the load balancers know so many gateways, each has devices, and nobody moves any more.
func (s *stack) levelled(t *testing.T, gateways int) {
	t.Helper()
	const quiet = 5 * time.Second // longer than who is asked to move takes
	var since time.Time
	connects := int64(-1)
	names := containers(t, "gateway")
	await(t, "the devices are spread and stay where they are", patience, func() error {
		if now := s.fleet.report().connects; now != connects {
			connects, since = now, time.Now()
		}
		for side := range adminOf {
			status, err := statusOf(side)
			if err != nil {
				return err
			}
			up := status.up()
			if len(up) != gateways || len(status.Rebalancing) > 0 || slices.ContainsFunc(up, func(u upstream) bool { return u.Share < 1 }) {
				return fmt.Errorf("lb-%s: %+v", side, status)
			}
		}
		for _, gateway := range names {
			if n, err := sessions(t, gateway); err != nil || n == 0 {
				return fmt.Errorf("%s has %d devices (%v)", gateway, n, err)
			}
		}
		if time.Since(since) < quiet {
			return errors.New("devices move")
		}
		return nil
	})
}

// leftWithin waits until a side's load balancer has no more than so many gateways, and returns the time since start.
func leftWithin(side string, start time.Time, gateways int) time.Duration {
	for {
		status, err := statusOf(side)
		if took := time.Since(start); err == nil && len(status.up()) <= gateways || took > patience {
			return took
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// rebalanced is how many devices the load balancers have ever moved to even out.
func rebalanced(t *testing.T) (n int64) {
	t.Helper()
	for _, page := range adminOf {
		body, err := get(page + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		moved, err := metric(body, "goshield_lb_rebalance_moved_total")
		if err != nil {
			t.Fatal(err)
		}
		n += moved
	}
	return n
}

func rollOthers(t *testing.T, s *stack) {
	s.noneFailed(t, func() {
		s.roll(t, containers(t, "auth-service")...)
		s.roll(t, containers(t, "echo-backend")...)
		s.roll(t, name("prometheus"), name("alertmanager"), name("redis-exporter"))
	})
}

func gatewayDies(t *testing.T, s *stack) {
	r := s.broken(t, func() { docker(t, "kill", containers(t, "gateway")[0]) })
	r.onlyLost(t)
	r.back(t, failoverLimit)
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
			await(t, "lb-"+side+" leaves the frozen gateway", patience, func() error {
				body, err := get(adminOf[side] + "/metrics")
				if err == nil && !strings.Contains(body, fmt.Sprintf("goshield_lb_upstream_up{upstream=%q} 0\n", upstream)) {
					err = errors.New("it has not")
				}
				return err
			})
		}
		promised(t, "the load balancers leave the frozen gateway", time.Since(start), 5*time.Second)
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

// authReplicaLost ends one of two auth-services. Its name goes with it, and an alert tells of it all the same.
func authReplicaLost(t *testing.T, s *stack) {
	const job = `job="auth-service"`
	s.unnoticed(t, func() {
		if found, err := firing("ReplicaLost", job); err != nil || len(found) > 0 {
			t.Errorf("ReplicaLost of auth-service before one is lost: %v, %v", found, err)
		}
		victim := containers(t, "auth-service")[1]
		docker(t, "stop", victim)
		startFleet(t, s.keys, visitors, 3, vip+":8443", client.MemoryStore()).stop() // the other one lets devices in
		fires(t, "ReplicaLost", job)
		if found, err := firing("PartMissing", job); err != nil || len(found) > 0 {
			t.Errorf("PartMissing, while one is left: %v, %v", found, err)
		}
		docker(t, "start", victim)
		ends(t, "ReplicaLost", job)
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
	cfg := once(s.keys.config(visitors, vip+":8443", client.MemoryStore()), time.Minute)
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
