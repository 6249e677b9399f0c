// Package guess limits the guessing of tokens and proofs: wrong ones are counted in Redis, for
// all auth-services together, per address and per address and device. Never per device alone:
// strangers know its client_id, and could lock it out.
//
//	if retry := l.Limited(ip, id); retry > 0 { /* refuse without looking at the token */ }
//	… the token is wrong …
//	retry, err := l.Wrong(ctx, ip, id)
//
// Who is over a limit is remembered here until the minute is over, so that those who guess
// nothing cost no call. Another auth-service may therefore look at one more guess of each.
package guess

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/sdk/wire"
)

// window is how long wrong guesses are counted together, from the first one on.
const window = time.Minute

// maxRemembered bounds the memory of who is limited.
const maxRemembered = 1 << 16

// Limits are how many wrong guesses pass in a minute; 0: any number.
type Limits struct {
	PerPair    int `yaml:"per_pair"`    // of one address for one device
	PerAddress int `yaml:"per_address"` // of one address (IPv6: of one /64)
}

// DefaultLimits are those of docs/PROTOCOL.md.
func DefaultLimits() Limits { return Limits{PerPair: 10, PerAddress: 600} }

// count adds one to KEYS[1] (the pair) and KEYS[2] (the address) where their limit, ARGV[1] and
// ARGV[2], is not 0. It returns for each how many milliseconds it is over the limit for, or 0.
const count = `
local over = {0, 0}
for i = 1, 2 do
	local limit = tonumber(ARGV[i])
	if limit > 0 then
		local n = redis.call('INCR', KEYS[i])
		if n == 1 then redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
		if n > limit then over[i] = redis.call('PTTL', KEYS[i]) end
	end
end
return over`

// Limiter counts wrong guesses. It is safe for concurrent use.
type Limiter struct {
	rdb    redis.UniversalClient
	limits Limits
	script *redis.Script

	mu      sync.Mutex
	limited map[source]time.Time // until when
}

// source is who guesses: an address, for one device or (a zero id) for any.
type source struct {
	addr netip.Prefix
	id   wire.ClientID
}

// NewLimiter counts in rdb, which stays the caller's to close.
func NewLimiter(rdb redis.UniversalClient, limits Limits) *Limiter {
	return &Limiter{rdb: rdb, limits: limits, script: redis.NewScript(count), limited: map[source]time.Time{}}
}

// Limited returns for how long guesses from ip for this device are to be refused unseen; 0: they
// are not. An invalid ip never is.
func (l *Limiter) Limited(ip netip.Addr, id wire.ClientID) time.Duration {
	if !l.counts(ip) {
		return 0
	}
	addr := network(ip)
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.left(source{addr, id}), l.left(source{addr: addr}))
}

// left is for how long s is limited still.
func (l *Limiter) left(s source) time.Duration {
	until, ok := l.limited[s]
	if !ok {
		return 0
	}
	left := time.Until(until)
	if left <= 0 {
		delete(l.limited, s)
		return 0
	}
	return left
}

// Wrong counts a wrong guess from ip for this device. It returns for how long the next ones are
// refused, 0 while the limits are not reached. An error leaves the guess uncounted.
func (l *Limiter) Wrong(ctx context.Context, ip netip.Addr, id wire.ClientID) (time.Duration, error) {
	if !l.counts(ip) {
		return 0, nil
	}
	addr := network(ip)
	key := "goshield:guess:{" + addr.Addr().String() + "}" // one slot for an address and its pairs
	over, err := l.script.Run(ctx, l.rdb, []string{key + id.String(), key},
		l.limits.PerPair, l.limits.PerAddress, window.Milliseconds()).Int64Slice()
	if err != nil {
		return 0, fmt.Errorf("count a guess: %w", err)
	}
	if len(over) != 2 {
		return 0, fmt.Errorf("count a guess: script answered %d values, want 2", len(over))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.remember(source{addr, id}, over[0]), l.remember(source{addr: addr}, over[1])), nil
}

func (l *Limiter) remember(s source, overMS int64) time.Duration {
	if overMS <= 0 {
		return 0
	}
	left := time.Duration(overMS) * time.Millisecond
	if len(l.limited) >= maxRemembered {
		l.forget()
	}
	l.limited[s] = time.Now().Add(left)
	return left
}

// forget makes room: those whose minute is over go, and if there are none, half of the others,
// of whom Redis knows.
func (l *Limiter) forget() {
	now := time.Now()
	for s, until := range l.limited {
		if !until.After(now) {
			delete(l.limited, s)
		}
	}
	for s := range l.limited {
		if len(l.limited) <= maxRemembered/2 {
			return
		}
		delete(l.limited, s)
	}
}

func (l *Limiter) counts(ip netip.Addr) bool {
	return ip.IsValid() && (l.limits.PerPair > 0 || l.limits.PerAddress > 0)
}

// network is what counts as one address: whoever has one IPv6 address has its whole /64.
func network(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits) // fails for an invalid ip only
	return p
}
