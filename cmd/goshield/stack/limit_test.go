package stack

import (
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/internal/dynamic"
)

// Row 51: three gateways let through what one limit allows, and not much less.
func TestServiceLimitOverThreeGateways(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		const gateways, rate, burst = 3, 60.0, 30.0
		const batch = 3 // a twentieth of the rate
		doc := quickDocument()
		doc.Services = map[string]dynamic.Service{"echo": {Limit: dynamic.Bucket{Rate: rate, Burst: burst}}}
		f := startWith(t, Config{Gateways: gateways, DataDir: t.TempDir(), Document: doc, Redis: redis})
		began := time.Now()
		var r *bench.Result
		if long {
			r = runBench(t, f.bench(30, 4*rate, time.Minute))
			if least := rate * 60 / 2; float64(r.Requests.Answered) < least {
				t.Errorf("%d requests were answered, want at least %.0f: %v", r.Requests.Answered, least, r.Errors)
			}
		} else { // what a machine that stood still did not ask for is lost: it asks on
			l := begin(t, f.bench(30, 4*rate, 10*time.Minute))
			l.wait(t, 3*time.Minute, "as much as the limit allows in some seconds is answered", func(p bench.Progress) bool {
				return p.Answered >= int64(5*rate)
			})
			r = l.end(t)
		}
		window := time.Since(began).Seconds()
		most := burst + rate*window + gateways*batch
		if !long { // a gateway to which Redis does not answer in time goes by its share
			most += rate
		}
		if float64(r.Requests.Answered) > most {
			t.Errorf("%d requests were answered within %.1f s, want at most %.0f", r.Requests.Answered, window, most)
		}
		if r.Errors["rate_limited"] == 0 || len(r.Sessions.Disconnects) != 0 || r.Requests.Wrong != 0 {
			t.Errorf("errors %v, connections lost %v, want rate_limited and none lost", r.Errors, r.Sessions.Disconnects)
		}
	})
}
