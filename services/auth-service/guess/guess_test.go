package guess_test

import (
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/guess"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

func newID() (id wire.ClientID) {
	_, _ = rand.Read(id[:])
	return id
}

// newIP is an address that no other test run counts: the cluster is shared.
func newIP() netip.Addr {
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	_, _ = rand.Read(b[4:8])
	return netip.AddrFrom16(b)
}

func wrong(t *testing.T, l *guess.Limiter, ip netip.Addr, id wire.ClientID) time.Duration {
	t.Helper()
	retry, err := l.Wrong(t.Context(), ip, id)
	if err != nil {
		t.Fatal(err)
	}
	return retry
}

func TestPairAndAddress(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		limits := guess.Limits{PerPair: 3, PerAddress: 8}
		l := guess.NewLimiter(rdb, limits)
		attacker, other, victim := newIP(), newIP(), newID()
		for i := range 3 {
			if retry := wrong(t, l, attacker, victim); retry != 0 {
				t.Errorf("guess %d is limited for %v, want not", i+1, retry)
			}
		}
		if got := l.Limited(attacker, victim); got != 0 {
			t.Errorf("at the limit: limited for %v, want 0", got)
		}
		if retry := wrong(t, l, attacker, victim); retry <= 0 || retry > time.Minute {
			t.Errorf("guess 4 is limited for %v, want up to a minute", retry)
		}
		if got := l.Limited(attacker, victim); got <= 0 || got > time.Minute {
			t.Errorf("over the limit: limited for %v, want up to a minute", got)
		}
		for name, got := range map[string]time.Duration{
			"the victim's own address":         l.Limited(other, victim),
			"another device of that address":   l.Limited(attacker, newID()),
			"a caller that has no address":     l.Limited(netip.Addr{}, victim),
			"another service, until it counts": guess.NewLimiter(rdb, limits).Limited(attacker, victim),
		} {
			if got != 0 {
				t.Errorf("%s: limited for %v, want 0", name, got)
			}
		}
		second := guess.NewLimiter(rdb, limits)
		if retry := wrong(t, second, attacker, victim); retry <= 0 || second.Limited(attacker, victim) <= 0 {
			t.Errorf("another service allows one more than the guess it looked at (%v)", retry)
		}
		for i := range 4 { // 5 so far
			if retry := wrong(t, l, attacker, newID()); (retry > 0) != (i == 3) {
				t.Errorf("guess %d of the address: limited for %v", i+6, retry)
			}
		}
		if l.Limited(attacker, newID()) <= 0 {
			t.Error("the address is over its limit, and not limited")
		}
		if l.Limited(other, victim) != 0 {
			t.Error("the victim's own address is limited")
		}
	})
}

func TestWindowEnds(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	now := time.Now()
	e.SetTime(now)
	limits := guess.Limits{PerPair: 1}
	ip, id := newIP(), newID()
	wrong(t, guess.NewLimiter(rdb, limits), ip, id)
	if wrong(t, guess.NewLimiter(rdb, limits), ip, id) == 0 {
		t.Error("second guess within the minute: not limited")
	}
	e.SetTime(now.Add(time.Minute + time.Second))
	if retry := wrong(t, guess.NewLimiter(rdb, limits), ip, id); retry != 0 {
		t.Errorf("first guess of the next minute: limited for %v", retry)
	}
}

func TestOff(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	e.Stop() // nothing may be asked
	l := guess.NewLimiter(rdb, guess.Limits{})
	for range 3 {
		if retry, err := l.Wrong(t.Context(), newIP(), newID()); retry != 0 || err != nil {
			t.Errorf("Wrong() = %v, %v, want 0, nil", retry, err)
		}
	}
}

func TestSameNetwork(t *testing.T) {
	_, rdb := redistest.Embedded(t)
	l := guess.NewLimiter(rdb, guess.Limits{PerAddress: 1})
	for _, s := range []string{"2001:db8::1", "2001:db8::ffff:2%eth0", "192.0.2.1", "::ffff:192.0.2.1"} {
		wrong(t, l, netip.MustParseAddr(s), newID())
	}
	for s, want := range map[string]bool{
		"2001:db8::3": true, "2001:db8:0:1::3": false, "192.0.2.1": true, "192.0.2.2": false,
	} {
		if got := l.Limited(netip.MustParseAddr(s), newID()) > 0; got != want {
			t.Errorf("%s: limited %v, want %v", s, got, want)
		}
	}
}
