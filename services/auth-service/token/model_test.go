package token

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
)

// The model check: a device, two gateways, a thief and an administrator do at random what they may
// do, while answers get lost, processes crash, primaries fail over to others whose clocks differ, and time passes. Every answer,
// and now and then the whole record, must be those of a plain Go model (record), and an honest
// device must get in with what it holds.

var (
	modelSteps = flag.Int("model.steps", 60_000, "steps of the model check on the embedded Redis; a tenth of them on the cluster")
	modelSeed  = flag.Uint64("model.seed", 0, "repeat a run; 0: a new one")
)

const modelWorlds = 2 // that run beside each other, on an embedded Redis of their own

// modelLimit is the time that a play gets; fewer steps than asked for until then are a failure. 60 000 steps in two worlds take
// 42 s under the race detector on two cores with nothing else to do.
const modelLimit = 15 * time.Minute

func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with -model.seed=%d", seed)
	steps := *modelSteps
	switch {
	case testing.Short():
		steps /= 20
	case os.Getenv("GOSHIELD_TEST_LONG") != "":
		steps *= 5
	}
	t.Run("worlds", func(t *testing.T) {
		for i := range modelWorlds {
			t.Run("embedded", func(t *testing.T) {
				t.Parallel()
				e, rdb := redistest.Embedded(t)
				newPlay(t, rdb, seed+uint64(i), e).run(steps / modelWorlds)
			})
		}
	})
	if redistest.ClusterAddrs() != nil {
		t.Run("cluster", func(t *testing.T) {
			newPlay(t, redistest.Cluster(t), seed, nil).run(steps / 10)
		})
	}
}

// record is what the store should have: PROTOCOL.md's table, in Go. Times are milliseconds from
// the start of the play.
type record struct {
	exists          bool
	cur, next, prev wire.Token
	curExp, nextExp int64
	prevUntil       int64
	old             []wire.Token
	gen             int64
	owner           string
	epoch           int64
	revoked         string
}

func (r *record) retire(t wire.Token) {
	if t.IsZero() {
		return
	}
	if r.old = append(r.old, t); len(r.old) > 8 {
		r.old = r.old[1:]
	}
}

func (r *record) promote(now, grace int64) {
	r.retire(r.prev)
	r.prev, r.prevUntil = r.cur, now+grace
	r.cur, r.curExp, r.gen = r.next, r.nextExp, r.gen+1
	r.next, r.nextExp = wire.Token{}, 0
}

// presented is what the table says of a token; it revokes on a replay.
func (r *record) presented(t wire.Token, now int64) string {
	switch {
	case !r.exists:
		return "bad_token"
	case r.revoked != "":
		return "revoked"
	case t == r.cur && now < r.curExp:
		return "cur"
	case t == r.next && now < r.nextExp:
		return "next"
	case t == r.cur || t == r.next:
		return "token_expired"
	case t == r.prev && now < r.prevUntil:
		return "prev"
	case t == r.prev || slices.Contains(r.old, t):
		r.revoked = "token_reused"
		return "token_reused"
	}
	return "bad_token"
}

// play is one run.
type play struct {
	*world
	rng    *rand.Rand
	mini   *redisdb.Embedded // its clock stands still but for elapse; nil: a Redis whose clock runs
	began  time.Time
	passed int64 // ms that were let pass
	step   int
	log    []string // the last steps, for the report of a failure

	want   record
	tokens []wire.Token // all that ever were handed to anybody

	// The device's storage: what it presents first, and what it falls back on.
	have, fallback wire.Token
	session        int // the number of its connection; 0: not connected
	sessions       int // so far
	// What the gateway of the connection remembers: rotated, told in every ack until it is used.
	pending wire.Token
	stale   wire.Token // that of the connection before, in an ack that is still on its way; until a promotion

	// Why the device may have to enrol anew: a thief or an administrator had the record revoked, its
	// time was over, or a failover lost the enrolment. "": it must get in with what it has.
	excuse string
}

func newPlay(t *testing.T, rdb redis.UniversalClient, seed uint64, mini *redisdb.Embedded) *play {
	p := &play{world: newWorld(t, rdb), rng: rand.New(rand.NewPCG(seed, 1)), mini: mini}
	p.store.generate = p.generate
	p.newDevice()
	return p
}

// generate remembers the tokens that are made. They are random by the seed.
func (p *play) generate() wire.Token {
	var t wire.Token
	for i := range t {
		t[i] = byte(p.rng.Uint32())
	}
	return t
}

func (p *play) newDevice() {
	p.id = newID()
	p.want = record{}
	p.tokens, p.have, p.fallback, p.pending, p.stale = nil, wire.Token{}, wire.Token{}, wire.Token{}, wire.Token{}
	p.session, p.passed, p.excuse = 0, 0, ""
	p.rules = Rules{TTL: 10 * time.Hour, Grace: []time.Duration{0, time.Hour, time.Second}[p.rng.IntN(3)]}
	if p.mini != nil {
		p.mini.SetTime(p.at())
	} else {
		p.began = time.Now()
		p.rules.Grace = p.rules.Grace.Truncate(time.Hour)
	}
	p.note("new device %s, grace %v", p.id, p.rules.Grace)
}

