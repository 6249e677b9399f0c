package token

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
)

// Whether there is a replica to wait for, and what becomes of a write that none has.

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
