package token

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// TestQuarantine: a device that goes from one session to another too often gets no session for a
// minute, by no way; what it has goes on.
func TestQuarantine(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		w.rules.MaxTakeovers = 3
		enrolled := w.issue(Enrolment{ClientID: w.id, Owner: "n/first"})
		tok := enrolled.Token
		w.release(enrolled.Epoch, 1)
		for i := range 10 { // given up in between, it is nobody's to take
			g := w.verify(tok, "n/alone-"+strconv.Itoa(i))
			w.release(g.Epoch, 1)
		}
		w.verify(tok, "n/0")
		var last Verdict
		for i := range 3 {
			owner := "n/" + strconv.Itoa(i+1)
			last = w.verify(tok, owner)
			if again := w.verify(tok, owner); again.Epoch != last.Epoch { // the same claim, made again
				t.Fatalf("epoch %d of a repeated claim, want %d", again.Epoch, last.Epoch)
			}
		}
		quarantined := func(what string, err error) {
			t.Helper()
			var refused *Refusal
			if !errors.As(err, &refused) || refused.Code != wire.CodeRateLimited ||
				refused.RetryAfter <= 30*time.Second || refused.RetryAfter > time.Minute {
				t.Errorf("%s: %+v, want rate_limited with the minute that is left", what, err)
			}
		}
		_, err := w.store.Verify(w.ctx(), w.id, tok, "n/4", w.rules)
		quarantined("a claim", err)
		_, err = w.store.Issue(w.ctx(), Enrolment{ClientID: w.id, Owner: "n/5"}, w.rules)
		quarantined("an enrolment", err)
		w.release(last.Epoch, 1)
		_, err = w.store.Verify(w.ctx(), w.id, tok, "n/6", w.rules)
		quarantined("a claim of a device that nobody has", err)
		if got := w.result(tok, ""); got != "ok" {
			t.Errorf("a frame's token in quarantine: %s, want ok", got)
		}
		if got := w.result(wire.Token{9}, "n/7"); got != "bad_token" {
			t.Errorf("a stranger learns %s, want bad_token", got)
		}
		if err := w.rdb.HSet(w.ctx(), Key(w.id), "taken_until", 1).Err(); err != nil { // the minute is over
			t.Fatal(err)
		}
		w.verify(tok, "n/8")
		w.rules.MaxTakeovers = 0
		for i := range 20 {
			w.verify(tok, "n/free-"+strconv.Itoa(i))
		}
	})
}
