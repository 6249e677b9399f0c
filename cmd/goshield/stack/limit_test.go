package stack

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// asking is what devices are told that ask a service with a limit, over and over.
type asking struct {
	end  context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	let     []admission
	refused int
	faults  []error
}

// admission is a request that was let through between these two times.
type admission struct{ asked, answered time.Time }

// ask has devices ask a service so often a second, all together, until stop. One that waits for an answer asks for nothing else.
func ask(t *testing.T, service string, devices []*client.Client, rate float64) *asking {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	a := &asking{end: cancel}
	every := time.Duration(float64(len(devices)) / rate * float64(time.Second))
	for _, d := range devices {
		a.work.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for ctx.Err() == nil {
				a.once(service, d)
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	return a
}

func (a *asking) once(service string, d *client.Client) {
	asked := time.Now()
	_, err := d.Request(context.Background(), service, []byte(`1`)) // the device's own timeout ends it
	answered := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	var refused *wire.Error
	switch {
	case err == nil:
		a.let = append(a.let, admission{asked, answered})
	case errors.As(err, &refused) && refused.Code == wire.CodeRateLimited:
		a.refused++
	default:
		a.faults = append(a.faults, err)
	}
}

// count is how many requests were let through so far.
func (a *asking) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.let)
}

// between is how many were surely let through between two times.
func (a *asking) between(from, to time.Time) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.let {
		if r.asked.After(from) && r.answered.Before(to) {
			n++
		}
	}
	return n
}

// awaitRate waits until nearly so many a second are let through, over two seconds.
func (a *asking) awaitRate(t *testing.T, rate float64, what string) {
	t.Helper()
	const span = 2 * time.Second
	until(t, 2*time.Minute, what, func() bool {
		now := time.Now()
		return float64(a.between(now.Add(-span), now)) >= 0.8*rate*span.Seconds()
	})
}

// stop wants nothing to have happened but answers and refusals for the limit.
func (a *asking) stop(t *testing.T) {
	t.Helper()
	a.end()
	a.work.Wait()
	if len(a.faults) != 0 {
		t.Errorf("%d requests failed, the first with %v; want answers, or rate_limited", len(a.faults), a.faults[0])
	}
}

// wantWithin holds row 51 against every window there is: W seconds have at most most + rate·W. It is called after stop.
func (a *asking) wantWithin(t *testing.T, rate, most float64) {
	t.Helper()
	slices.SortFunc(a.let, func(x, y admission) int { return x.answered.Compare(y.answered) })
	worst := 0.0
	for _, first := range a.let {
		n := 0
		for _, last := range a.let {
			if last.asked.Before(first.asked) {
				continue
			}
			n++ // all of it is after first.asked
			worst = max(worst, float64(n)-rate*last.answered.Sub(first.asked).Seconds())
		}
	}
	if worst > most {
		t.Errorf("in some window %.1f more than rate·W were let through, want at most %.1f", worst, most)
	}
}

// Row 51: three gateways let through what one limit allows, in every window, and not much less.
func TestServiceLimitOverThreeGateways(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		const gateways, rate, burst = 3, 60.0, 30.0
		const batch = 3 // a twentieth of the rate
		doc := quickDocument()
		doc.Services = map[string]dynamic.Service{"echo": {Limit: dynamic.Bucket{Rate: rate, Burst: burst}}}
		f := startWith(t, Config{Gateways: gateways, DataDir: t.TempDir(), Document: doc, Redis: redis})
		length := 5 * time.Second // of what the limit lets through; a machine that stands still does not ask for it in time
		if long {
			length = time.Minute
		}
		began := time.Now()
		a := ask(t, "echo", f.connect(t, 30), 4*rate)
		until(t, 3*time.Minute, "as much as the limit allows in some seconds is answered", func() bool {
			return float64(a.count()) >= rate*length.Seconds()
		})
		if took := time.Since(began); long && took > 2*length {
			t.Errorf("it took %v to let through what may take %v", took, length)
		}
		a.stop(t)
		most := burst + gateways*batch
		if !long { // a gateway to which Redis does not answer in time goes by its share
			most += rate
		}
		a.wantWithin(t, rate, most)
		if a.refused == 0 {
			t.Error("nothing was refused: the limit was not reached")
		}
	})
}
