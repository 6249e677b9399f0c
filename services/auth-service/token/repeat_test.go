package token

import (
	"maps"
	"strconv"
	"testing"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// newLastID is the id of the newest revocation announced.
func newLastID(t *testing.T, w *world) string {
	t.Helper()
	newest, err := w.rdb.XRevRangeN(w.ctx(), RevokedStream, "+", "-", 1).Result()
	if err != nil {
		t.Fatal(err)
	}
	if len(newest) == 0 {
		return "0-0"
	}
	return newest[0].ID
}

// announced are the revocations of this device since last.
func (w *world) announced(last string) []map[string]any {
	w.t.Helper()
	entries, err := w.rdb.XRange(w.ctx(), RevokedStream, "("+last, "+").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	var mine []map[string]any
	for _, e := range entries {
		if e.Values["client_id"] == w.id.String() {
			mine = append(mine, e.Values)
		}
	}
	return mine
}

// TestRepeated: an operation whose answer was lost on its way from Redis is sent again, with the
// same token in hand. It answers what it answered, and the record is what it was.
func TestRepeated(t *testing.T) {
	tests := []struct {
		name  string
		setup func(w *world) (presented wire.Token)
		do    func(w *world, presented wire.Token) (answer any, err error)
		// The second answer where it differs: a promotion that was made is ok.
		then func(any) any
	}{
		{
			name:  "issue",
			setup: func(w *world) wire.Token { w.issue(Enrolment{ClientID: w.id, Owner: "a/0"}); return wire.Token{} },
			do: func(w *world, _ wire.Token) (any, error) {
				g, err := w.store.Issue(w.ctx(), Enrolment{ClientID: w.id, Owner: "n/1"}, w.rules)
				return stable(g.Record, g.Token), err
			},
		},
		{
			name:  "verify that promotes",
			setup: func(w *world) wire.Token { return w.rotate(w.enrol()) },
			do: func(w *world, presented wire.Token) (any, error) {
				v, err := w.store.Verify(w.ctx(), w.id, presented, "", w.rules)
				return answered{v.Result, stable(v.Record, v.Fresh)}, err
			},
			then: func(a any) any {
				second := a.(answered)
				second.result = authapi.ResultOK
				return second
			},
		},
		{
			name:  "verify that claims",
			setup: (*world).enrol,
			do: func(w *world, presented wire.Token) (any, error) {
				v, err := w.store.Verify(w.ctx(), w.id, presented, "m/2", w.rules)
				return answered{v.Result, stable(v.Record, v.Fresh)}, err
			},
		},
		{
			name: "HELLO with the previous token",
			setup: func(w *world) wire.Token {
				first := w.enrol()
				w.promote(first)
				return first
			},
			do: func(w *world, presented wire.Token) (any, error) {
				v, err := w.store.Verify(w.ctx(), w.id, presented, "m/2", w.rules)
				return answered{v.Result, stable(v.Record, v.Fresh)}, err
			},
		},
		{
			name:  "rotate",
			setup: (*world).enrol,
			do: func(w *world, presented wire.Token) (any, error) {
				g, err := w.store.Rotate(w.ctx(), w.id, presented, "n/1", w.rules)
				return stable(g.Record, g.Token), err
			},
		},
		{
			name:  "rotate after a lost promotion",
			setup: func(w *world) wire.Token { return w.rotate(w.enrol()) },
			do: func(w *world, presented wire.Token) (any, error) {
				g, err := w.store.Rotate(w.ctx(), w.id, presented, "n/1", w.rules)
				return stable(g.Record, g.Token), err
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachWorld(t, func(t *testing.T, w *world) {
				presented := tt.setup(w)
				fresh := New()
				w.store.generate = func() wire.Token { return fresh }
				first, err := tt.do(w, presented)
				if err != nil {
					t.Fatal(err)
				}
				record := w.fields()
				second, err := tt.do(w, presented)
				if err != nil {
					t.Fatalf("the second time: %v", err)
				}
				want := first
				if tt.then != nil {
					want = tt.then(first)
				}
				if second != want {
					t.Errorf("the second time %+v, want %+v", second, want)
				}
				if !maps.Equal(w.fields(), record) {
					t.Error("the second time changed the record")
				}
			})
		})
	}
}

type answered struct {
	result authapi.Result
	record any
}

// stable is what of an answer does not depend on the moment.
func stable(r Record, t wire.Token) any {
	r.ExpiresIn, r.GraceLeft = 0, 0
	return struct {
		Record
		token string
	}{r, t.Text()}
}

// TestLateRotation: a rotation that was given up and is carried out after its repetition does not
// replace the token that the repetition has handed out.
func TestLateRotation(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		cur := w.enrol()
		late := func() string {
			r, _, err := w.store.run(w.ctx(), w.store.scripts.rotate, true, []string{Key(w.id)},
				hash(cur), hash(New()), millis(w.rules.TTL), "n/1", millis(w.rules.Grace), "")
			if err != nil {
				t.Fatal(err)
			}
			return r.code
		}
		next := w.rotate(cur)
		if got := late(); got != answerOvertaken {
			t.Errorf("late, before the token is used: %s, want overtaken", got)
		}
		if v := w.verify(next, ""); v.Result != authapi.ResultPromoted {
			t.Errorf("the token handed out: %s, want promoted", v.Result)
		}
		if got := late(); got != string(authapi.CodeNotCurrent) {
			t.Errorf("late, after the token was used: %s, want not_current", got)
		}
		if got := w.result(next, ""); got != "ok" {
			t.Errorf("the token in use: %s, want ok", got)
		}
	})
}
