package token

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/device"
)

// TestPresented holds the table of docs/PROTOCOL.md, "Tokens": a record in some state, a token,
// and what verify makes of it, for a frame and for a HELLO.
func TestPresented(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(w *world) wire.Token // returns the token to present
		frame   string                    // what verify says
		hello   string                    // and with a claim; "": the same
		revoked bool                      // the record is, afterwards
	}{
		{name: "no record", prepare: func(*world) wire.Token { return New() }, frame: "bad_token"},
		{name: "matches nothing", prepare: func(w *world) wire.Token { w.enrol(); return New() }, frame: "bad_token"},
		{name: "revoked", frame: "revoked", revoked: true, prepare: func(w *world) wire.Token {
			cur := w.enrol()
			w.revoke()
			return cur
		}},
		{name: "cur", prepare: (*world).enrol, frame: "ok"},
		{name: "cur, its ttl nearly over", frame: "ok", prepare: func(w *world) wire.Token {
			cur := w.enrol()
			w.pass(w.rules.TTL - time.Minute)
			return cur
		}},
		{name: "cur, expired", frame: "token_expired", prepare: func(w *world) wire.Token {
			cur := w.enrol()
			w.pass(w.rules.TTL)
			return cur
		}},
		{name: "next", frame: "promoted", prepare: func(w *world) wire.Token { return w.rotate(w.enrol()) }},
		{name: "next, cur expired", frame: "promoted", prepare: func(w *world) wire.Token {
			cur := w.enrol()
			w.pass(w.rules.TTL - time.Minute)
			next := w.rotate(cur)
			w.pass(2 * time.Minute)
			return next
		}},
		{name: "next, expired", frame: "token_expired", prepare: func(w *world) wire.Token {
			next := w.rotate(w.enrol())
			w.pass(w.rules.TTL)
			return next
		}},
		{name: "cur, while there is a next", frame: "ok", prepare: func(w *world) wire.Token {
			cur := w.enrol()
			w.rotate(cur)
			return cur
		}},
		{name: "next, overwritten before use", frame: "bad_token", prepare: func(w *world) wire.Token {
			cur := w.enrol()
			forgotten := w.rotate(cur)
			w.rotate(cur)
			return forgotten
		}},
		{name: "prev within grace", frame: "previous", prepare: func(w *world) wire.Token {
			cur := w.enrol()
			w.promote(cur)
			w.pass(w.rules.Grace - time.Minute)
			return cur
		}},
		{name: "prev after grace", frame: "token_reused", revoked: true, prepare: func(w *world) wire.Token {
			cur := w.enrol()
			w.promote(cur)
			w.pass(w.rules.Grace)
			return cur
		}},
		{name: "prev, no grace at all", frame: "token_reused", revoked: true, prepare: func(w *world) wire.Token {
			w.rules.Grace = 0
			cur := w.enrol()
			w.promote(cur)
			return cur
		}},
		{name: "old", frame: "token_reused", revoked: true, prepare: func(w *world) wire.Token {
			first := w.enrol()
			w.promote(w.promote(first))
			return first
		}},
		{name: "old, the eighth", frame: "token_reused", revoked: true, prepare: func(w *world) wire.Token {
			first := w.enrol()
			cur := first
			for range 9 { // one is prev, eight are old
				cur = w.promote(cur)
			}
			return first
		}},
		{name: "older than what old holds", frame: "bad_token", prepare: func(w *world) wire.Token {
			first := w.enrol()
			cur := first
			for range 10 {
				cur = w.promote(cur)
			}
			return first
		}},
		{name: "of the record before an enrolment", frame: "bad_token", prepare: func(w *world) wire.Token {
			before := w.enrol()
			w.enrol()
			return before
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachWorld(t, func(t *testing.T, w *world) {
				for _, owner := range []string{"", "m/2"} {
					w.id, w.rules = newID(), rules
					presented := tt.prepare(w)
					before := w.fields()
					want := tt.frame
					if got := w.result(presented, owner); got != want {
						t.Errorf("owner %q: verify says %s, want %s", owner, got, want)
					}
					after := w.fields()
					if want == "bad_token" || want == "token_expired" || (want == "ok" && owner == "") {
						if !maps.Equal(after, before) {
							t.Errorf("owner %q: the record changed", owner)
						}
					}
					if got := after["revoked"] != ""; got != tt.revoked {
						t.Errorf("owner %q: revoked %v, want %v", owner, got, tt.revoked)
					}
					if !slices.Contains([]string{"ok", "promoted", "previous"}, want) && after["owner"] == "m/2" {
						t.Errorf("a refused HELLO claimed the device")
					}
				}
			})
		})
	}
}

