package registry

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zaptest"

	"github.com/goshield/goshield/internal/redistest"
)

// keyWrites lets a test in before and after each write of a node's key, which it may refuse. All else goes to Redis.
type keyWrites struct{ before, after func() error }

func (*keyWrites) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*keyWrites) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (w *keyWrites) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() != "set" {
			return next(ctx, cmd)
		}
		if err := w.before(); err != nil {
			cmd.SetErr(err)
			return err
		}
		err := next(ctx, cmd)
		return errors.Join(err, w.after())
	}
}

// calendar is a clock that a test moves on.
type calendar struct {
	mu sync.Mutex
	at time.Time
}

func (c *calendar) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *calendar) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// A node whose key had lapsed, while it slept or could not write, may have lost its devices to others: it hears of that once,
// although the stream of revocations could be read all the while and has no gap. That a write came late is none.
func TestKeyHadLapsed(t *testing.T) {
	const almost = NodeTTL - time.Second
	refused := errors.New("refused by the test")
	for _, tt := range []struct {
		name string
		// What passes before Redis gets the second write, and refuses it or not, and after it until the answer is there; and
		// before the third.
		before, after, third time.Duration
		refuse               bool
		want                 int // gaps
	}{
		{"held for a while", almost, 0, 0, false, 0},
		{"refused for a while", NodeTTL / 2, 0, NodeTTL/2 - time.Second, true, 0},
		{"refused for too long", NodeTTL / 2, 0, NodeTTL/2 + time.Second, true, 1},
		{"held for too long", NodeTTL + time.Second, 0, 0, true, 1},
		{"after an answer that came late", 0, 2 * time.Second, almost, false, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, rdb := redistest.Embedded(t)
			clock := &calendar{at: time.Unix(1e9, 0)}
			const writes = 5
			count := 0                          // the hooks are keepNode's only
			written := make(chan struct{}, 100) // one for each write
			rdb.AddHook(&keyWrites{
				before: func() error {
					switch count++; {
					case count == 2:
						clock.pass(tt.before)
						if tt.refuse {
							return refused
						}
					case count == 3:
						clock.pass(tt.third)
					}
					return nil
				},
				after: func() error {
					if count == 2 {
						clock.pass(tt.after)
					}
					written <- struct{}{}
					return nil
				},
			})
			gaps := make(chan string, 100)
			r := New(Config{
				Node: "gw-1", Self: Node{Push: "10.0.0.1:9400"}, Open: over(rdb),
				Recheck:   func() time.Duration { return 100 * time.Millisecond },
				OnRevoked: func(Revocation) {},
				OnGap:     func(reason string) { gaps <- reason },
				Log:       zaptest.NewLogger(t),
			})
			r.now = clock.now
			r.Start()
			defer r.Kill()
			for range writes {
				select {
				case <-written:
				case <-time.After(time.Minute):
					t.Fatal("the key is not written")
				}
			}
			eventually(t, "revocations are followed", r.Following)
			r.Kill()
			close(gaps)
			got, others := 0, 0
			for reason := range gaps {
				if reason == "this node's key had lapsed" {
					got++
				} else {
					others++
				}
			}
			if got != tt.want || others != 1 {
				t.Errorf("gaps = %d of the key and %d of the stream, want %d, and 1: the beginning", got, others, tt.want)
			}
		})
	}
}
