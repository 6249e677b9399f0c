package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
)

// What the store says of records: their life, size, owners.

// TestReleaseMany spans all nodes of a cluster.
func TestReleaseMany(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		var sessions []authapi.Release
		for i := range 40 {
			w.id = newID()
			g := w.issue(Enrolment{ClientID: w.id, Owner: "n/1"})
			if i%2 == 1 {
				g.Epoch-- // an older session
			}
			sessions = append(sessions, authapi.Release{ClientID: w.id, Epoch: g.Epoch})
		}
		if n, err := w.store.Release(w.ctx(), sessions); n != 20 || err != nil {
			t.Errorf("Release() = %d, %v, want 20", n, err)
		}
	})
}

// TestRecordVanishes: an expired record is gone one ttl after its latest expiry, by itself.
func TestRecordVanishes(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	w := newWorld(t, rdb)
	now := time.Now().Truncate(time.Millisecond)
	e.SetTime(now)
	cur := w.enrol()
	now = now.Add(w.rules.TTL / 2)
	e.SetTime(now)
	w.rotate(cur) // expires half a ttl after cur
	for _, step := range []struct {
		after time.Duration
		want  string
	}{
		{w.rules.TTL/2 - time.Millisecond, "ok"},
		{w.rules.TTL / 2, "token_expired"},
		{2*w.rules.TTL - time.Millisecond, "token_expired"},
		{2 * w.rules.TTL, "bad_token"},
	} {
		e.SetTime(now.Add(step.after))
		if got := w.result(cur, ""); got != step.want {
			t.Errorf("%v after the rotation: %s, want %s", step.after, got, step.want)
		}
	}
	if _, err := w.store.Get(w.ctx(), w.id); !errors.Is(err, ErrNoRecord) {
		t.Errorf("Get() = %v, want ErrNoRecord", err)
	}
}

// TestRealTime: the same by Redis's real clock.
func TestRealTime(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		w.rules = Rules{TTL: 200 * time.Millisecond, Grace: 0}
		cur := w.enrol()
		seen := ""
		for ctx := w.ctx(); ctx.Err() == nil; {
			got := w.result(cur, "")
			if !strings.HasSuffix(seen, got) {
				seen += " " + got
			}
			if got == "bad_token" {
				break
			}
		}
		// On a machine that is stopped for a while, a step may be missed; the order may not.
		rest := []string{"ok", "token_expired", "bad_token"}
		for _, got := range strings.Fields(seen) {
			i := slices.Index(rest, got)
			if i < 0 {
				t.Fatalf("saw%s, want ok, token_expired, bad_token", seen)
			}
			rest = rest[i+1:]
		}
		if len(rest) != 0 {
			t.Errorf("saw%s, want it to end with bad_token", seen)
		}
	})
}

// TestMemory holds the price of a device after eight rotations (on a real Redis: the embedded one
// only estimates).
func TestMemory(t *testing.T) {
	if redistest.ClusterAddrs() == nil {
		return
	}
	w := newWorld(t, redistest.Cluster(t))
	owner := "gateway-1.eu-central/" + strings.Repeat("s", 26)
	cur := w.issue(Enrolment{ClientID: w.id, Owner: owner}).Token
	for range 8 {
		g, err := w.store.Rotate(w.ctx(), w.id, cur, owner, w.rules)
		if err != nil {
			t.Fatal(err)
		}
		cur = g.Token
		w.verify(cur, "")
	}
	got, err := w.rdb.MemoryUsage(w.ctx(), Key(w.id)).Result()
	if err != nil {
		t.Fatal(err)
	}
	t.Attr("record_after_eight_rotations", itoa(got)+" B")
	if got > 550 {
		t.Errorf("a record after eight rotations takes %d bytes, want at most 550", got)
	}
}

// TestOneAtATime: of many sessions that claim a device at once, each takes it from another, and
// the epochs tell their order.
func TestOneAtATime(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		cur := w.enrol()
		type claim struct {
			owner string
			v     Verdict
			err   error
		}
		claims := make(chan claim)
		const n = 20
		for i := range n {
			go func() { // ends with its one claim, for which the test waits
				owner := fmt.Sprintf("m/%d", i)
				v, err := w.store.Verify(t.Context(), w.id, cur, owner, w.rules)
				claims <- claim{owner, v, err}
			}()
		}
		byPrevious := map[string]claim{}
		for range n {
			c := <-claims
			if c.err != nil {
				t.Error(c.err)
			}
			byPrevious[c.v.PreviousOwner] = c
		}
		owner, epoch := "n/1", int64(0)
		for range n {
			c, ok := byPrevious[owner]
			if !ok || c.v.Epoch <= epoch {
				t.Fatalf("nobody took it from %s after epoch %d: %v", owner, epoch, byPrevious)
			}
			owner, epoch = c.owner, c.v.Epoch
		}
	})
}

// TestNew: a token is a random UUID of version 4.
func TestNew(t *testing.T) {
	seen := map[wire.Token]bool{}
	for range 100 {
		tok := New()
		if seen[tok] || tok[6]>>4 != 4 || tok[8]>>6 != 0b10 {
			t.Fatalf("token %x is repeated or no UUID of version 4", tok[:])
		}
		seen[tok] = true
	}
}