func (p *play) note(format string, args ...any) {
	p.log = append(p.log, fmt.Sprintf("%6d ", p.step)+fmt.Sprintf(format, args...))
	p.log = p.log[max(0, len(p.log)-30):]
}

func (p *play) fail(format string, args ...any) {
	p.t.Helper()
	for _, line := range p.log {
		p.t.Log(line)
	}
	p.t.Fatalf(format, args...)
}

// at is what the embedded Redis's clock shows.
func (p *play) at() time.Time {
	return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(p.passed) * time.Millisecond)
}

// elapsed is the play's time.
func (p *play) elapsed() int64 {
	if p.mini != nil {
		return p.passed
	}
	return p.passed + time.Since(p.began).Milliseconds()
}

// now is the play's time for a step. Where the clock runs, no deadline may be so near that the step
// could straddle it: time is let pass beyond it.
func (p *play) now() int64 {
	now := p.elapsed()
	if p.mini != nil || !p.want.exists {
		return now
	}
	const margin = 60_000
	for _, deadline := range []int64{p.want.curExp, p.want.nextExp, p.want.prevUntil} {
		noGrace := p.rules.Grace == 0 && deadline == p.want.prevUntil // over when it was set
		if d := deadline - now; !noGrace && deadline != 0 && d > -margin && d < margin {
			p.elapse(2 * margin)
			return p.now()
		}
	}
	return now
}

func (p *play) elapse(ms int64) {
	p.t.Helper()
	p.passed += ms
	if p.mini != nil {
		p.mini.SetTime(p.at())
	} else {
		p.pass(time.Duration(ms) * time.Millisecond)
	}
	if !p.want.exists || !p.gone() {
		return
	}
	if latest := max(p.want.curExp, p.want.nextExp); p.elapsed() < latest {
		p.fail("the record is gone at %d, its latest expiry is %d", p.elapsed(), latest)
	}
	p.want = record{}
	p.excuse = "its time was over"
}

func (p *play) gone() bool {
	p.t.Helper()
	n, err := p.rdb.Exists(p.ctx(), Key(p.id)).Result()
	if err != nil {
		p.fail("exists: %v", err)
	}
	return n == 0
}

func (p *play) run(steps int) {
	p.t.Helper()
	began, ends := time.Now(), time.Now().Add(modelLimit)
	for p.step = 1; p.step <= steps; p.step++ {
		if time.Now().After(ends) {
			p.t.Errorf("the machine is short of time: %d steps of %d in %v", p.step-1, steps, time.Since(began).Round(time.Second))
			break
		}
		switch n := p.rng.IntN(1000); {
		case n < 250:
			p.heartbeat()
		case n < 500:
			p.request()
		case n < 650:
			p.connect()
		case n < 750:
			p.disconnect()
		case n < 900:
			p.letTimePass()
		case n < 960:
			p.guess()
		case n < 985:
			p.replay()
		case n < 992:
			p.administrator()
		default:
			p.newDevice()
			continue
		}
		if p.unlucky(4) {
			p.check()
		}
	}
	p.check()
	p.t.Attr("model_steps", strconv.Itoa(p.step-1))
	p.t.Attr("model_took", time.Since(began).Round(time.Second).String())
}

// check compares the record with the model's.
func (p *play) check() {
	p.t.Helper()
	f := p.fields()
	if !p.want.exists {
		if len(f) != 0 {
			p.fail("there is a record")
		}
		return
	}
	w := &p.want
	oldTags := ""
	for _, t := range w.old {
		oldTags += hash(t)[:8]
	}
	text := func(t wire.Token) string {
		if t.IsZero() {
			return ""
		}
		return hash(t)
	}
	for _, x := range []struct{ name, want string }{
		{"cur", text(w.cur)}, {"next", text(w.next)}, {"prev", text(w.prev)}, {"old", oldTags},
		{"gen", strconv.FormatInt(w.gen, 10)}, {"owner", w.owner}, {"revoked", w.revoked},
	} {
		if f[x.name] != x.want {
			p.fail("%s = %q, want %q", x.name, f[x.name], x.want)
		}
	}
	if f["cur"] == f["next"] || f["cur"] == f["prev"] {
		p.fail("two tokens are the same")
	}
}

// undo returns, for one in n, what makes the next operation's write one that only the primary had,
// and that a failover loses; else nil.
func (p *play) undo(n int) func() {
	p.t.Helper()
	if !p.unlucky(n) {
		return nil
	}
	before, was := p.fields(), p.want
	was.old = slices.Clone(was.old)
	return func() {
		p.t.Helper()
		ctx, key := p.ctx(), Key(p.id)
		ttl := p.rdb.PTTL(ctx, key).Val()
		err := p.rdb.Del(ctx, key).Err()
		if len(before) > 0 {
			err = errors.Join(err, p.rdb.HSet(ctx, key, before).Err(), p.rdb.PExpire(ctx, key, ttl).Err())
		}
		if err != nil {
			p.fail("failover: %v", err)
		}
		p.want = was
		p.note("failover: the last write is lost")
		if p.mini != nil { // and the new primary's clock is off by up to ten minutes
			p.elapse(max(-p.passed, int64(p.rng.IntN(1_200_001))-600_000))
		}
	}
}

// unlucky is true for one in n.
func (p *play) unlucky(n int) bool { return p.rng.IntN(n) == 0 }