func (w *world) revoke() {
	w.t.Helper()
	if why, err := w.store.Revoke(w.ctx(), w.id); err != nil || why != wire.CodeRevoked {
		w.t.Fatalf("Revoke() = %s, %v, want revoked", why, err)
	}
}

// TestPromotion follows the record through a rotation.
func TestPromotion(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		first := w.enrol()
		w.pass(time.Hour)
		next := w.rotate(first)
		if f := w.fields(); f["cur"] != hash(first) || f["next"] != hash(next) || f["gen"] != "1" {
			t.Error("after rotate: cur or gen changed, or next is another")
		}
		v := w.verify(next, "")
		if v.Result != authapi.ResultPromoted || v.Generation != 2 || !near(v.ExpiresIn, w.rules.TTL) || !near(v.GraceLeft, w.rules.Grace) {
			t.Errorf("verify of next = %+v, want promoted, generation 2, a full ttl and grace", v)
		}
		f := w.fields()
		if f["cur"] != hash(next) || f["prev"] != hash(first) || f["next"] != "" || f["next_exp"] != "" || f["old"] != "" {
			t.Error("after the promotion: cur is not next, or prev not cur, or next or old is there")
		}
		w.pass(time.Minute)
		v = w.verify(first, "")
		if v.Result != authapi.ResultPrevious || !near(v.GraceLeft, w.rules.Grace-time.Minute) || !v.Fresh.IsZero() {
			t.Errorf("verify of prev = %+v, want previous, and what is left of the grace", v)
		}
		if v = w.verify(next, ""); v.Result != authapi.ResultOK || !near(v.GraceLeft, w.rules.Grace-time.Minute) {
			t.Errorf("verify of cur = %+v, want ok, and the grace of the previous", v)
		}
		w.promote(next)
		if f := w.fields(); f["old"] != hash(first)[:8] || f["prev"] != hash(next) {
			t.Error("after the second promotion: old or prev is another")
		}
		st, err := w.store.Get(w.ctx(), w.id)
		if err != nil || st.Generation != 3 || st.LastRotated.IsZero() || st.Owner != "n/1" || st.Revoked != "" {
			t.Errorf("Get() = %+v, %v, want generation 3 of n/1, rotated", st, err)
		}
	})
}

// near allows for the time a test takes.
func near(got, want time.Duration) bool { return got <= want && got > want-30*time.Second }

// TestHelloWithPrevious: a device that lost its new token gets a fresh one, and the one it
// lost is a replay from then on.
func TestHelloWithPrevious(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		first := w.enrol()
		lost := w.promote(first)
		pending := w.rotate(lost)
		v := w.verify(first, "m/2")
		if v.Result != authapi.ResultPrevious || v.Fresh.IsZero() || v.Generation != 3 || !near(v.ExpiresIn, w.rules.TTL) || v.PreviousOwner != "n/1" {
			t.Errorf("HELLO with prev = %+v, want previous, a fresh token, generation 3", v)
		}
		if got := w.result(v.Fresh, ""); got != "ok" {
			t.Errorf("the fresh token: %s, want ok", got)
		}
		if got := w.result(first, ""); got != "previous" {
			t.Errorf("prev again: %s, want previous", got)
		}
		if got := w.result(pending, ""); got != "bad_token" {
			t.Errorf("the pending next: %s, want bad_token", got)
		}
		if got := w.result(lost, ""); got != "token_reused" {
			t.Errorf("the lost token: %s, want token_reused", got)
		}
	})
}

func TestRotateRefuses(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(w *world) wire.Token
		owner   string
		want    string
	}{
		{"no record", func(*world) wire.Token { return New() }, "n/1", "bad_token"},
		{"matches nothing", func(w *world) wire.Token { w.enrol(); return New() }, "n/1", "bad_token"},
		{"revoked", func(w *world) wire.Token { cur := w.enrol(); w.revoke(); return cur }, "n/1", "revoked"},
		{"expired", func(w *world) wire.Token { cur := w.enrol(); w.pass(w.rules.TTL); return cur }, "n/1", "token_expired"},
		{"prev within grace", func(w *world) wire.Token { cur := w.enrol(); w.promote(cur); return cur }, "n/1", "not_current"},
		{"prev after grace", func(w *world) wire.Token {
			cur := w.enrol()
			w.promote(cur)
			w.pass(w.rules.Grace)
			return cur
		}, "n/1", "token_reused"},
		{"a session that was taken over", (*world).enrol, "m/2", "not_current"},
		{"nobody's session", func(w *world) wire.Token {
			g := w.issue(Enrolment{ClientID: w.id, Owner: "n/1"})
			w.release(g.Epoch, 1)
			return g.Token
		}, "m/2", "ok"},
		// A failover can lose a promotion: the gateway holds for current what the record has for next.
		{"next", func(w *world) wire.Token { return w.rotate(w.enrol()) }, "n/1", "ok"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachWorld(t, func(t *testing.T, w *world) {
				presented := tt.prepare(w)
				g, err := w.store.Rotate(w.ctx(), w.id, presented, tt.owner, w.rules)
				if got := said(t, "ok", err); got != tt.want {
					t.Errorf("Rotate() says %s, want %s", got, tt.want)
				}
				if err == nil {
					if got := w.result(g.Token, ""); got != "promoted" {
						t.Errorf("the successor: %s, want promoted", got)
					}
				}
			})
		})
	}
}

