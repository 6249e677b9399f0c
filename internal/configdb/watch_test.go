package configdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redistest"
)

// follower is what a watcher told its process.
type follower struct {
	*Watcher
	logs *observer.ObservedLogs

	mu       sync.Mutex
	applied  []dynamic.Document
	versions []int64
	refused  int
	refuse   func(dynamic.Document) error // nil: nothing is refused
}

func (f *follower) apply(doc dynamic.Document, version int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		if err := f.refuse(doc); err != nil {
			return err
		}
	}
	f.applied, f.versions = append(f.applied, doc), append(f.versions, version)
	return nil
}

// inForce is the latest version and its max_in_flight; 0 and 0 at the start.
func (f *follower) inForce() (version int64, inFlight int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.versions) == 0 {
		return 0, 0
	}
	return f.versions[len(f.versions)-1], f.applied[len(f.applied)-1].MaxInFlight
}

func (f *follower) refusals() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused
}

// follow starts a watcher, until the test ends.
func follow(t *testing.T, name string, client func() (redis.UniversalClient, error), change ...func(*follower)) *follower {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	f := &follower{logs: logs}
	for _, c := range change {
		c(f)
	}
	f.Watcher = newWatcher(WatchConfig{
		Redis: client, Defaults: withInFlight(99), ShareDefaults: true, Apply: f.apply,
		Refused: func() { f.mu.Lock(); defer f.mu.Unlock(); f.refused++ },
		Log:     zap.New(core),
	}, name)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return f
}

func over(rdb redis.UniversalClient) func() (redis.UniversalClient, error) {
	return func() (redis.UniversalClient, error) { return rdb, nil }
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (f *follower) eventuallyAt(t *testing.T, version int64) {
	t.Helper()
	eventually(t, "a version is in force", func() bool { v, _ := f.inForce(); return v == version })
}

// What Redis has at the start is in force when Settled tells; what comes later follows.
func TestWatcherFollows(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		s := newStore(rdb, randomName())
		if _, err := s.Put(t.Context(), withInFlight(1), 0, "x"); err != nil {
			t.Fatal(err)
		}
		watchers := []*follower{follow(t, s.name, over(rdb)), follow(t, s.name, over(rdb))}
		for _, f := range watchers {
			<-f.Settled()
			if v, n := f.inForce(); v != 1 || n != 1 {
				t.Errorf("at the start: version %d with %d, want 1 with 1", v, n)
			}
		}
		for i := range int64(5) {
			if _, err := s.Put(t.Context(), withInFlight(int(i)+2), i+1, "x"); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range watchers {
			f.eventuallyAt(t, 6)
			if _, n := f.inForce(); n != 6 {
				t.Errorf("max_in_flight = %d, want 6", n)
			}
			f.mu.Lock()
			if !slices.IsSorted(f.versions) {
				t.Errorf("versions came as %v, want none older than the one before", f.versions)
			}
			f.mu.Unlock()
		}
	})
}

// Nothing depends on Pub/Sub: a document that nobody announced is found by looking, and in force within 2 s: each at full size, else
// the median, for a machine with other work.
func TestWatcherPolls(t *testing.T) {
	const limit = 2 * time.Second
	_, rdb := redistest.Embedded(t)
	name := randomName()
	f := follow(t, name, over(rdb))
	<-f.Settled()
	var times []time.Duration
	for version := range int64(5) {
		at := time.Now()
		if err := rdb.HSet(t.Context(), name, "version", version+3, "at", version+1, "by", "x", "document", `{"max_in_flight": 5}`).Err(); err != nil {
			t.Fatal(err)
		}
		f.eventuallyAt(t, version+3)
		times = append(times, time.Since(at))
	}
	slices.Sort(times)
	worst := times[len(times)/2]
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		worst = times[len(times)-1]
	}
	if worst > limit {
		t.Errorf("in force after %v, want within %v (all: %v)", worst, limit, times)
	}
}

