package configdb

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redistest"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

// randomName keeps tests apart: a real cluster is shared, and others follow goshield:config there.
func randomName() string { return fmt.Sprintf("goshield:test:%x", rand.Uint64()) }

func withInFlight(n int) dynamic.Document {
	doc := dynamic.Default()
	doc.MaxInFlight = n
	return doc
}

// The names are a contract with whoever looks into Redis; one script may touch only keys of one slot.
func TestNames(t *testing.T) {
	s := New(nil)
	for want, got := range map[string]string{
		"goshield:config":                     s.name,
		"goshield:{goshield:config}:history":  s.history(),
		"goshield:{goshield:config}:defaults": s.defaults(),
	} {
		if got != want {
			t.Errorf("key %q, want %q", got, want)
		}
	}
}

func TestPutAndRead(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		s := newStore(rdb, randomName())
		if _, err := s.Current(t.Context()); !errors.Is(err, ErrNone) {
			t.Fatalf("current of nothing: %v, want ErrNone", err)
		}
		first, err := s.Put(t.Context(), withInFlight(1), 0, `a "quoted" \ name`)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Version != 1 || got.By != `a "quoted" \ name` || !got.At.Equal(first.At) || time.Since(got.At).Abs() > time.Hour {
			t.Errorf("current = version %d by %s at %v, want what Put returned: %+v", got.Version, got.By, got.At, first)
		}
		if doc, err := got.Document(); err != nil || doc.MaxInFlight != 1 {
			t.Errorf("document = %+v, %v, want what was put", doc, err)
		}
		if _, err := s.Put(t.Context(), withInFlight(2), 0, "late"); !errors.Is(err, ErrConflict) {
			t.Errorf("put on a version that is gone: %v, want ErrConflict", err)
		}
		if again, err := s.Put(t.Context(), withInFlight(1), 0, first.By); err != nil || again.Version != 1 || !again.At.Equal(first.At) {
			t.Errorf("the same put repeated: %+v, %v, want the first one's answer", again, err)
		}
		var keyError *config.Error
		if _, err := s.Put(t.Context(), withInFlight(0), 1, "x"); !errors.As(err, &keyError) || keyError.Key != "max_in_flight" {
			t.Errorf("put of an invalid document: %v, want an error of max_in_flight", err)
		}
	})
}

func TestHistory(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		s := newStore(rdb, randomName())
		const versions = Keep + 5
		for i := range int64(versions) {
			if _, err := s.Put(t.Context(), withInFlight(int(i)+1), i, fmt.Sprint("writer ", i)); err != nil {
				t.Fatal(err)
			}
		}
		entries, err := s.History(t.Context())
		if err != nil || len(entries) != Keep {
			t.Fatalf("history has %d entries, %v, want %d", len(entries), err, Keep)
		}
		for i, e := range entries {
			want := versions - i
			doc, err := e.Document()
			if err != nil || e.Version != int64(want) || doc.MaxInFlight != want || e.By != fmt.Sprint("writer ", want-1) {
				t.Errorf("entry %d = version %d by %s, %v, want version %d", i, e.Version, e.By, err, want)
			}
		}
		if e, err := s.Version(t.Context(), versions-Keep+1); err != nil || e.Version != versions-Keep+1 {
			t.Errorf("the oldest that is kept: %+v, %v", e, err)
		}
		if _, err := s.Version(t.Context(), versions-Keep); !errors.Is(err, ErrNoVersion) {
			t.Errorf("one older: %v, want ErrNoVersion", err)
		}
	})
}

// Of many who replace the same version one succeeds.
func TestOneWinner(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		s := newStore(rdb, randomName())
		const writers, rounds = 8, 10
		for round := range int64(rounds) {
			var wg sync.WaitGroup
			errs := make([]error, writers)
			for i := range writers {
				wg.Go(func() { _, errs[i] = s.Put(t.Context(), withInFlight(i+1), round, fmt.Sprint(i)) })
			}
			wg.Wait()
			won := 0
			for _, err := range errs {
				switch {
				case err == nil:
					won++
				case !errors.Is(err, ErrConflict):
					t.Fatal(err)
				}
			}
			if won != 1 {
				t.Fatalf("round %d: %d writers won, want 1", round, won)
			}
		}
	})
}

func TestSharedDefaults(t *testing.T) {
	_, rdb := redistest.Embedded(t)
	s := newStore(rdb, randomName())
	if _, err := s.Defaults(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("defaults that nobody told: %v, want ErrNone", err)
	}
	if err := s.shareDefaults(t.Context(), []byte(`{"max_in_flight": 7}`)); err != nil {
		t.Fatal(err)
	}
	if doc, err := s.Defaults(t.Context()); err != nil || doc.MaxInFlight != 7 {
		t.Errorf("defaults = %+v, %v, want what was told", doc, err)
	}
}
