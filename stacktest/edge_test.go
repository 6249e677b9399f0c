package stacktest

// The device side: two load balancers, each with a keepalived, and the virtual IP between them.

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
)

func everyDoor(t *testing.T, s *stack) {
	for i, addr := range []string{"127.0.0.1:8443", "127.0.0.1:9443", vip + ":8443"} {
		f := startFleet(t, s.keys, visitors+i, 1, addr, client.MemoryStore())
		f.settle(t)
		f.stop()
	}
	t.Logf("the virtual IP is at %s", master(t))
	s.fleet.settle(t)
}

func other(side string) string { return map[string]string{"a": "b", "b": "a"}[side] }

// addressOf are the load balancers' own addresses on the device side.
var addressOf = map[string]string{"a": network + ".1.10", "b": network + ".1.11"}

// moves waits until the other side has the virtual IP, and says how long it took.
func moves(t *testing.T, from string) {
	t.Helper()
	took := await(t, "the virtual IP moves", time.Minute, func() error {
		if !has(other(from)) {
			return errors.New("the other side has not got it")
		}
		return nil
	})
	t.Logf("the virtual IP moved from %s within %v", from, took.Round(100*time.Millisecond))
}

// oneAgain waits until one side has the virtual IP, and says how long it took.
func oneAgain(t *testing.T) {
	t.Helper()
	start := time.Now()
	side := master(t)
	t.Logf("one master, %s, within %v", side, time.Since(start).Round(100*time.Millisecond))
}

// rollBalancers restarts the standby first. Nobody notices; when the active one goes, what is
// connected through the virtual IP breaks and comes back.
func rollBalancers(t *testing.T, s *stack) {
	side := master(t)
	s.unnoticed(t, func() { s.roll(t, name("lb-"+other(side))) })
	r := s.broken(t, func() { s.roll(t, name("lb-"+side)) })
	r.onlyLost(t)
	r.back(t, within10)
}

func balancerDies(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		side := master(t)
		docker(t, "kill", name("lb-"+side))
		moves(t, side)
	})
	r.onlyLost(t)
	r.back(t, within10)
}

// keepalivedDies kills it, so that it gives nothing away: the address stays where it was, too, until
// keepalived is started again. The other side's announcement draws the devices over.
func keepalivedDies(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		side := master(t)
		docker(t, "kill", name("keepalived-"+side))
		moves(t, side)
		s.fleet.settle(t)
		docker(t, "start", name("keepalived-"+side))
		oneAgain(t)
	})
	r.onlyLost(t)
	r.back(t, within10)
}

func balancerCutOff(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		side := master(t)
		docker(t, "network", "disconnect", "-f", project+"_edge", name("vip-"+side))
		moves(t, side)
		s.fleet.settle(t)
		docker(t, "network", "connect", "--ip", addressOf[side], project+"_edge", name("vip-"+side))
	})
	r.onlyLost(t)
	r.back(t, within10)
	up(t)
	oneAgain(t)
}

// vrrpCut lets neither hear the other. Both take the address, an alert says so, and devices are
// served by whichever they reach.
func vrrpCut(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		one := block(t, name("vip-a"), addressOf["b"])
		two := block(t, name("vip-b"), addressOf["a"])
		await(t, "two masters", time.Minute, func() error {
			if all := masters(); len(all) != 2 {
				return fmt.Errorf("masters: %v", all)
			}
			return nil
		})
		fires(t, "VIPWithTwoMasters")
		s.fleet.settle(t)
		one()
		two()
		oneAgain(t)
	})
	r.onlyLost(t)
	r.back(t, within10)
}

func balancerFreezes(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		side := master(t)
		docker(t, "pause", name("lb-"+side), name("keepalived-"+side))
		start := time.Now()
		moves(t, side)
		await(t, "a device that comes is served", time.Minute, func() error {
			return s.keys.visit(visitors, client.MemoryStore(), false, true)
		})
		t.Logf("a device that came was served within %v", time.Since(start).Round(100*time.Millisecond))
		s.fleet.settle(t)
		docker(t, "unpause", name("lb-"+side), name("keepalived-"+side))
		oneAgain(t)
	})
	r.onlyLost(t)
	r.back(t, within10)
}

// allComeBack has many devices reconnect at once, when the load balancer that had them all is lost.
func allComeBack(t *testing.T, s *stack) {
	n := 500
	if long {
		n = 5000
	}
	up(t)
	many := startFleetAt(t, 5*time.Second, s.keys, storm, n, vip+":8443", client.MemoryStore())
	many.settle(t)
	many.reset()
	side := master(t)
	docker(t, "kill", name("lb-"+side))
	took := await(t, "every device is connected anew", patience, func() error {
		waiting := 0
		for _, d := range many.devices {
			if d.connects.Load() == 0 {
				waiting++
			}
		}
		if waiting > 0 {
			return fmt.Errorf("%d devices wait", waiting)
		}
		return nil
	})
	t.Logf("%d devices were back within %v", n, took.Round(100*time.Millisecond))
	if took > time.Minute {
		t.Errorf("that took longer than a minute")
	}
	r := many.report()
	t.Log(r)
	if r.enrolled > 0 {
		t.Errorf("%d devices lost their token", r.enrolled)
	}
	many.stop()
	up(t)
	s.fleet.settle(t)
}