func (w *world) release(epoch int64, want int) {
	w.t.Helper()
	n, err := w.store.Release(w.ctx(), []authapi.Release{{ClientID: w.id, Epoch: epoch}})
	if err != nil || n != want {
		w.t.Fatalf("Release() = %d, %v, want %d", n, err, want)
	}
}

// TestOwners: each claim takes the device from the one before and has a later epoch; a late
// release of an earlier one changes nothing (RELIABILITY row 54).
func TestOwners(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		issued := w.issue(Enrolment{ClientID: w.id, Owner: "n/1"})
		if issued.PreviousOwner != "" || issued.Epoch == 0 {
			t.Errorf("first owner: %+v, want no previous one", issued.Record)
		}
		epoch := issued.Epoch
		for _, step := range []struct{ owner, previous string }{{"m/2", "n/1"}, {"n/3", "m/2"}} {
			v := w.verify(issued.Token, step.owner)
			if v.PreviousOwner != step.previous || v.Epoch <= epoch {
				t.Errorf("claim of %s: taken from %q at %d, want %q, after %d", step.owner, v.PreviousOwner, v.Epoch, step.previous, epoch)
			}
			w.release(epoch, 0)
			epoch = v.Epoch
		}
		if v := w.verify(issued.Token, ""); v.Epoch != epoch || v.PreviousOwner != "" {
			t.Errorf("verify without a claim: %+v, want epoch %d and no previous owner", v.Record, epoch)
		}
		again := w.issue(Enrolment{ClientID: w.id, Owner: "m/4"})
		if again.PreviousOwner != "n/3" || again.Epoch <= epoch {
			t.Errorf("enrolment: taken from %q at %d, want n/3, after %d", again.PreviousOwner, again.Epoch, epoch)
		}
		// The gateway did not see the answer, and enrols the same session once more.
		third := w.issue(Enrolment{ClientID: w.id, Owner: "m/4"})
		if third.PreviousOwner != "n/3" || third.Token == again.Token || third.Epoch <= again.Epoch {
			t.Errorf("enrolment of the same session: taken from %q, want n/3, and a new token", third.PreviousOwner)
		}
		again = third
		w.release(again.Epoch, 1)
		w.release(again.Epoch, 0)
		if v := w.verify(again.Token, "n/5"); v.PreviousOwner != "" {
			t.Errorf("claim after a release: taken from %q, want nobody", v.PreviousOwner)
		}
	})
}

// TestEpochOutlivesAClock: a Redis whose clock is behind the last one's still gives later epochs.
func TestEpochOutlivesAClock(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		cur := w.enrol()
		ahead := time.Now().Add(time.Hour).UnixMicro()
		if err := w.rdb.HSet(w.ctx(), Key(w.id), "epoch", ahead).Err(); err != nil {
			t.Fatal(err)
		}
		if v := w.verify(cur, "m/2"); v.Epoch != ahead+1 {
			t.Errorf("epoch %d, want %d", v.Epoch, ahead+1)
		}
		if g := w.issue(Enrolment{ClientID: w.id, Owner: "m/3"}); g.Epoch != ahead+2 {
			t.Errorf("epoch %d, want %d", g.Epoch, ahead+2)
		}
	})
}

func TestEnrolment(t *testing.T) {
	yes, no := true, false
	tests := []struct {
		name       string
		registered bool
		blocked    *bool
		only       bool // allowlist
		want       string
	}{
		{"open, unknown", false, nil, false, "ok"},
		{"open, registered", true, nil, false, "ok"},
		{"open, blocked", true, &yes, false, "unknown_client"},
		{"allowlist, unknown", false, nil, true, "unknown_client"},
		{"allowlist, registered", true, nil, true, "ok"},
		{"allowlist, unblocked", true, &no, true, "ok"},
		{"allowlist, blocked", true, &yes, true, "unknown_client"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachWorld(t, func(t *testing.T, w *world) {
				if tt.registered {
					r := device.NewRegistry(w.rdb)
					if _, err := r.Put(w.ctx(), w.id, tt.blocked); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = r.Remove(context.Background(), w.id) })
				}
				_, err := w.store.Issue(w.ctx(), Enrolment{ClientID: w.id, Owner: "n/1", RegisteredOnly: tt.only}, w.rules)
				if got := said(t, "ok", err); got != tt.want {
					t.Errorf("Issue() says %s, want %s", got, tt.want)
				}
				if got := len(w.fields()) > 0; got != (tt.want == "ok") {
					t.Errorf("there is a record: %v", got)
				}
			})
		})
	}
}

