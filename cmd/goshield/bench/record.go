package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// Times are recorded from a microsecond to two minutes, exact to three digits.
const (
	shortest = time.Microsecond
	longest  = 2 * time.Minute
	digits   = 3
	shards   = 8
)

// recorder is a histogram that many goroutines write.
type recorder struct {
	shards [shards]struct {
		mu        sync.Mutex
		histogram *hdrhistogram.Histogram
	}
}

func newRecorder() *recorder {
	r := new(recorder)
	for i := range r.shards {
		r.shards[i].histogram = newHistogram()
	}
	return r
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(shortest/time.Microsecond), int64(longest/time.Microsecond), digits)
}

// record adds a time; those outside the range count as its ends.
func (r *recorder) record(device int, d time.Duration) {
	s := &r.shards[device%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.histogram.RecordValue(min(max(d, shortest), longest).Microseconds()) // within its range
}

// quantiles reads what has been recorded so far.
func (r *recorder) quantiles() Quantiles {
	all := newHistogram()
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		all.Merge(s.histogram)
		s.mu.Unlock()
	}
	at := func(q float64) Millis {
		return Millis(time.Duration(all.ValueAtQuantile(q)) * time.Microsecond)
	}
	return Quantiles{
		Count: all.TotalCount(), P50: at(50), P90: at(90), P99: at(99), P999: at(99.9),
		Max: Millis(time.Duration(all.Max()) * time.Microsecond),
	}
}

// counts counts errors by their kind and keeps the first of each to show.
type counts struct {
	mu          sync.Mutex
	errors      map[string]int64
	samples     map[string]string
	disconnects map[string]int64
	first       error
}

func newCounts() *counts {
	return &counts{errors: make(map[string]int64), samples: make(map[string]string), disconnects: make(map[string]int64)}
}

func (c *counts) add(err error) {
	kind := kindOf(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errors[kind]++
	c.sample(kind, err)
}

func (c *counts) addDisconnect(err error) {
	kind := kindOf(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disconnects[kind]++
	c.sample(kind, err)
}

// sample is called with mu held.
func (c *counts) sample(kind string, err error) {
	if c.first == nil {
		c.first = err
	}
	if _, ok := c.samples[kind]; !ok {
		c.samples[kind] = err.Error()
	}
}

func (c *counts) firstError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil {
		return errors.New("interrupted")
	}
	return c.first
}

// snapshot copies the counts.
func (c *counts) snapshot() (errs, disconnects map[string]int64, samples map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.errors), maps.Clone(c.disconnects), maps.Clone(c.samples)
}

// kindOf names an error: the gateway's code if it gave one and the request was
// its subject, else one of a few of our own.
func kindOf(err error) string {
	var refusal *wire.Error
	switch {
	case errors.Is(err, client.ErrConnectionLost):
		return "connection_lost"
	case errors.As(err, &refusal):
		return string(refusal.Code)
	case errors.Is(err, errWrongAnswer):
		return "wrong_answer"
	case errors.Is(err, errNotSent):
		return "not_sent"
	case errors.Is(err, client.ErrProtocol):
		return "protocol"
	case errors.Is(err, client.ErrClosed):
		return "closed"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return "network"
}

// errorTotal is the sum of a count by kind.
func errorTotal(byKind map[string]int64) (total int64) {
	for _, n := range byKind {
		total += n
	}
	return total
}

// plural is "1 request", "2 requests".
func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
