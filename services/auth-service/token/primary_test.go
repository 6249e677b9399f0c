package token

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
)

// replicated is a Redis that says it has a replica, and whose WAIT counts as many as it is told.
type replicated struct {
	*miniredis.Miniredis
	waits     atomic.Int64
	confirmed atomic.Int64
}

func startReplicated(t *testing.T) (*replicated, *world) {
	t.Helper()
	r := &replicated{Miniredis: miniredis.RunT(t)}
	r.confirmed.Store(1)
	r.Server().SetPreHook(func(c *server.Peer, cmd string, _ ...string) bool {
		if !strings.EqualFold(cmd, "wait") {
			return false
		}
		r.waits.Add(1)
		c.WriteInt(int(r.confirmed.Load()))
		return true
	})
	err := r.Server().Register("ROLE", func(c *server.Peer, _ string, _ []string) {
		c.WriteLen(3)
		c.WriteBulk("master")
		c.WriteInt(1)
		c.WriteLen(1)
		c.WriteStrings([]string{"10.0.0.1", "6379", "1"})
	})
	if err != nil {
		t.Fatal(err)
	}
	rdb, err := redisdb.Open(t.Context(), redisdb.Config{Addresses: []string{r.Addr()}, Mode: redisdb.ModeSingle, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rdb.Close() })
	return r, newWorld(t, rdb)
}

// TestUnconfirmed: what becomes of a write that no replica has.
func TestUnconfirmed(t *testing.T) {
	r, w := startReplicated(t)
	w.enrol() // the script is known from now on
	r.waits.Store(0)
	if g := w.issue(Enrolment{ClientID: w.id, Owner: "n/1"}); !g.Confirmed || r.waits.Load() != 1 {
		t.Errorf("issue with a replica: confirmed %v after %d WAITs, want true after 1", g.Confirmed, r.waits.Load())
	}
	r.confirmed.Store(0)
	g := w.issue(Enrolment{ClientID: w.id, Owner: "n/1"})
	if g.Confirmed {
		t.Error("issue without a replica: confirmed")
	}
	if got := w.result(g.Token, "n/1"); got != "ok" {
		t.Errorf("the unconfirmed token: %s, want ok", got)
	}
	if _, err := w.store.Rotate(w.ctx(), w.id, g.Token, "n/1", w.rules); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("Rotate() without a replica = %v, want ErrUnconfirmed", err)
	}
	if _, err := w.store.Revoke(w.ctx(), w.id); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("Revoke() without a replica = %v, want ErrUnconfirmed", err)
	}
	if got := w.result(g.Token, ""); got != "revoked" {
		t.Errorf("after the unconfirmed revocation: %s, want revoked", got)
	}
	if got := len(w.announced("0-0")); got != 1 {
		t.Errorf("announced %d times, want once: whoever hears of it early loses nothing", got)
	}
	r.confirmed.Store(1)
	w.revoke()
}

// TestWithoutReplicas: a Redis set up without replicas is not waited for, which is said once.
func TestWithoutReplicas(t *testing.T) {
	_, rdb := redistest.Embedded(t)
	core, logged := observer.New(zap.WarnLevel)
	w := newWorld(t, rdb)
	w.store = NewStore(rdb, zap.New(core))
	for range 3 {
		if g := w.issue(Enrolment{ClientID: w.id, Owner: "n/1"}); !g.Confirmed {
			t.Error("issue: not confirmed, though there is nobody to confirm")
		}
		w.store.replicas.asked = time.Time{} // ask again
	}
	if got := logged.FilterMessageSnippet("no replicas").Len(); got != 1 {
		t.Errorf("said %d times, want once", got)
	}
}

// TestReplicasAreAskedForOnce: who writes while nobody knows yet whether there are replicas waits for the
// answer to the first caller's question, instead of taking it that there are.
func TestReplicasAreAskedForOnce(t *testing.T) {
	mini := miniredis.RunT(t)
	const writers = 50
	asked, answer := make(chan struct{}, writers), make(chan struct{})
	var questions, waits atomic.Int64
	mini.Server().SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
		if strings.EqualFold(cmd, "wait") {
			waits.Add(1)
		}
		return false
	})
	err := mini.Server().Register("ROLE", func(c *server.Peer, _ string, _ []string) {
		questions.Add(1)
		asked <- struct{}{}
		<-answer
		c.WriteLen(3)
		c.WriteBulk("master")
		c.WriteInt(0)
		c.WriteLen(0)
	})
	if err != nil {
		t.Fatal(err)
	}
	rdb, err := redisdb.Open(t.Context(), redisdb.Config{Addresses: []string{mini.Addr()}, Mode: redisdb.ModeSingle, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rdb.Close() }()
	store := NewStore(rdb, zap.NewNop())
	unconfirmed := make(chan string, writers)
	var writing sync.WaitGroup
	for range writers {
		writing.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			g, err := store.Issue(ctx, Enrolment{ClientID: newID(), Owner: "n/1"}, rules)
			if err != nil || !g.Confirmed {
				unconfirmed <- fmt.Sprintf("confirmed %v, %v", g.Confirmed, err)
			}
		})
	}
	<-asked
	hurried, cancel := context.WithCancel(t.Context())
	cancel()
	if !store.replicas.expected(hurried) {
		t.Error("who cannot wait for the answer takes it that there are none")
	}
	close(answer)
	writing.Wait()
	close(unconfirmed)
	for fault := range unconfirmed {
		t.Errorf("an enrolment on a Redis without replicas: %s", fault)
	}
	if questions.Load() != 1 || waits.Load() != 0 {
		t.Errorf("asked %d times, waited %d times; want 1, 0", questions.Load(), waits.Load())
	}
}

