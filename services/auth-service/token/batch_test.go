package token

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/redistest"
)

// held is a Redis client whose pipelines wait until the test closes release.
type held struct {
	*redis.Client
	release chan struct{}

	mu    sync.Mutex
	sizes []int // of the pipelines that were begun
}

func newHeld(t *testing.T) *held {
	t.Helper()
	h := &held{
		Client:  redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr(), Protocol: 2, DisableIdentity: true, PipelinePoolSize: -1}),
		release: make(chan struct{}),
	}
	t.Cleanup(func() { _ = h.Close() })
	h.AddHook(h)
	return h
}

// DialHook implements redis.Hook.
func (h *held) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (h *held) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook implements redis.Hook.
func (h *held) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.mu.Lock()
		h.sizes = append(h.sizes, len(cmds))
		h.mu.Unlock()
		<-h.release
		return next(ctx, cmds)
	}
}

func (h *held) begun() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]int(nil), h.sizes...)
}

// callers are those who have a command for a lane.
type callers struct {
	t  *testing.T
	b  *batches
	l  lane
	wg sync.WaitGroup
}

// call has one more say i, and be told i.
func (c *callers) call(ctx context.Context, i int, want error) {
	c.wg.Go(func() {
		cmd, _, err := c.b.do(ctx, c.l, func(ctx context.Context, p redis.Pipeliner) redis.Cmder { return p.Echo(ctx, strconv.Itoa(i)) })
		switch {
		case !errors.Is(err, want):
			c.t.Errorf("caller %d: %v, want %v", i, err, want)
		case err == nil && cmd.(*redis.StringCmd).Val() != strconv.Itoa(i):
			c.t.Errorf("caller %d was told %q", i, cmd.(*redis.StringCmd).Val())
		}
	})
}

// await waits until so many wait in the lane's queue.
func (c *callers) await(n int) {
	c.t.Helper()
	redistest.Until(c.t, strconv.Itoa(n)+" callers wait", func() bool {
		c.b.mu.Lock()
		defer c.b.mu.Unlock()
		q := c.b.lanes[c.l]
		return q != nil && len(q.waiting) == n
	})
}

// done wants that nothing is left of the lane when all have their answers.
func (c *callers) done() {
	c.t.Helper()
	c.wg.Wait()
	if len(c.b.lanes) != 0 {
		c.t.Errorf("%d lanes are left, want none", len(c.b.lanes))
	}
}

// TestBatches: who comes while as many pipelines as allowed are under way goes with the next one, which is bounded, and gets the
// answer to its own command. Who gives up is left out, or ends nothing for the others.
func TestBatches(t *testing.T) {
	h := newHeld(t)
	c := &callers{t: t, b: newBatches(), l: lane{to: h.Client}}
	first, leave := context.WithCancel(t.Context())
	for i := range maxSending {
		c.call(first, i, nil)
	}
	redistest.Until(t, "the first ones are sent", func() bool { return len(h.begun()) == maxSending })
	leave() // they are under way, for others perhaps
	const waiting = maxBatch + 50
	for i := range waiting {
		c.call(t.Context(), 1000+i, nil)
	}
	c.await(waiting)
	hurried, cancel := context.WithCancel(t.Context())
	c.call(hurried, 1, context.Canceled)
	c.await(waiting + 1)
	cancel()
	c.await(waiting)
	close(h.release)
	c.done()
	sent := 0
	for _, size := range h.begun()[maxSending:] {
		if sent += size; size > maxBatch {
			t.Errorf("a pipeline of %d commands, want at most %d", size, maxBatch)
		}
	}
	if sent != waiting {
		t.Errorf("%d commands were sent, want %d", sent, waiting)
	}
	if n := len(h.begun()) - maxSending; n > 2*maxSending {
		t.Errorf("%d pipelines for %d commands, want few", n, waiting)
	}
}

// TestBatchHandedToOneWhoLeaves: the right to send goes on to the next one, and the queue does not stand still.
func TestBatchHandedToOneWhoLeaves(t *testing.T) {
	b, l := newBatches(), lane{}
	order := func() *order { return &order{turn: make(chan bool, 1)} }
	for range maxSending {
		if !b.join(l, order()) {
			t.Fatal("has to wait though nothing is under way")
		}
	}
	leaving, staying := order(), order()
	if b.join(l, leaving) || b.join(l, staying) {
		t.Fatal("more at once than allowed")
	}
	b.next(l) // to the one that leaves in this moment
	b.leave(l, leaving)
	select {
	case first := <-staying.turn:
		if !first {
			t.Error("told that it was sent")
		}
	default:
		t.Error("nobody has the right to send any more")
	}
	for range maxSending {
		b.next(l)
	}
	if len(b.lanes) != 0 {
		t.Errorf("%d lanes are left, want none", len(b.lanes))
	}
}

// TestBatchSizes: a pipeline that waits for a replica takes more commands than one that does not.
func TestBatchSizes(t *testing.T) {
	for _, c := range []struct {
		wait time.Duration
		want int
	}{{0, maxBatch}, {defaultWait, maxConfirmed}} {
		b, l := newBatches(), lane{wait: c.wait}
		for range maxSending + 2*maxConfirmed {
			b.join(l, &order{turn: make(chan bool, 1)})
		}
		if got := len(b.take(l, &order{})); got != c.want {
			t.Errorf("WAIT %v: a pipeline of %d commands, want %d", c.wait, got, c.want)
		}
	}
}

// TestBatchWaitsOnce: one WAIT is for all commands of its pipeline, and confirms those that were executed.
func TestBatchWaitsOnce(t *testing.T) {
	r, w := startReplicated(t)
	l := lane{to: w.rdb.(*redis.Client), wait: w.store.wait}
	key := Key(w.id)
	set := func(ctx context.Context, p redis.Pipeliner) redis.Cmder { return p.HSet(ctx, key, "a", "b") }
	wrong := func(ctx context.Context, p redis.Pipeliner) redis.Cmder { return p.LPush(ctx, key, "a") }
	all := batch{{queue: set}, {queue: wrong}, {queue: set}}
	all.send(w.ctx(), l)
	if got := r.waits.Load(); got != 1 {
		t.Errorf("%d WAITs, want 1", got)
	}
	for i, want := range []bool{true, false, true} {
		if o := all[i]; o.confirmed != want || (o.cmd.Err() == nil) != want {
			t.Errorf("command %d: confirmed %v, %v; want %v", i, o.confirmed, o.cmd.Err(), want)
		}
	}
	r.confirmed.Store(0)
	again := batch{{queue: set}}
	again.send(w.ctx(), l)
	if again[0].confirmed || again[0].cmd.Err() != nil {
		t.Errorf("without a replica: confirmed %v, %v; want executed and not confirmed", again[0].confirmed, again[0].cmd.Err())
	}
}