// Row 25: what is met in Redis and cannot be used leaves the one before in force, is counted and logged once,
// with the key's name.
func TestWatcherRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, document string
		refuse         func(dynamic.Document) error
		want           string
	}{
		{"a bad value", `{"idle_timeout": "1ms"}`, nil, "idle_timeout"},
		{"an unknown key", `{"hartbeat": {}}`, nil, "hartbeat"},
		{"no JSON", `heartbeat:`, nil, "invalid character"},
		{"a value that this process has no use for", `{"enrolment": "mtls"}`, func(doc dynamic.Document) error {
			if doc.Enrolment == dynamic.EnrolMTLS {
				return config.Errorf("enrolment", "needs tls.client_ca")
			}
			return nil
		}, "enrolment"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, rdb := redistest.Embedded(t)
			s := newStore(rdb, randomName())
			if _, err := s.Put(t.Context(), withInFlight(1), 0, "x"); err != nil {
				t.Fatal(err)
			}
			f := follow(t, s.name, over(rdb), func(f *follower) { f.refuse = tt.refuse })
			f.eventuallyAt(t, 1)
			if err := rdb.HSet(t.Context(), s.name, "version", 2, "document", tt.document).Err(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is refused", func() bool { return f.refusals() == 1 })
			if v, n := f.inForce(); v != 1 || n != 1 {
				t.Errorf("in force: version %d with %d, want 1 with 1", v, n)
			}
			if err := rdb.HSet(t.Context(), s.name, "version", 3, "document", `{"max_in_flight": 3}`).Err(); err != nil {
				t.Fatal(err)
			}
			f.eventuallyAt(t, 3)
			if n := f.refusals(); n != 1 {
				t.Errorf("refused %d times, want once", n)
			}
			errorLines := f.logs.FilterLevelExact(zapcore.ErrorLevel).All()
			if len(errorLines) != 1 || !strings.Contains(fmt.Sprint(errorLines[0].ContextMap()["error"]), tt.want) {
				t.Errorf("logged %v, want one line that names %q", errorLines, tt.want)
			}
		})
	}
}

// A key that is no hash at all is refused as well, and replaced by removing it.
func TestWatcherMeetsAnotherType(t *testing.T) {
	_, rdb := redistest.Embedded(t)
	name := randomName()
	if err := rdb.Set(t.Context(), name, "{}", 0).Err(); err != nil {
		t.Fatal(err)
	}
	f := follow(t, name, over(rdb))
	eventually(t, "it is refused", func() bool { return f.refusals() == 1 })
	if err := rdb.Del(t.Context(), name).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the defaults are in force", func() bool { _, n := f.inForce(); return n == 99 })
}

// Without a document the defaults are in force, and Redis knows them; with one that is removed, again.
func TestWatcherWithoutDocument(t *testing.T) {
	_, rdb := redistest.Embedded(t)
	s := newStore(rdb, randomName())
	f := follow(t, s.name, over(rdb))
	<-f.Settled()
	if doc, err := s.Defaults(t.Context()); err != nil || doc.MaxInFlight != 99 {
		t.Errorf("defaults in Redis: %+v, %v, want the watcher's", doc, err)
	}
	f.mu.Lock()
	if len(f.versions) != 0 {
		t.Errorf("applied versions %v at the start, want none: the defaults are in force", f.versions)
	}
	f.mu.Unlock()
	if _, err := s.Put(t.Context(), withInFlight(1), 0, "x"); err != nil {
		t.Fatal(err)
	}
	f.eventuallyAt(t, 1)
	if err := rdb.Del(t.Context(), s.name).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the defaults are in force again", func() bool { v, n := f.inForce(); return v == 0 && n == 99 })
}

// Redis may be away at the start and go away later: what is in force stays, and what changed meanwhile follows.
func TestWatcherWhileRedisIsAway(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	s := newStore(rdb, randomName())
	if _, err := s.Put(t.Context(), withInFlight(1), 0, "x"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	reachable := false
	f := follow(t, s.name, func() (redis.UniversalClient, error) {
		mu.Lock()
		defer mu.Unlock()
		if !reachable {
			return nil, errors.New("redis was not reached yet")
		}
		return rdb, nil
	})
	mu.Lock()
	reachable = true
	mu.Unlock()
	f.eventuallyAt(t, 1)
	e.Stop()
	// An outage that a watcher took for "no document" would show within a poll; it must last through several.
	time.Sleep(2 * pollEvery)
	if v, n := f.inForce(); v != 1 || n != 1 || f.refusals() != 0 {
		t.Errorf("during the outage: version %d with %d, %d refused; want 1 with 1, none", v, n, f.refusals())
	}
	if err := e.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "redis is there again", func() bool {
		_, err := s.Put(t.Context(), withInFlight(2), 1, "x")
		return err == nil
	})
	f.eventuallyAt(t, 2)
}
