package token

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
)

func TestMain(m *testing.M) {
	redisdb.LogTo(zap.NewNop()) // outages are what some tests are about
	redistest.VerifyTestMain(m)
}

// The rules of the tests. Both are far longer than any test takes.
var rules = Rules{TTL: 10 * time.Hour, Grace: time.Hour}

// world is one device, in a store.
type world struct {
	t     testing.TB
	rdb   redis.UniversalClient
	store *Store
	id    wire.ClientID
	rules Rules
}

func newWorld(t testing.TB, rdb redis.UniversalClient) *world {
	store := NewStore(rdb, zap.NewNop())
	store.WaitFor(20 * time.Second) // a replica on a busy machine is late, not away
	return &world{t: t, rdb: rdb, store: store, id: newID(), rules: rules}
}

// eachWorld runs a test in a world of every Redis there is.
func eachWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) { test(t, newWorld(t, rdb)) })
}

func newID() (id wire.ClientID) {
	_, _ = rand.Read(id[:])
	return id
}

// ctx ends in a minute: what takes longer hangs.
func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

// pass lets time pass for the record: everything in it lies d further back. That works on any
// Redis, and takes none.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	key, ctx := Key(w.id), w.ctx()
	for _, field := range []string{"cur_exp", "next_exp", "prev_until", "rotated"} {
		ms, err := w.rdb.HGet(ctx, key, field).Int64()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err == nil {
			err = w.rdb.HSet(ctx, key, field, strconv.FormatInt(ms-d.Milliseconds(), 10)).Err()
		}
		if err != nil {
			w.t.Fatalf("let time pass: %v", err)
		}
	}
	ttl, err := w.rdb.PTTL(ctx, key).Result()
	if err != nil {
		w.t.Fatalf("let time pass: %v", err)
	}
	if ttl > 0 {
		if err := w.rdb.PExpire(ctx, key, ttl-d).Err(); err != nil {
			w.t.Fatalf("let time pass: %v", err)
		}
	}
}

// fields is the record as Redis has it.
func (w *world) fields() map[string]string {
	w.t.Helper()
	f, err := w.rdb.HGetAll(w.ctx(), Key(w.id)).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// enrol issues a token to session n/1.
func (w *world) enrol() wire.Token {
	w.t.Helper()
	return w.issue(Enrolment{ClientID: w.id, Owner: "n/1"}).Token
}

func (w *world) issue(e Enrolment) Grant {
	w.t.Helper()
	g, err := w.store.Issue(w.ctx(), e, w.rules)
	if err != nil {
		w.t.Fatalf("issue: %v", err)
	}
	return g
}

// rotate must succeed, as session n/1.
func (w *world) rotate(t wire.Token) wire.Token {
	w.t.Helper()
	g, err := w.store.Rotate(w.ctx(), w.id, t, "n/1", w.rules)
	if err != nil {
		w.t.Fatalf("rotate: %v", err)
	}
	return g.Token
}

// verify must succeed.
func (w *world) verify(t wire.Token, owner string) Verdict {
	w.t.Helper()
	v, err := w.store.Verify(w.ctx(), w.id, t, owner, w.rules)
	if err != nil {
		w.t.Fatalf("verify: %v", err)
	}
	return v
}

// promote rotates t and uses its successor.
func (w *world) promote(t wire.Token) wire.Token {
	w.t.Helper()
	next := w.rotate(t)
	if v := w.verify(next, ""); v.Result != authapi.ResultPromoted {
		w.t.Fatalf("verify of a next token: %s, want promoted", v.Result)
	}
	return next
}

// result is what a verify says: its result, or the code of the refusal.
func (w *world) result(t wire.Token, owner string) string {
	w.t.Helper()
	v, err := w.store.Verify(w.ctx(), w.id, t, owner, w.rules)
	return said(w.t, string(v.Result), err)
}

// said is the result where err is nil, and the code where it is a refusal.
func said(t testing.TB, result string, err error) string {
	t.Helper()
	var refusal *Refusal
	switch {
	case err == nil:
		return result
	case errors.As(err, &refusal):
		return string(refusal.Code)
	}
	t.Fatal(err)
	return ""
}
