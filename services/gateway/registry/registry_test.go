package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zaptest"

	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

// heard is what a registry told its gateway.
type heard struct {
	mu      sync.Mutex
	revoked []string
	gaps    int
	states  []error
}

func (h *heard) count(id wire.ClientID, code wire.Code, announced bool) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, r := range h.revoked {
		if r == fmt.Sprint(id, " ", code, " ", announced) {
			n++
		}
	}
	return n
}

// shared is a client that outlives the registry that uses it.
type shared struct{ redis.UniversalClient }

func (shared) Close() error { return nil }

func start(t *testing.T, node string, open func(context.Context) (redis.UniversalClient, error)) (*Registry, *heard) {
	t.Helper()
	return startRechecking(t, node, open, 100*time.Millisecond)
}

func startRechecking(t *testing.T, node string, open func(context.Context) (redis.UniversalClient, error), recheck time.Duration) (*Registry, *heard) {
	t.Helper()
	h := &heard{}
	r := New(Config{
		Node: node, Self: Node{Push: "10.0.0.1:9400", Admin: "10.0.0.1:9090", Boot: "b"}, Open: open,
		Recheck: func() time.Duration { return recheck },
		OnRevoked: func(r Revocation) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.revoked = append(h.revoked, fmt.Sprint(r.ClientID, " ", r.Code, " ", r.Announced))
		},
		OnGap:   func(string) { h.mu.Lock(); defer h.mu.Unlock(); h.gaps++ },
		OnState: func(err error) { h.mu.Lock(); defer h.mu.Unlock(); h.states = append(h.states, err) },
		Log:     zaptest.NewLogger(t),
	})
	r.Start()
	t.Cleanup(r.Kill)
	return r, h
}

func over(rdb redis.UniversalClient) func(context.Context) (redis.UniversalClient, error) {
	return func(context.Context) (redis.UniversalClient, error) { return shared{rdb}, nil }
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func randomID() (id wire.ClientID) {
	for i := range id {
		id[i] = byte(rand.Uint32())
	}
	return id
}

func TestNodeKey(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		name := fmt.Sprintf("gw-%x", rand.Uint64())
		r, _ := start(t, name, over(rdb))
		eventually(t, "the node is known", func() bool { _, err := r.Lookup(t.Context(), name); return err == nil })
		value, err := rdb.Get(t.Context(), "goshield:node:"+name).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]string
		if err := json.Unmarshal(value, &fields); err != nil || fields["push"] != "10.0.0.1:9400" || fields["admin"] != "10.0.0.1:9090" || fields["boot"] != "b" {
			t.Errorf("goshield:node:%s = %s, want push, admin and boot", name, value)
		}
		if ttl := rdb.PTTL(t.Context(), "goshield:node:"+name).Val(); ttl <= 0 || ttl > NodeTTL {
			t.Errorf("ttl = %v, want up to %v", ttl, NodeTTL)
		}
		if err := rdb.Del(t.Context(), "goshield:node:"+name).Err(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the key is written again", func() bool { _, err := r.Lookup(t.Context(), name); return err == nil })
		r.Close(t.Context())
		if n := rdb.Exists(t.Context(), "goshield:node:"+name).Val(); n != 0 {
			t.Error("the key is there after Close, want it deleted")
		}
		if _, err := r.Lookup(t.Context(), name); !errors.Is(err, ErrNotConnected) {
			t.Errorf("lookup of a node that ended = %v, want ErrNotConnected", err)
		}
	})
}

// Names are kept while nodes live, and those that died are not told.
func TestNodes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		prefix := fmt.Sprintf("gw-%x-", rand.Uint64())
		names := func(r *Registry) (own []string) {
			nodes, _ := r.Nodes(t.Context()) // an error, and none, until Redis was reached
			for _, n := range nodes {
				if rest, ok := strings.CutPrefix(n.Name, prefix); ok && n.Push == "10.0.0.1:9400" {
					own = append(own, rest)
				}
			}
			return own
		}
		a, _ := start(t, prefix+"a", over(rdb))
		b, _ := start(t, prefix+"b", over(rdb))
		eventually(t, "both are known", func() bool { return slices.Equal(names(a), []string{"a", "b"}) })
		long := time.Now().Add(-2 * namesKept).Unix()
		if err := rdb.ZAdd(t.Context(), nodesKey, redis.Z{Score: float64(long), Member: prefix + "dead"}).Err(); err != nil {
			t.Fatal(err)
		}
		if got := names(b); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("nodes = %q, want those that live", got)
		}
		eventually(t, "a name from long ago is forgotten", func() bool {
			return errors.Is(rdb.ZScore(t.Context(), nodesKey, prefix+"dead").Err(), redis.Nil)
		})
		a.Close(t.Context())
		if got := names(b); !slices.Equal(got, []string{"b"}) {
			t.Errorf("nodes after the end of one = %q, want the other", got)
		}
		if err := rdb.ZScore(t.Context(), nodesKey, prefix+"a").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("its name = %v, want it gone", err)
		}
	})
}

