package token

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
)

// Which server an operation goes to, and what becomes of it when that is not there.

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
