package stack

// Gateways that are replaced on purpose: RELIABILITY rows 23 and 24.

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/bench"
)

// up reports whether the load balancer sends connections to a gateway.
func (f *fleet) up(gateway int) bool {
	families, err := f.reg.Gather()
	if err != nil {
		return false // a part has just begun or ended
	}
	for _, family := range families {
		if family.GetName() != "goshield_lb_upstream_up" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "upstream" && l.GetValue() == f.gateways[gateway].addr {
					return m.GetGauge().GetValue() == 1
				}
			}
		}
	}
	return false
}

// Row 23: every gateway is replaced, one after the other, under load. No request fails.
func TestEveryGatewayReplaced(t *testing.T) {
	t.Parallel() // it waits most of the time, and so does the next one
	f := startWith(t, Config{Gateways: 3, DataDir: t.TempDir(), Document: quickDocument()})
	const devices = 40
	l := begin(t, f.bench(devices, 200, 10*time.Minute))
	for i := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := f.DrainGateway(ctx, i); err != nil {
			t.Errorf("drain of gateway %d: %v", i, err)
		}
		cancel()
		if err := f.StartGateway(i); err != nil {
			t.Fatal(err)
		}
		until(t, time.Minute, "the balancer takes the gateway back", func() bool { return f.up(i) })
		l.goesOn(t, 100)
	}
	l.wait(t, time.Minute, "every device is online", func(p bench.Progress) bool { return p.Online == devices })
	l.unharmed(t)
}

// Row 24: two of three gateways drain at once. Each of their devices moves once, to the third.
func TestTwoGatewaysDrained(t *testing.T) {
	t.Parallel()
	// Devices begin to leave when half of the window, and 5 s at most, have passed.
	const window, lead = 10 * time.Second, 5 * time.Second
	f := startWith(t, Config{Gateways: 3, DataDir: t.TempDir(), Document: quickDocument(), DrainWindow: window})
	const devices = 60
	l := begin(t, f.bench(devices, 100, 10*time.Minute))
	moving := int64(f.sessions("gateway-2") + f.sessions("gateway-3"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	began := time.Now()
	var draining sync.WaitGroup
	defer draining.Wait() // before the stack ends, if the test fails
	for _, i := range []int{1, 2} {
		draining.Go(func() {
			if err := f.DrainGateway(ctx, i); err != nil {
				t.Errorf("drain of gateway %d: %v", i, err)
			}
		})
	}
	until(t, time.Minute, "the balancer has left both", func() bool { return !f.up(1) && !f.up(2) })
	noticed := time.Since(began)
	draining.Wait()
	l.wait(t, time.Minute, "every device is online", func(p bench.Progress) bool { return p.Online == devices })
	l.goesOn(t, 100)
	until(t, time.Minute, "the gateway that is left has every device", func() bool { return f.sessions("gateway-1") == devices })
	r := l.end(t)
	delete(r.Errors, "interrupted") // by the end of the test
	if len(r.Errors) != 0 || r.Requests.Wrong != 0 || r.Sessions.EnrolledAnew != 0 {
		t.Errorf("errors %v %v, %d wrong answers, %d enrolled anew; want none", r.Errors, r.Samples, r.Requests.Wrong, r.Sessions.EnrolledAnew)
	}
	if moving == 0 || r.Sessions.Reconnects < moving {
		t.Errorf("%d reconnects of %d devices, want one each", r.Sessions.Reconnects, moving)
	}
	// On a machine so short of time that the balancer has not asked three times within 5 s, a device may be sent
	// from one to the other.
	if noticed < lead && r.Sessions.Reconnects != moving {
		t.Errorf("%d reconnects of %d devices, want one each: the balancer had left both gateways after %v", r.Sessions.Reconnects, moving, noticed)
	}
}
