package balancer

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/health"
)

// With the defaults a new replica gets connections two seconds after it has become ready at the latest, whenever that
// is between two looks: whether its name tells of it then, or has done so for long.
func TestNewReplicaIsFoundWithinTwoSeconds(t *testing.T) {
	old, fresh := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::2")
	for _, listed := range []string{"when it is ready", "before"} {
		for at := time.Duration(0); at < time.Second; at += 90 * time.Millisecond {
			synctest.Test(t, func(t *testing.T) {
				ready := time.Now().Add(3*time.Second + at)
				isReady := func() bool { return !time.Now().Before(ready) }
				lookup := func(context.Context, string) ([]netip.Addr, error) {
					if listed == "before" || isReady() {
						return []netip.Addr{old, fresh}, nil
					}
					return []netip.Addr{old}, nil
				}
				probe := func(context.Context) error {
					time.Sleep(50 * time.Millisecond)
					if !isReady() {
						return errors.New("connection refused")
					}
					return nil
				}
				up := make(chan time.Duration, 1)
				var checked *health.Monitor
				upstreams := DefaultConfig().Upstreams
				upstreams.DNS = "gateway:8443"
				d := newDiscovery(upstreams, lookup, func(list []candidate) {
					if checked == nil && slices.ContainsFunc(list, func(c candidate) bool { return c.addr.Addr() == fresh }) {
						checked = health.Start(probe, DefaultConfig().Health.rule(), func(c health.Change) {
							if c.To == health.Up {
								up <- time.Since(ready)
							}
						})
					}
				}, func(error) {})
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					d.refresh(ctx)
					d.run(ctx)
				}()
				if took := <-up; took > 2*time.Second {
					t.Errorf("listed %s, ready %s after a second: gets connections after %s, want at most 2s", listed, at, took)
				}
				cancel()
				<-ended
				checked.Stop()
			})
		}
	}
}
