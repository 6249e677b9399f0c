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
		devices, rate, duration := 60, 300.0, 6*time.Second
		if long {
			devices, rate, duration = 1000, 5000, time.Minute
		}
		f := start(t, quickDocument(), redis)
		cfg := f.bench(devices, rate, duration)
		cfg.TokenStore = client.MemoryStore()
		r := runBench(t, cfg)
		wantClean(t, r)
		if want := int64(rate * duration.Seconds() * 0.99); r.Requests.Answered < want {
			t.Errorf("answered %d requests, want at least %d", r.Requests.Answered, want)
		}
		if r.Sessions.Rotated != devices {
			t.Errorf("%d of %d devices got a new token", r.Sessions.Rotated, devices)
		}
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
	r := runBench(t, f.bench(20, 200, 5*time.Second))
	wantClean(t, r)
	if r.Sessions.Rotated != 20 {
		t.Errorf("%d of 20 devices got a new token", r.Sessions.Rotated)
	}
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