// TestEnrolmentReplacesARevokedRecord: whole, with nothing of it left but the epoch's order.
func TestEnrolmentReplacesARevokedRecord(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		first := w.enrol()
		w.promote(w.promote(first))
		if got := w.result(first, ""); got != "token_reused" {
			t.Fatalf("the replay: %s, want token_reused", got)
		}
		cur := w.enrol()
		f := w.fields()
		got := slices.Sorted(maps.Keys(f))
		if want := []string{"cur", "cur_exp", "epoch", "gen", "owner"}; !slices.Equal(got, want) {
			t.Errorf("fields %v, want %v", got, want)
		}
		if got := w.result(cur, ""); got != "ok" {
			t.Errorf("the new token: %s, want ok", got)
		}
	})
}

func TestRevoke(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		if _, err := w.store.Revoke(w.ctx(), w.id); !errors.Is(err, ErrNoRecord) {
			t.Errorf("Revoke() without a record = %v, want ErrNoRecord", err)
		}
		cur := w.enrol()
		if _, err := w.store.FinishRevocation(w.ctx(), w.id); !errors.Is(err, ErrNoRecord) {
			t.Errorf("FinishRevocation() of a record in force = %v, want ErrNoRecord", err)
		}
		if got := w.result(cur, ""); got != "ok" {
			t.Errorf("after it: %s, want ok", got)
		}
		next := w.rotate(cur)
		w.revoke()
		for _, x := range []wire.Token{cur, next} {
			if got := w.result(x, ""); got != "revoked" {
				t.Errorf("after the revocation: %s, want revoked", got)
			}
		}
		w.revoke() // again: as often as one likes
		st, err := w.store.Get(w.ctx(), w.id)
		if err != nil || st.Revoked != wire.CodeRevoked {
			t.Errorf("Get() = %+v, %v, want revoked", st, err)
		}
	})
}

// TestReplayIsAnnounced: a replay's revocation is told once it is finished, by the stream with
// the session's epoch, and by Pub/Sub.
func TestReplayIsAnnounced(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		sub := w.rdb.Subscribe(w.ctx(), RevokedStream)
		defer func() { _ = sub.Close() }()
		if _, err := sub.Receive(w.ctx()); err != nil {
			t.Fatal(err)
		}
		first := w.enrol()
		epoch := w.verify(first, "m/2").Epoch
		if _, err := w.store.Rotate(w.ctx(), w.id, first, "m/2", w.rules); err != nil {
			t.Fatal(err)
		}
		w.rules.Grace = 0
		last := newLastID(t, w)
		second, err := w.store.Rotate(w.ctx(), w.id, first, "m/2", w.rules)
		if err != nil {
			t.Fatal(err)
		}
		w.verify(second.Token, "")

		for i, want := range []wire.Code{wire.CodeTokenReused, wire.CodeRevoked} {
			_, err := w.store.Verify(w.ctx(), w.id, first, "", w.rules)
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Code != want || !refusal.Unfinished {
				t.Errorf("presented the %d. time: %+v, want %s, unfinished", i+1, refusal, want)
			}
		}
		why, err := w.store.FinishRevocation(w.ctx(), w.id)
		if err != nil || why != wire.CodeTokenReused {
			t.Fatalf("FinishRevocation() = %s, %v, want token_reused", why, err)
		}
		_, err = w.store.Verify(w.ctx(), w.id, first, "", w.rules)
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Code != wire.CodeRevoked || refusal.Unfinished {
			t.Errorf("presented after that: %+v, want revoked, finished", refusal)
		}
		got := w.announced(last)
		if len(got) != 1 || got[0]["code"] != "token_reused" || got[0]["epoch"] != itoa(epoch) {
			t.Errorf("the stream has %v, want one entry, token_reused at epoch %d", got, epoch)
		}
		for want := w.id.String() + " token_reused"; ; {
			m, err := sub.ReceiveMessage(w.ctx())
			if err != nil {
				t.Fatalf("waiting for %q: %v", want, err)
			}
			if m.Payload == want {
				break
			}
		}
	})
}
