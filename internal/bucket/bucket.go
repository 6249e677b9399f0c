// Package bucket is a token bucket: a rate that may be exceeded by a burst.
//
//	limit := bucket.NewLimit(50, 100) // 50 a second, 100 at once
//	var b bucket.Bucket               // full
//	if ok, retry := limit.Take(&b, now, 1); !ok {
//		// over the limit; one token will be there after retry
//	}
//
// It is the generic cell rate algorithm (GCRA, ITU-T I.371): a bucket is one
// number, the time at which it will be full again, so that nothing is lost to
// rounding however often or seldom it is asked, and a rate below one a second is as
// exact as one of a million. Time is an argument: the package reads no clock. It knows no
// locks: a Bucket belongs to one goroutine, or to its owner's lock. A Limit is immutable.
package bucket

import (
	"math"
	"time"
)

// Bucket is the state of one bucket. The zero Bucket is full.
type Bucket struct {
	fullAt int64 // ns on the clock that now is read from
}

// Limit is a rate and a burst. The zero Limit limits nothing.
type Limit struct {
	perToken float64 // ns for one token to come
	depth    int64   // ns for an empty bucket to fill
}

// maxSpan bounds every span of time within, so that no sum overflows: 73 years.
const maxSpan = math.MaxInt64 / 4

// NewLimit allows rate tokens a second, and burst at once when nothing was
// taken for a while. A rate of 0 or less limits nothing; a burst below 1 counts as 1.
func NewLimit(rate, burst float64) Limit {
	if rate <= 0 {
		return Limit{}
	}
	l := Limit{perToken: float64(time.Second) / rate}
	l.depth = l.span(max(burst, 1))
	return l
}

// Unlimited reports whether l limits nothing.
func (l Limit) Unlimited() bool { return l.perToken == 0 }

// span is the time that n tokens take to come.
func (l Limit) span(n float64) int64 {
	return int64(min(math.Round(l.perToken*n), maxSpan))
}

// Take takes n tokens at the time now (ns on a clock that never goes back). If they are
// not there it takes none and says after how long they will be. More tokens
// than the burst are given when the bucket is full, and leave it in debt: the rate
// holds in the long run.
func (l Limit) Take(b *Bucket, now int64, n float64) (ok bool, retry time.Duration) {
	if retry = l.Wait(b, now, n); retry > 0 {
		return false, retry
	}
	if !l.Unlimited() {
		b.fullAt = max(b.fullAt, now) + l.span(n)
	}
	return true, 0
}

// Wait is after how long Take would give n tokens; 0: now.
func (l Limit) Wait(b *Bucket, now int64, n float64) time.Duration {
	if l.Unlimited() {
		return 0
	}
	return time.Duration(max(0, max(b.fullAt, now)+min(l.span(n), l.depth)-now-l.depth))
}

// Charge takes up to n tokens without asking, and leaves the bucket empty at
// worst: what a refusal costs the one who asked.
func (l Limit) Charge(b *Bucket, now int64, n float64) {
	if l.Unlimited() {
		return
	}
	fullAt := max(b.fullAt, now)
	if empty := now + l.depth; fullAt < empty {
		b.fullAt = min(fullAt+l.span(n), empty)
	}
}
