package bench

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"sync"
	"time"
)

// errWrongAnswer: the echo is not what was sent.
var errWrongAnswer = errors.New("the answer is another request's, or was changed")

// errNotSent: the generator could not send a request that was due.
var errNotSent = errors.New("not sent: too many requests are unanswered, or this machine is too slow")

// load sends the requests that are due within cfg.Duration, and returns when the
// last of them has been answered or given up.
func (f *fleet) load(ctx context.Context) {
	f.enter(phaseLoad)
	start := time.Now()
	var requests sync.WaitGroup
	if f.cfg.Rate > 0 {
		f.schedule(ctx, start, &requests)
	} else {
		timer := time.NewTimer(f.cfg.Duration)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	f.enter(phaseFinishing)
	requests.Wait() // each has its timeout
	f.loadTook = time.Since(start)
}

// schedule starts request k when it is due, at start + k/rate, until ctx ends.
// Where it is late it catches up, as fast as it can.
func (f *fleet) schedule(ctx context.Context, start time.Time, requests *sync.WaitGroup) {
	interval := float64(time.Second) / f.cfg.Rate
	total := int64(f.cfg.Duration.Seconds()*f.cfg.Rate + 0.5)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for k := range total {
		due := start.Add(time.Duration(float64(k) * interval))
		if !waitUntil(ctx, due, timer) {
			return
		}
		d := f.connected[k%int64(len(f.connected))]
		late := time.Since(due)
		f.lag.record(d.number, late)
		if late > f.cfg.RequestTimeout || f.outstanding.Load() >= int64(f.cfg.MaxOutstanding) {
			f.failed.Add(1)
			f.counts.add(errNotSent)
			continue
		}
		f.outstanding.Add(1)
		requests.Go(func() { f.request(d, k, due) }) // ends with its answer or its timeout
	}
}

// waitUntil returns when due has come; false: ctx ended before.
func waitUntil(ctx context.Context, due time.Time, timer *time.Timer) bool {
	for {
		wait := time.Until(due)
		switch {
		case ctx.Err() != nil:
			return false
		case wait <= 0:
			return true
		case wait <= fineSleep:
			sleepFine(wait)
		default:
			timer.Reset(wait - fineSleep)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return false
			}
		}
	}
}

// request sends one request and judges the answer.
func (f *fleet) request(d *device, k int64, due time.Time) {
	defer f.outstanding.Add(-1)
	// Not the run's context: after an interrupt, what was sent may still be answered.
	ctx, cancel := context.WithDeadline(context.Background(), due.Add(f.cfg.RequestTimeout))
	defer cancel()
	body := makeBody(d.number, k, f.cfg.Size)
	f.sent.Add(1)
	answer, err := d.client.Request(ctx, f.cfg.Service, body)
	if err == nil && !bytes.Equal(answer, body) {
		f.wrong.Add(1)
		err = errWrongAnswer
	}
	if err != nil {
		f.failed.Add(1)
		f.counts.add(err)
		return
	}
	f.answered.Add(1)
	f.latency.record(d.number, time.Since(due))
}

// makeBody is a JSON object of size bytes, or of what it needs, that no other
// request of the run has.
func makeBody(device int, request int64, size int) []byte {
	b := make([]byte, 0, max(size, 64))
	b = strconv.AppendInt(append(b, `{"device":`...), int64(device), 10)
	b = strconv.AppendInt(append(b, `,"request":`...), request, 10)
	const pad = `,"pad":""}`
	if free := size - len(b) - len(pad); free >= 0 {
		b = append(b, pad[:len(pad)-2]...)
		b = append(b, bytes.Repeat([]byte{'x'}, free)...)
		return append(b, '"', '}')
	}
	return append(b, '}')
}
