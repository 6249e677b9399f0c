package stack

import (
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
)

// Row 51: three gateways let through what one limit allows, and not much less.
func TestServiceLimitOverThreeGateways(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		duration := 5 * time.Second
		if long {
			duration = time.Minute
		}
		const gateways, rate, burst = 3, 60.0, 30.0
		const batch = 3 // a twentieth of the rate
		doc := quickDocument()
		doc.Services = map[string]dynamic.Service{"echo": {Limit: dynamic.Bucket{Rate: rate, Burst: burst}}}
		f := startWith(t, Config{Gateways: gateways, DataDir: t.TempDir(), Document: doc, Redis: redis})
		began := time.Now()
		r := runBench(t, f.bench(30, 4*rate, duration))
		window := time.Since(began).Seconds()
		if most := burst + rate*window + gateways*batch; float64(r.Requests.Answered) > most {
			t.Errorf("%d requests were answered within %.1f s, want at most %.0f", r.Requests.Answered, window, most)
		}
		if least := rate * duration.Seconds() / 2; float64(r.Requests.Answered) < least {
			t.Errorf("%d requests were answered, want at least %.0f: %v", r.Requests.Answered, least, r.Errors)
		}
		if r.Errors["rate_limited"] == 0 || len(r.Sessions.Disconnects) != 0 || r.Requests.Wrong != 0 {
			t.Errorf("errors %v, connections lost %v, want rate_limited and none lost", r.Errors, r.Sessions.Disconnects)
		}
	})
}