// TestReplicasStayExpected: one that was seen is waited for even when it is gone.
func TestReplicasStayExpected(t *testing.T) {
	r, w := startReplicated(t)
	w.enrol()
	r.confirmed.Store(0)
	if err := w.rdb.Do(w.ctx(), "role").Err(); err != nil {
		t.Fatal(err)
	}
	w.store.replicas.asked = time.Time{}
	if !w.store.replicas.expected(w.ctx()) {
		t.Error("replicas are not expected any more")
	}
}

// TestForgottenScripts: a server that was restarted, or is new, knows no scripts.
func TestForgottenScripts(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		forget := func() {
			t.Helper()
			if err := w.rdb.ScriptFlush(w.ctx()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		forget()
		g := w.issue(Enrolment{ClientID: w.id, Owner: "n/1"})
		forget()
		next := w.rotate(g.Token)
		forget()
		if got := w.result(next, ""); got != "promoted" {
			t.Errorf("verify: %s, want promoted", got)
		}
		forget()
		w.release(g.Epoch, 1)
		forget()
		w.revoke()
	})
}

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

// TestGone: without Redis every operation fails, in the time it is given.
func TestGone(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	w := newWorld(t, rdb)
	e.Stop()
	for name, do := range map[string]func(context.Context) error{
		"issue": func(ctx context.Context) error {
			_, err := w.store.Issue(ctx, Enrolment{ClientID: w.id, Owner: "n/1"}, w.rules)
			return err
		},
		"verify": func(ctx context.Context) error {
			_, err := w.store.Verify(ctx, w.id, New(), "n/1", w.rules)
			return err
		},
		"rotate": func(ctx context.Context) error {
			_, err := w.store.Rotate(ctx, w.id, New(), "n/1", w.rules)
			return err
		},
		"revoke": func(ctx context.Context) error { _, err := w.store.Revoke(ctx, w.id); return err },
		"release": func(ctx context.Context) error {
			_, err := w.store.Release(ctx, []authapi.Release{{ClientID: w.id}})
			return err
		},
		"get": func(ctx context.Context) error { _, err := w.store.Get(ctx, w.id); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		start := time.Now()
		err := do(ctx)
		cancel()
		var refusal *Refusal
		if err == nil || errors.As(err, &refusal) || errors.Is(err, ErrNoRecord) {
			t.Errorf("%s: %v, want a fault", name, err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s took %v, was given 300ms", name, took)
		}
	}
}

// TestFrozen: a Redis that takes connections and says nothing is given up in the time given.
func TestFrozen(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }() // the kernel completes the handshakes; nobody accepts
	rdb, err := redisdb.Open(t.Context(), redisdb.Config{Addresses: []string{ln.Addr().String()}, Mode: redisdb.ModeSingle, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rdb.Close() }()
	w := newWorld(t, rdb)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := w.store.Verify(ctx, w.id, New(), "", w.rules); err == nil {
		t.Error("Verify() = nil, want a fault")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v, was given 300ms", took)
	}
}

// TestMovingSlot: while a record's slot moves to another node, and after that, every operation is
// carried out and confirmed (RELIABILITY row 38). It moves the slot back.
func TestMovingSlot(t *testing.T) {
	if redistest.ClusterAddrs() == nil {
		return
	}
	rdb := redistest.Cluster(t).(*redis.ClusterClient)
	w := newWorld(t, rdb)
	m := newMove(t, rdb, w)
	cur := w.enrol()

	m.begin()
	if got := w.result(cur, ""); got != "ok" { // still where it was
		t.Errorf("before the record moved: %s, want ok", got)
	}
	m.record()
	next := w.rotate(cur) // ASK
	if got := w.result(next, "n/2"); got != "promoted" {
		t.Errorf("after the record moved: %s, want promoted", got)
	}
	m.end()
	if g, err := w.store.Rotate(w.ctx(), w.id, next, "n/2", w.rules); err != nil || !g.Confirmed { // MOVED
		t.Errorf("after the slot moved: %v, %v, want confirmed", g.Confirmed, err)
	}
	w.revoke()
}

// move brings one slot from its node to another.
type move struct {
	t        *testing.T
	w        *world
	rdb      *redis.ClusterClient
	slot     int64
	from, to *redis.Client
	ids      map[*redis.Client]string
	ended    bool
}

func newMove(t *testing.T, rdb *redis.ClusterClient, w *world) *move {
	t.Helper()
	m := &move{t: t, w: w, rdb: rdb, ids: map[*redis.Client]string{}}
	var err error
	if m.slot, err = rdb.ClusterKeySlot(w.ctx(), Key(w.id)).Result(); err != nil {
		t.Fatal(err)
	}
	if m.from, err = rdb.MasterForKey(w.ctx(), Key(w.id)); err != nil {
		t.Fatal(err)
	}
	for m.to = m.from; m.to == m.from; {
		if m.to, err = rdb.MasterForKey(w.ctx(), newID().String()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*redis.Client{m.from, m.to} {
		id, err := c.Do(w.ctx(), "cluster", "myid").Text()
		if err != nil {
			t.Fatal(err)
		}
		m.ids[c] = id
	}
	m.agreed(m.from)
	return m
}

// agreed waits until all nodes say the same of who has the slot, and of the epochs of both nodes. Who imports a slot takes
// an epoch above those that it has heard of; before it has heard of the one of the last move, it would take one that
// the others do not believe.
func (m *move) agreed(owner *redis.Client) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	redistest.Until(m.t, "all nodes agree on who has the slot", func() bool {
		var mu sync.Mutex
		views := map[string]bool{}
		err := m.rdb.ForEachShard(ctx, func(ctx context.Context, c *redis.Client) error {
			text, err := c.ClusterNodes(ctx).Result()
			mu.Lock()
			defer mu.Unlock()
			views[m.view(text, owner)] = true
			return err
		})
		return err == nil && len(views) == 1 && !views[""]
	})
}

// view is what a node says of the epochs of both nodes; "" if the slot is not the owner's there.
func (m *move) view(nodes string, owner *redis.Client) (epochs string) {
	has := false
	for line := range strings.Lines(nodes) {
		f := strings.Fields(line) // id, address, flags, primary, ping, pong, epoch, state, slots
		if len(f) < 8 || (f[0] != m.ids[m.from] && f[0] != m.ids[m.to]) {
			continue
		}
		epochs += f[0] + " " + f[6] + "\n"
		for _, slots := range f[8:] {
			first, last, isRange := strings.Cut(slots, "-")
			if !isRange {
				last = first
			}
			low, err1 := strconv.ParseInt(first, 10, 64)
			high, err2 := strconv.ParseInt(last, 10, 64) // neither is a number where a slot is on its way
			if err1 == nil && err2 == nil && low <= m.slot && m.slot <= high {
				has = f[0] == m.ids[owner]
			}
		}
	}
	if !has {
		return ""
	}
	lines := slices.Sorted(strings.Lines(epochs)) // each node begins with another
	return strings.Join(lines, "")
}

func (m *move) do(c *redis.Client, args ...any) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Do(ctx, args...).Err(); err != nil {
		m.t.Errorf("%v: %v", args, err)
	}
}

func (m *move) begin() {
	m.do(m.to, "cluster", "setslot", m.slot, "importing", m.ids[m.from])
	m.do(m.from, "cluster", "setslot", m.slot, "migrating", m.ids[m.to])
	m.t.Cleanup(m.undo)
}

// undo leaves the slot where it was, from wherever the test left it.
func (m *move) undo() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, c := range []*redis.Client{m.from, m.to} {
		p := c.Pipeline()
		p.Do(ctx, "asking")
		p.Del(ctx, Key(m.w.id))
		_, _ = p.Exec(ctx) // one of the two has it
		if !m.ended {
			m.do(c, "cluster", "setslot", m.slot, "stable")
		}
	}
	if m.ended {
		// As a move of its own: only who imports a slot gets an epoch that the others believe.
		m.do(m.from, "cluster", "setslot", m.slot, "importing", m.ids[m.to])
		m.do(m.to, "cluster", "setslot", m.slot, "migrating", m.ids[m.from])
		m.do(m.from, "cluster", "setslot", m.slot, "node", m.ids[m.from])
		m.do(m.to, "cluster", "setslot", m.slot, "node", m.ids[m.from])
		m.agreed(m.from)
	}
}

func (m *move) record() {
	host, port, err := net.SplitHostPort(m.to.Options().Addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.do(m.from, "migrate", host, port, Key(m.w.id), 0, 5000)
}

func (m *move) end() {
	m.do(m.to, "cluster", "setslot", m.slot, "node", m.ids[m.to])
	m.do(m.from, "cluster", "setslot", m.slot, "node", m.ids[m.to])
	m.ended = true
	m.agreed(m.to)
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
