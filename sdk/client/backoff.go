package client

import (
	"math/rand/v2"
	"time"
)

// maxRetryAfter bounds the wait that a gateway may ask for.
const maxRetryAfter = 10 * time.Minute

// backoff gives the waits between attempts to connect: random between 0 and
// base, then 2·base, 4·base and so on up to limit, but never to more than the time since the first
// attempt failed: an outage of a few seconds, such as the move of a virtual address, is over for a device after twice
// that time at the latest. Full jitter spreads a fleet that lost its gateway at one moment best
// (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
// Not safe for concurrent use.
type backoff struct {
	base, limit time.Duration
	attempts    int
	since       time.Time // of the first attempt
}

// next is the wait before the next attempt, at least as long as the gateway
// asked for (0: nothing).
func (b *backoff) next(now time.Time, retryAfter time.Duration) time.Duration {
	if b.attempts == 0 {
		b.since = now
	}
	most := b.limit
	// Shifting only while it cannot overflow.
	if b.attempts < 30 && b.base<<b.attempts>>b.attempts == b.base {
		most = min(b.base<<b.attempts, b.limit)
	}
	most = min(most, max(b.base, now.Sub(b.since)))
	b.attempts++
	return min(max(retryAfter, 0), maxRetryAfter) + rand.N(most+1)
}

// reset begins anew, after a connection that lasted.
func (b *backoff) reset() { b.attempts = 0 }