func TestRecords(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		r, _ := start(t, fmt.Sprintf("gw-%x", rand.Uint64()), over(rdb))
		eventually(t, "redis is reached", func() bool { _, err := r.Client(); return err == nil })
		owned, free, revoked, unknown := randomID(), randomID(), randomID(), randomID()
		for id, fields := range map[wire.ClientID][]any{
			owned:   {"owner", "gw-2/ab", "epoch", 42, "gen", 1},
			free:    {"owner", "", "epoch", 43, "gen", 2},
			revoked: {"revoked", "token_reused", "epoch", 44, "gen", 2, "owner", ""},
		} {
			if err := rdb.HSet(t.Context(), "goshield:token:{"+id.String()+"}", fields...).Err(); err != nil {
				t.Fatal(err)
			}
		}
		got, err := r.Records(t.Context(), []wire.ClientID{owned, free, revoked, unknown})
		if err != nil {
			t.Fatal(err)
		}
		want := []Record{
			{Known: true, Owner: Owner{Node: "gw-2", Session: "ab", Epoch: 42}},
			{Known: true, Owner: Owner{Epoch: 43}},
			{Known: true, Revoked: wire.CodeTokenReused, Owner: Owner{Epoch: 44}},
			{},
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("record %d = %+v, want %+v", i, got[i], want[i])
			}
		}
		if o, err := r.Locate(t.Context(), owned); err != nil || o != want[0].Owner {
			t.Errorf("locate = %+v, %v, want %+v", o, err, want[0].Owner)
		}
		for _, id := range []wire.ClientID{free, unknown} {
			if _, err := r.Locate(t.Context(), id); !errors.Is(err, ErrNotConnected) {
				t.Errorf("locate of a device that nobody has = %v, want ErrNotConnected", err)
			}
		}
	})
}

func TestRevocations(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		before, announced, streamed := randomID(), randomID(), randomID()
		add := func(id wire.ClientID, code wire.Code) {
			t.Helper()
			err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: "goshield:revoked", MaxLen: 100000, Approx: true,
				Values: []any{"client_id", id.String(), "code", string(code)}}).Err()
			if err != nil {
				t.Fatal(err)
			}
		}
		add(before, wire.CodeRevoked)
		r, h := start(t, fmt.Sprintf("gw-%x", rand.Uint64()), over(rdb))
		eventually(t, "revocations are followed", r.Following)
		// Nobody repeats an announcement to a subscription that was lost for a moment.
		eventually(t, "the announcement is heard", func() bool {
			if err := rdb.Publish(t.Context(), "goshield:revoked", announced.String()+" revoked").Err(); err != nil {
				t.Fatal(err)
			}
			return h.count(announced, wire.CodeRevoked, true) > 0
		})
		for range 3 {
			add(streamed, wire.CodeTokenReused)
		}
		eventually(t, "the stream is read", func() bool { return h.count(streamed, wire.CodeTokenReused, false) == 3 })
		if n := h.count(before, wire.CodeRevoked, false); n != 0 {
			t.Errorf("an entry from before the start was heard %d times, want 0", n)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.gaps != 1 && len(h.states) == 0 {
			t.Errorf("gaps = %d, want 1: the beginning", h.gaps)
		}
	})
}

// More entries than a page holds are all heard, and what makes no sense is passed over.
func TestRevocationsInPages(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	_ = e
	r, h := start(t, "gw-1", over(rdb))
	eventually(t, "revocations are followed", r.Following)
	id := randomID()
	pipe := rdb.Pipeline()
	for i := range 2*streamPage + 10 {
		values := []any{"client_id", id.String(), "code", "revoked"}
		if i == 5 {
			values = []any{"client_id", "nonsense", "code", "revoked"}
		}
		if i == 6 {
			values = []any{"client_id", id.String(), "code", "unheard_of"}
		}
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: "goshield:revoked", Values: values})
	}
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "every entry is heard", func() bool { return h.count(id, wire.CodeRevoked, false) == 2*streamPage+9 })
}

// reads tells of each read of a stream, when it is over.
type reads chan struct{}

func (reads) DialHook(next redis.DialHook) redis.DialHook { return next }

func (reads) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (r reads) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == "xrange" {
			select {
			case r <- struct{}{}:
			default:
			}
		}
		return err
	}
}

