package lease

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/redistest"
)

func randomName() string { return fmt.Sprintf("test-%x", rand.Uint64()) }

func over(rdb redis.UniversalClient) Source {
	return Redis(func() (redis.UniversalClient, error) { return rdb, nil })
}

func TestNames(t *testing.T) {
	if b, n := bucketKey("echo"), nodesKey("echo"); b != "goshield:limit:{echo}" || n != "goshield:limit:{echo}:nodes" {
		t.Errorf("keys %q and %q", b, n)
	}
}

// The script, on a clock that the test sets.
func TestScript(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	source, name := over(rdb), randomName()
	now := time.Now().Truncate(time.Second)
	e.SetTime(now)
	rule := Rule{Rate: 10, Burst: 20}
	for i, step := range []struct {
		after  time.Duration
		node   string
		ask    Ask
		leased int64
		nodes  int
	}{
		{0, "a", Ask{Wanted: 15}, 15, 1},
		{0, "b", Ask{Wanted: 15}, 5, 2},
		{0, "a", Ask{Wanted: 15}, 0, 2},
		{50 * time.Millisecond, "a", Ask{Wanted: 15}, 0, 2},  // half a token
		{50 * time.Millisecond, "a", Ask{Wanted: 15}, 1, 2},  // and the other half
		{time.Hour, "a", Ask{Wanted: 50}, 20, 1},             // no more than the burst; b has gone
		{time.Second, "a", Ask{Wanted: 15, Owed: 4}, 6, 1},   // what was used is charged
		{0, "a", Ask{Owed: 10}, 0, 1},                        // a debt
		{1500 * time.Millisecond, "a", Ask{Wanted: 9}, 5, 1}, // is paid first
		{time.Hour, "a", Ask{Wanted: 9, Drain: true}, 0, 1},
		{time.Second, "a", Ask{Wanted: 99}, 10, 1},
	} {
		now = now.Add(step.after)
		e.SetTime(now)
		step.ask.Name, step.ask.Node, step.ask.Rule = name, step.node, rule
		leased, nodes, err := source.Lease(t.Context(), step.ask)
		if err != nil || leased != step.leased || nodes != step.nodes {
			t.Errorf("step %d: leased %d, %d nodes, %v; want %d, %d", i, leased, nodes, err, step.leased, step.nodes)
		}
	}
	if bucket, nodes := rdb.PTTL(t.Context(), bucketKey(name)).Val(), rdb.PTTL(t.Context(), nodesKey(name)).Val(); nodes <= 0 || bucket < nodes {
		t.Errorf("the bucket lasts for %v and its nodes for %v: want no time in which one of them is there", bucket, nodes)
	}
	e.SetTime(now.Add(time.Hour))
	if n := rdb.Exists(t.Context(), bucketKey(name)).Val(); n != 0 {
		t.Error("a bucket that is full again is kept, want it gone")
	}
}

// counting counts the leases that failed, or whose answer did not come in time.
type counting struct {
	Source
	failed atomic.Int64
}

func (c *counting) Lease(ctx context.Context, a Ask) (leased int64, nodes int, err error) {
	leased, nodes, err = c.Source.Lease(ctx, a)
	if err != nil {
		c.failed.Add(1)
	}
	return leased, nodes, err
}

// Row 51 over real Redis: three gateways under five times the limit, for a few seconds (a minute with GOSHIELD_TEST_LONG).
func TestBoundOverRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		const gateways = 3
		duration := 3 * time.Second
		if long {
			duration = time.Minute
		}
		name, rule := randomName(), Rule{Rate: 400, Burst: 200}
		least := rule.Rate * duration.Seconds() / 4
		r, source := &record{}, &counting{Source: over(rdb)}
		var wg sync.WaitGroup
		for i := range gateways {
			leases := New(Config{Node: fmt.Sprint("gw-", i), Source: source})
			t.Cleanup(leases.Close)
			leases.Apply(map[string]Rule{name: rule})
			limit := leases.Limit(name)
			wg.Go(func() {
				tick := time.NewTicker(time.Second * gateways / time.Duration(5*rule.Rate))
				defer tick.Stop()
				// Longer on a machine that is short of time.
				end, late := time.Now().Add(duration), time.Now().Add(duration+time.Minute)
				for now := time.Now(); now.Before(end) || (float64(r.count()) < least && now.Before(late)); now = <-tick.C {
					r.take(limit)
				}
			})
		}
		wg.Wait()
		// On a machine that is short of time Redis may take too long, now and then, and pass for away: until it is asked again,
		// that gateway goes by its share, which is all of the rate before it has heard of the others.
		failed := source.failed.Load()
		r.check(t, rule, gateways, rule.Rate*(askTimeout+retryEvery).Seconds()*float64(failed))
		t.Attr("leases_that_failed", fmt.Sprint(failed))
		if float64(r.count()) < least {
			t.Errorf("%d were let through, want at least %v: limits are to be used", len(r.at), least)
		}
	})
}
