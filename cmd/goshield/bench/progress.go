package bench

import (
	"sync"
	"time"
)

// Progress is a run as it goes.
type Progress struct {
	Phase   string // connecting, load, finishing
	Elapsed time.Duration
	Online  int // devices that are connected now
	Devices int

	Answered    int64
	PerSecond   float64 // answered in the last second
	Failed      int64
	Outstanding int64
	P99         Millis // latency so far

	Reconnects int64 // so far
	Rotated    int   // devices that got a new token at least once
}

// reportProgress calls cfg.Progress once a second until the function it returns
// is called, which waits for the last call.
func (f *fleet) reportProgress() (stop func()) {
	if f.cfg.Progress == nil {
		return func() {}
	}
	end := make(chan struct{})
	var reporting sync.WaitGroup
	reporting.Go(func() { f.report(end) })
	return func() {
		close(end)
		reporting.Wait()
	}
}

// report ends when end is closed.
func (f *fleet) report(end <-chan struct{}) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	start, last, answeredThen := time.Now(), time.Now(), int64(0)
	for {
		select {
		case <-end:
			return
		case <-ticker.C:
		}
		now, answered := time.Now(), f.answered.Load()
		p := Progress{
			Phase: *f.phase.Load(), Elapsed: now.Sub(start), Online: f.online(), Devices: f.cfg.Devices,
			Answered: answered, PerSecond: perSecond(answered-answeredThen, now.Sub(last)),
			Failed: f.failed.Load() + f.notConnected.Load(), Outstanding: f.outstanding.Load(), P99: f.latency.quantiles().P99,
			Reconnects: f.reconnects.Load(), Rotated: int(f.rotated.Load()),
		}
		last, answeredThen = now, answered
		f.cfg.Progress(p)
	}
}