// An entry that comes just after the stream was read is found within a recheck all the same.
func TestStreamIsReadWithinARecheck(t *testing.T) {
	const recheck = time.Second
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		r, h := startRechecking(t, fmt.Sprintf("gw-%x", rand.Uint64()), over(rdb), recheck)
		eventually(t, "revocations are followed", r.Following)
		read := make(reads)
		rdb.AddHook(read)
		var times []time.Duration
		for range 5 {
			select {
			case <-read:
			case <-time.After(time.Minute):
				t.Fatal("the stream is not read")
			}
			id, at := randomID(), time.Now()
			if err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: "goshield:revoked", MaxLen: 100000, Approx: true,
				Values: []any{"client_id", id.String(), "code", "revoked"}}).Err(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the entry is heard", func() bool { return h.count(id, wire.CodeRevoked, false) == 1 })
			times = append(times, time.Since(at))
		}
		slices.Sort(times)
		if median := times[len(times)/2]; median > recheck {
			t.Errorf("found after %v at the median, want within %v", median, recheck)
		}
	})
}

// A stream that no longer has the entry that was read last may have lost others with it: that is a gap, and what comes then
// is heard although, by the clock of another primary, it is earlier.
func TestStreamThatLostItsEnd(t *testing.T) {
	_, rdb := redistest.Embedded(t)
	r, h := start(t, "gw-1", over(rdb))
	eventually(t, "revocations are followed", r.Following)
	gaps := func() int { h.mu.Lock(); defer h.mu.Unlock(); return h.gaps }
	before := gaps()
	add := func(entry string) wire.ClientID {
		t.Helper()
		id := randomID()
		if err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: "goshield:revoked", ID: entry, Values: []any{"client_id", id.String(), "code", "revoked"}}).Err(); err != nil {
			t.Fatal(err)
		}
		return id
	}
	read := add("*")
	eventually(t, "an entry is heard", func() bool { return h.count(read, wire.CodeRevoked, false) == 1 })
	if got := gaps(); got != before {
		t.Errorf("gaps = %d, want %d", got, before)
	}
	if err := rdb.Del(t.Context(), "goshield:revoked").Err(); err != nil {
		t.Fatal(err)
	}
	add("5-1")
	eventually(t, "the loss is noticed", func() bool { return gaps() > before })
	next := add("6-1")
	eventually(t, "an entry after the loss is heard", func() bool { return h.count(next, wire.CodeRevoked, false) == 1 })
	if got := h.count(read, wire.CodeRevoked, false); got != 1 {
		t.Errorf("an entry was heard %d times, want once", got)
	}
}

// Redis may be away at the start, and go away later: nothing ends, and what the stream
// held meanwhile is heard.
func TestRedisAway(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	e.Stop()
	cfg := e.Config()
	r, h := start(t, "gw-1", func(ctx context.Context) (redis.UniversalClient, error) {
		cfg.Mode = redisdb.ModeAuto // asks the server, and so fails while there is none
		return redisdb.Open(ctx, cfg)
	})
	if _, err := r.Locate(t.Context(), randomID()); err == nil || errors.Is(err, ErrNotConnected) {
		t.Errorf("locate without Redis = %v, want an error that is no verdict", err)
	}
	states := func(n int) func() bool {
		return func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.states) == n }
	}
	eventually(t, "the outage is told", states(1))
	if err := e.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "revocations are followed", r.Following)
	eventually(t, "the end of the outage is told", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.states[len(h.states)-1] == nil
	})
	id := randomID()
	if err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: "goshield:revoked", Values: []any{"client_id", randomID().String(), "code", "revoked"}}).Err(); err != nil {
		t.Fatal(err)
	}
	e.Stop()
	eventually(t, "the second outage is told", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.states) >= 3 })
	if err := e.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: "goshield:revoked", Values: []any{"client_id", id.String(), "code", "revoked"}}).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revocation after the outage is heard", func() bool { return h.count(id, wire.CodeRevoked, false) > 0 })
}

func TestParseOwner(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Owner
		ok   bool
	}{
		{"gw-1/2a", Owner{Node: "gw-1", Session: "2a"}, true},
		{"", Owner{}, false},
		{"gw-1", Owner{}, false},
		{"/2a", Owner{}, false},
		{"gw-1/", Owner{}, false},
	} {
		got, ok := ParseOwner(tt.text)
		if got != tt.want || ok != tt.ok {
			t.Errorf("ParseOwner(%q) = %+v, %v, want %+v, %v", tt.text, got, ok, tt.want, tt.ok)
		}
	}
	if got := (Owner{Node: "gw-1", Session: "2a", Epoch: 5}).String(); got != "gw-1/2a" {
		t.Errorf("owner = %q, want gw-1/2a", got)
	}
}
