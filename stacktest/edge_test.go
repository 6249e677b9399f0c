package stacktest

// The device side: two load balancers, each with a keepalived, and the virtual IP between them.

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
)

func other(side string) string { return map[string]string{"a": "b", "b": "a"}[side] }

// addressOf are the load balancers' own addresses on the device side.
var addressOf = map[string]string{"a": network + ".1.10", "b": network + ".1.11"}

// moves waits until the other side has the virtual IP, and says how long it took.
func moves(t *testing.T, from string) {
	t.Helper()
	took := await(t, "the virtual IP moves", patience, func() error {
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
	s.failedOver(t, r)
}

func balancerDies(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		side := master(t)
		docker(t, "kill", name("lb-"+side))
		moves(t, side)
	})
	s.failedOver(t, r)
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
	s.failedOver(t, r)
}

func balancerCutOff(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		side := master(t)
		docker(t, "network", "disconnect", "-f", project+"_edge", name("vip-"+side))
		moves(t, side)
		s.fleet.settle(t)
		docker(t, "network", "connect", "--ip", addressOf[side], project+"_edge", name("vip-"+side))
	})
	s.failedOver(t, r)
	up(t)
	oneAgain(t)
}

// vrrpCut lets neither hear the other. Both take the address, an alert says so, and devices are
// served by whichever they reach.
func vrrpCut(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		one := block(t, name("vip-a"), addressOf["b"])
		two := block(t, name("vip-b"), addressOf["a"])
		await(t, "two masters", patience, func() error {
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
	s.failedOver(t, r)
}

func balancerFreezes(t *testing.T, s *stack) {
	r := s.broken(t, func() {
		side := master(t)
		docker(t, "pause", name("lb-"+side), name("keepalived-"+side))
		start := time.Now()
		moves(t, side)
		await(t, "a device that comes is served", patience, func() error {
			_, err := s.keys.visit(once(s.keys.config(visitors, vip+":8443", client.MemoryStore()), 5*time.Second))
			return err
		})
		t.Logf("a device that came was served within %v", time.Since(start).Round(100*time.Millisecond))
		s.fleet.settle(t)
		docker(t, "unpause", name("lb-"+side), name("keepalived-"+side))
		oneAgain(t)
	})
	s.failedOver(t, r)
}

// failedOver holds what devices saw of a failover against what is promised, and keeps it for the report at the end.
func (s *stack) failedOver(t *testing.T, r report) {
	t.Helper()
	r.onlyLost(t)
	r.back(t, failoverLimit)
	t.Attr("longest_silence", r.silence())
	s.failovers = append(s.failovers, r.gaps...)
}

// reportFailovers tells what devices saw of all of them.
func (s *stack) reportFailovers(t *testing.T) {
	if len(s.failovers) > 0 {
		slices.Sort(s.failovers)
		t.Attr("longest_silence_in_failovers", report{gaps: s.failovers}.silence())
	}
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
	t.Attr("devices_back", fmt.Sprintf("%d within %v", n, took.Round(100*time.Millisecond)))
	if long && took > time.Minute { // the promise is about the full number
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
