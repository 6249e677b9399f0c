package stacktest

// Rolling restarts on the device side, of what stands beside the load balancers.

import (
	"fmt"
	"testing"
)

// rollKeepalived restarts the standby's first, which nobody notices. The active one's gives the virtual IP away, and does
// not take it back.
func rollKeepalived(t *testing.T, s *stack) {
	side := master(t)
	s.unnoticed(t, func() {
		s.roll(t, name("keepalived-"+other(side)))
		stays(t, side)
	})
	r := s.broken(t, func() {
		s.roll(t, name("keepalived-"+side))
		oneAgain(t)
		stays(t, other(side))
	})
	s.failedOver(t, r)
}

// rollOwners restarts the containers that own the addresses, by Compose, which restarts with them those that live in their
// network. The standby's side goes first; when the active one's goes, the virtual IP moves to it, which shows that it
// is whole again.
func rollOwners(t *testing.T, s *stack) {
	side := master(t)
	s.unnoticed(t, func() {
		restartSide(t, other(side))
		stays(t, side)
	})
	r := s.broken(t, func() {
		restartSide(t, side)
		s.fleet.settle(t)
		oneAgain(t)
		stays(t, other(side))
	})
	s.failedOver(t, r)
}

// restartSide restarts a side's owner of addresses, and waits until its load balancer is there: in the new network, for
// that is where the published port leads.
func restartSide(t *testing.T, side string) {
	t.Helper()
	compose(t, "restart", "vip-"+side)
	for _, service := range []string{"vip", "lb", "keepalived"} {
		healthy(t, name(service+"-"+side))
	}
	await(t, "lb-"+side+" answers and knows the gateways", patience, func() error {
		status, err := statusOf(side)
		if err == nil && len(status.up()) != replicas {
			err = fmt.Errorf("it knows %d gateways", len(status.up()))
		}
		return err
	})
}

// stays fails the test if a side has not got the virtual IP.
func stays(t *testing.T, side string) {
	t.Helper()
	if at := master(t); at != side {
		t.Errorf("the virtual IP is at %s, want %s", at, side)
	}
}
