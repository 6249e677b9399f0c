package gateway

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
)

func TestDrainWithoutDevicesTakesNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testDoc())
		begun := time.Now()
		if err := r.Shutdown(t.Context()); err != nil {
			t.Errorf("shutdown = %v, want nil", err)
		}
		if took := time.Since(begun); took > 0 {
			t.Errorf("shutdown took %v, want no time", took)
		}
		if ready, text := r.Health().Ready(); ready {
			t.Errorf("readiness = %q, want not ready", text)
		}
	})
}

// Devices that obey GOAWAY lose nothing.
func TestDrainSendsDevicesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testDoc())
		var devices []*device
		for i := range byte(20) {
			devices = append(devices, r.enrolled(t, clientID(i)))
		}
		done := make(chan error, 1)
		go func() { done <- r.Shutdown(t.Context()) }()
		var earliest, latest time.Duration = time.Hour, 0
		for _, d := range devices {
			var g wire.Goaway
			d.want(&g)
			if g.Reason != reasonDraining {
				t.Errorf("reason = %q, want %q", g.Reason, reasonDraining)
			}
			earliest, latest = min(earliest, g.After), max(latest, g.After)
			d.roundTrip(1) // served as ever until then
			go func() {
				time.Sleep(g.After)
				_ = d.conn.Close()
			}()
		}
		if earliest < leaveLead || earliest > 12*time.Second || latest < 13*time.Second || latest > 20*time.Second {
			t.Errorf("after_ms from %v to %v, want them spread over 20 s, from %v on", earliest, latest, leaveLead)
		}
		// Who comes meanwhile is served, and sent away soon, but not before load balancers know better.
		const passed = 2 * time.Second
		for i, least := range []time.Duration{leaveLead, leaveLead - passed, 0} {
			late := r.enrolled(t, clientID(90+byte(i)))
			var g wire.Goaway
			late.want(&g)
			if g.After < least || g.After > least+lateWindow {
				t.Errorf("after_ms of a late device = %v, want from %v to %v", g.After, least, least+lateWindow)
			}
			late.roundTrip(1)
			_ = late.conn.Close()
			time.Sleep(passed)
			if i == 1 {
				time.Sleep(leaveLead)
			}
		}
		begun := time.Now()
		if err := <-done; err != nil {
			t.Errorf("shutdown = %v, want nil", err)
		}
		if took := time.Since(begun); took > 21*time.Second {
			t.Errorf("shutdown took %v, want it to end with the last device", took)
		}
	})
}

// Devices that do not are refused after their time, and closed a little later.
func TestDrainClosesThoseWhoStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testDoc())
		d := r.enrolled(t, clientID(1))
		r.router.holding(true)
		d.request(1, `1`)
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- r.Shutdown(t.Context()) }()
		var g wire.Goaway
		d.want(&g)
		time.Sleep(g.After + time.Millisecond)
		d.request(2, `2`)
		if e := d.wantError(wire.CodeShuttingDown); !e.HasID || e.ID != 2 || e.Close {
			t.Errorf("error = %+v, want id 2, close false", e)
		}
		time.Sleep(leaveGrace + time.Second)
		d.quiet(time.Second) // what is in flight is still awaited
		r.router.answerAll()
		var resp wire.Response
		d.want(&resp)
		d.wantEnd()
		if err := <-done; err != nil {
			t.Errorf("shutdown = %v, want nil", err)
		}
	})
}

// Whatever is still there at the timeout is closed, in the middle of a request if need be.
func TestDrainStopsHardAtTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testDoc())
		// Before the end of leaveGrace and of timings.finish, whenever in the window the device is told to go.
		const timeout = 30 * time.Second
		r.cfg.Drain.Timeout = timeout
		d := r.enrolled(t, clientID(1))
		r.router.holding(true)
		d.request(1, `1`)
		synctest.Wait()
		begun := time.Now()
		err := r.Shutdown(t.Context())
		if err == nil {
			t.Error("shutdown = nil, want an error that says what was cut short")
		}
		if took := time.Since(begun); took < timeout || took > timeout+time.Second {
			t.Errorf("shutdown took %v, want %v", took, timeout)
		}
		var g wire.Goaway
		d.want(&g)
		d.wantEnd()
		if got := r.closed(closedShutdown); got != 1 {
			t.Errorf("closed_total{shutdown} = %v, want 1", got)
		}
	})
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testDoc())
		r.enrolled(t, clientID(1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := r.Shutdown(ctx); err == nil {
			t.Error("shutdown = nil, want an error")
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("shutdown took %v, want 1 s", took)
		}
	})
}

// A drain that leaves little time after its window gives devices less of it.
func TestDrainShortensTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testDoc())
		r.cfg.Drain = Drain{Timeout: 4 * time.Second}
		d := r.enrolled(t, clientID(1))
		begun := time.Now()
		if err := r.Shutdown(t.Context()); err != nil {
			t.Errorf("shutdown = %v, want nil: who stays is closed before its timeout", err)
		}
		wantAfter(t, "shutdown ended", begun, 2*time.Second)
		var g wire.Goaway
		d.want(&g)
		d.wantEnd()
	})
}

// A device is asked to go once, whoever asks.
func TestGoawayComesOnce(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		ses := r.table.find(clientID(1))
		if !ses.goAway(reasonRebalance, time.Minute, leaveGrace) {
			t.Error("goAway = false, want the device to be asked")
		}
		var g wire.Goaway
		d.want(&g)
		if ses.goAway(reasonDraining, 0, 0) {
			t.Error("goAway again = true, want false")
		}
		d.quiet(10 * time.Second)
		d.roundTrip(1) // until what it was told first
	})
}

// lastRouter looks whether documents are still followed when the router ends, which then takes none.
type lastRouter struct {
	routes
	shutdown func()
}

func (r *lastRouter) Shutdown(ctx context.Context) error {
	r.shutdown()
	return r.routes.Shutdown(ctx)
}

// A document that came while a gateway drained was refused by its router and said to be faulty.
func TestNoDocumentForARouterThatEnds(t *testing.T) {
	for name, end := range map[string]func(*Server) error{
		"shutdown": func(s *Server) error { return s.Shutdown(t.Context()) },
		"kill":     func(s *Server) error { s.Kill(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, testDoc())
			s, err := New(w.config("gw-1"), service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
			if err != nil {
				t.Fatal(err)
			}
			asked := false
			s.router = &lastRouter{s.router, func() {
				asked = true
				select {
				case <-s.followed.ended:
				default:
					t.Error("the router ends while documents are put in force")
				}
			}}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			if err := end(s); err != nil {
				t.Fatal(err)
			}
			if !asked {
				t.Error("the router was not shut down")
			}
		})
	}
}

// wantDrained ends a gateway whose only device goes when it is told to.
func wantDrained(t *testing.T, s *Server, d *device) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(t.Context()) }() // ends when the device has gone
	var away wire.Goaway
	d.want(&away)
	d.send(&wire.Bye{})
	d.wantEnd()
	if err := <-done; err != nil {
		t.Errorf("shutdown = %v, want nil", err)
	}
}
