package stack

// The main job: many devices through the balancer, the gateways and auth-service
// to the backends and back, with every token rotated on the way.

import (
	"context"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/sdk/client"
)

func TestEveryAnswerIsItsOwn(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		devices, rate, requests := 60, 300.0, int64(1800)
		if long {
			devices, rate, requests = 1000, 5000, 300_000
		}
		f := start(t, quickDocument(), redis)
		cfg := f.bench(devices, rate, 10*time.Minute)
		cfg.TokenStore = client.MemoryStore()
		l := begin(t, cfg)
		l.wait(t, 3*time.Minute, "all devices have a new token, and asked enough", func(p bench.Progress) bool {
			return p.Rotated == devices && p.Answered >= requests
		})
		r := l.end(t)
		wantClean(t, r)
		if r.Connect.Enrolled != int64(devices) {
			t.Errorf("%d of %d devices enrolled at first", r.Connect.Enrolled, devices)
		}

		// Nobody is locked out: each comes back with the token it has.
		cfg.Duration = time.Second
		r = runBench(t, cfg)
		wantClean(t, r)
		if r.Connect.Resumed != int64(devices) || r.Connect.Enrolled != 0 {
			t.Errorf("came back: %d resumed, %d enrolled; want %d and 0", r.Connect.Resumed, r.Connect.Enrolled, devices)
		}
	})
}

// Frames of one connection arrive in order, so even without any grace no
// request is lost when a token changes under load.
func TestRotationWithoutGrace(t *testing.T) {
	doc := quickDocument()
	doc.Token.Grace = 0
	f := start(t, doc, nil)
	l := begin(t, f.bench(20, 200, 10*time.Minute))
	l.wait(t, 3*time.Minute, "all devices have a new token, and went on with it", func(p bench.Progress) bool {
		return p.Rotated == 20 && p.Answered >= 1000
	})
	wantClean(t, l.end(t))
}

func runBench(t *testing.T, cfg bench.Config) *bench.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	r, err := bench.Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantClean wants no error, no lost connection and no device that had to enrol again. To be
// moved to another gateway, as the balancer evens them out, is no loss.
func wantClean(t *testing.T, r *bench.Result) {
	t.Helper()
	if err := r.Err(); err != nil {
		t.Errorf("%v: %v %v", err, r.Errors, r.Samples)
	}
	if r.Requests.Wrong != 0 || len(r.Sessions.Disconnects) != 0 || r.Sessions.EnrolledAnew != 0 {
		t.Errorf("%d wrong answers, connections lost: %v, %d enrolled anew; want none",
			r.Requests.Wrong, r.Sessions.Disconnects, r.Sessions.EnrolledAnew)
	}
}
