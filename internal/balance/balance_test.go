package balance

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newSet(t testing.TB, algorithm string, weights ...int) (*Balancer, []*Target) {
	t.Helper()
	b, err := New(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	targets := make([]*Target, len(weights))
	for i, w := range weights {
		targets[i] = NewTarget(string(rune('a'+i)), w)
	}
	b.Set(targets)
	return b, targets
}

func sequence(b *Balancer, n int, skip func(*Target) bool) string {
	var s strings.Builder
	for i := range n {
		if t := b.Pick(uint64(i), skip); t != nil {
			s.WriteString(t.Name())
		} else {
			s.WriteString("-")
		}
	}
	return s.String()
}

func TestRoundRobinOrder(t *testing.T) {
	notB := func(t *Target) bool { return t.Name() == "b" }
	all := func(*Target) bool { return true }
	for _, tt := range []struct {
		name    string
		weights []int
		skip    func(*Target) bool
		want    string
	}{
		{"one", []int{1}, nil, "aaaa"},
		{"equal", []int{1, 1, 1}, nil, "abcabcabc"},
		{"smooth as nginx", []int{5, 1, 1}, nil, "aabacaa" + "aabacaa"},
		{"equal weights shorten to one round", []int{4, 4}, nil, "abab"},
		{"a weight of two", []int{2, 1}, nil, "abaaba"},
		{"b skipped", []int{1, 1, 1}, notB, "accacc"},
		{"all skipped", []int{1, 1, 1}, all, "---"},
		{"no targets", nil, nil, "--"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := newSet(t, RoundRobin, tt.weights...)
			if got := sequence(b, len(tt.want), tt.skip); got != tt.want {
				t.Errorf("order = %s, want %s", got, tt.want)
			}
		})
	}
}

// A set that changes with each pick must not favour its first target.
func TestRoundRobinSurvivesSet(t *testing.T) {
	b, targets := newSet(t, RoundRobin, 1, 1, 1)
	got := ""
	for range 6 {
		got += b.Pick(0, nil).Name()
		b.Set(targets)
	}
	if want := "abcabc"; got != want {
		t.Errorf("order over changing sets = %s, want %s", got, want)
	}
}

func TestDistribution(t *testing.T) {
	const picks = 100_000
	for _, tt := range []struct {
		algorithm string
		weights   []int
		shares    []float64 // of a target's weight; nil: all 1
		tolerance float64   // of each expected share, relative
	}{
		{RoundRobin, []int{1, 1, 1, 1}, nil, 0.001},
		{RoundRobin, []int{1, 2, 3}, nil, 0.001},
		{RoundRobin, []int{256, 1, 255, 100}, nil, 0.02},
		{RoundRobin, []int{1, 1, 1}, []float64{0.1, 1, 1}, 0.01},
		{LeastConnections, []int{1, 1, 1, 1}, nil, 0.001},
		{LeastConnections, []int{1, 2, 3}, nil, 0.001},
		{LeastInFlight, []int{1, 1, 1}, []float64{0.1, 1, 1}, 0.01},
		{LeastResponseTime, []int{1, 2, 3}, nil, 0.001}, // none observed: by load
		{SourceHash, []int{1, 1, 1, 1, 1}, nil, 0.03},
		{SourceHash, []int{1, 2, 3}, nil, 0.03},
		{SourceHash, []int{10, 1}, nil, 0.03},
	} {
		t.Run(fmt.Sprint(tt.algorithm, tt.weights, tt.shares), func(t *testing.T) {
			b, targets := newSet(t, tt.algorithm, tt.weights...)
			sum := 0.0
			for i, target := range targets {
				if tt.shares != nil {
					target.SetShare(tt.shares[i])
				}
				sum += target.effective()
			}
			b.Set(targets)
			got := map[*Target]int{}
			for i := range picks {
				target := b.Pick(uint64(i), nil)
				target.Acquire() // long-lived: never released
				got[target]++
			}
			for _, target := range targets {
				want := picks * target.effective() / sum
				if diff := math.Abs(float64(got[target]) - want); diff > want*tt.tolerance+1 {
					t.Errorf("%s of weight %d: %d picks, want %.0f ± %.1f %%", target.Name(), target.Weight(), got[target], want, 100*tt.tolerance)
				}
			}
		})
	}
}

func TestLeastConnectionsFollowsRelease(t *testing.T) {
	b, targets := newSet(t, LeastConnections, 1, 1)
	for range 4 {
		b.Pick(0, nil).Acquire()
	}
	targets[1].Release()
	if got := b.Pick(0, nil); got != targets[1] || got.InFlight() != 1 {
		t.Errorf("picked %s with %d in flight, want b with 1", got.Name(), got.InFlight())
	}
}

func TestLeastResponseTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, targets := newSet(t, LeastResponseTime, 1, 1, 1)
		slow, fast, fresh := targets[0], targets[1], targets[2]
		slow.Observe(640 * time.Millisecond)
		fast.Observe(10 * time.Millisecond)

		if got := b.Pick(0, nil); got != fresh {
			t.Errorf("with one never observed: picked %s, want c", got.Name())
		}
		fresh.Acquire()
		if got := b.Pick(0, nil); got != fast {
			t.Errorf("the one never observed is busy: picked %s, want b", got.Name())
		}
		fresh.Observe(40 * time.Millisecond)
		fresh.Release()
		if got := b.Pick(0, nil); got != fast {
			t.Errorf("all observed: picked %s, want b", got.Name())
		}

		// 640 ms fades to 10 ms in six half-lives, while the others are fed.
		tried := time.Duration(0)
		start := time.Now()
		for tried == 0 && time.Since(start) < time.Minute {
			time.Sleep(500 * time.Millisecond)
			fast.Observe(10 * time.Millisecond)
			fresh.Observe(40 * time.Millisecond)
			if b.Pick(0, nil) == slow {
				tried = time.Since(start)
			}
		}
		if want := 6 * HalfLife; tried < want-2*time.Second || tried > want+2*time.Second {
			t.Errorf("the slow one was tried again after %s, want about %s", tried, want)
		}
		slow.Observe(640 * time.Millisecond)
		if got := slow.Response(); got < 600*time.Millisecond {
			t.Errorf("after one more slow answer its average is %s, want about 630ms", got)
		}
		time.Sleep(6 * HalfLife)
		slow.Observe(5 * time.Millisecond)
		fast.Observe(10 * time.Millisecond)
		fast.Observe(10 * time.Millisecond)
		for range 3 {
			slow.Observe(5 * time.Millisecond)
			time.Sleep(HalfLife)
		}
		slow.Observe(5 * time.Millisecond)
		fast.Observe(10 * time.Millisecond)
		fresh.Observe(40 * time.Millisecond)
		if got := b.Pick(0, nil); got != slow {
			t.Errorf("cured: picked %s, want a", got.Name())
		}
	})
}

func TestSourceHashMovesOnlyTheLostShare(t *testing.T) {
	const keys, n = 20_000, 10
	weights := make([]int, n)
	for i := range weights {
		weights[i] = 1
	}
	b, targets := newSet(t, SourceHash, weights...)
	before := make([]*Target, keys)
	for i := range before {
		before[i] = b.Pick(uint64(i), nil)
	}
	lost := targets[3]
	b.Set(append(append([]*Target{}, targets[:3]...), targets[4:]...))
	moved := 0
	for i, was := range before {
		now := b.Pick(uint64(i), nil)
		if now == lost {
			t.Fatalf("key %d went to the target that is gone", i)
		}
		if was != lost && was != now {
			moved++
		}
	}
	if limit := keys * 3 / 100; moved > limit {
		t.Errorf("%d of %d keys of other targets moved, want at most %d", moved, keys, limit)
	}
	b.Set(targets)
	for i, was := range before {
		if now := b.Pick(uint64(i), nil); now != was {
			t.Fatalf("key %d: %s after the target came back, want %s", i, now.Name(), was.Name())
		}
	}
}

func TestSourceHashAgreesInAnyOrder(t *testing.T) {
	one, targets := newSet(t, SourceHash, 1, 2, 3, 4)
	other, _ := New(SourceHash)
	other.Set([]*Target{targets[2], targets[0], targets[3], targets[1]})
	for key := range uint64(5_000) {
		if x, y := one.Pick(key, nil), other.Pick(key, nil); x != y {
			t.Fatalf("key %d: %s and %s, want the same", key, x.Name(), y.Name())
		}
	}
}

func TestSourceHashSkip(t *testing.T) {
	b, targets := newSet(t, SourceHash, 256, 1, 1, 1)
	for key := range uint64(2_000) {
		first := b.Pick(key, nil)
		notFirst := func(t *Target) bool { return t == first }
		second := b.Pick(key, notFirst)
		if second == first || second == nil || b.Pick(key, notFirst) != second {
			t.Fatalf("key %d: second choice %v of first %s", key, second, first.Name())
		}
		if got := b.Pick(key, func(t *Target) bool { return t != targets[2] }); got != targets[2] {
			t.Fatalf("key %d: with one left got %v, want c", key, got)
		}
	}
	if got := b.Pick(1, func(*Target) bool { return true }); got != nil {
		t.Errorf("all skipped: got %s, want nil", got.Name())
	}
}

func TestUnknownAlgorithm(t *testing.T) {
	_, err := New("random")
	want := `unknown algorithm "random": must be one of round_robin, least_connections, least_inflight, least_response_time, source_hash`
	if err == nil || err.Error() != want {
		t.Errorf("error = %v, want %s", err, want)
	}
}

func TestWeightRange(t *testing.T) {
	for _, tt := range []struct{ set, want int }{{-1, 1}, {0, 1}, {1, 1}, {256, 256}, {1000, 256}} {
		if got := NewTarget("a", tt.set).Weight(); got != tt.want {
			t.Errorf("weight %d became %d, want %d", tt.set, got, tt.want)
		}
	}
}

// Under the race detector: picks, sets and observations at once.
func TestConcurrentUse(t *testing.T) {
	for _, algorithm := range []string{RoundRobin, LeastConnections, LeastResponseTime, SourceHash} {
		b, targets := newSet(t, algorithm, 1, 2, 3)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 500 {
					if g == 0 && i%50 == 0 {
						b.Set(targets[i/50%3:])
					}
					target := b.Pick(uint64(i), nil)
					target.Acquire()
					target.Observe(time.Duration(i) * time.Microsecond)
					target.Release()
				}
			})
		}
		wg.Wait()
		for _, target := range targets {
			if n := target.InFlight(); n != 0 {
				t.Errorf("%s: %s has %d in flight at the end, want 0", algorithm, target.Name(), n)
			}
		}
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, algorithm := range []string{RoundRobin, LeastConnections, LeastResponseTime, SourceHash} {
		b, _ := newSet(t, algorithm, 1, 2, 3)
		if n := testing.AllocsPerRun(100, func() { b.Pick(7, nil) }); n != 0 {
			t.Errorf("%s: %v allocations per pick, want 0", algorithm, n)
		}
	}
}

// observedSet is eight targets of several weights that have answered.
func observedSet(t testing.TB, algorithm string) *Balancer {
	t.Helper()
	b, targets := newSet(t, algorithm, 1, 1, 2, 2, 3, 3, 4, 4)
	for _, target := range targets {
		target.Observe(time.Millisecond)
	}
	return b
}

// BenchmarkPick shows what a pick from eight costs: it is to be less than 100 ns.
func BenchmarkPick(b *testing.B) {
	for _, algorithm := range []string{RoundRobin, LeastConnections, LeastResponseTime, SourceHash} {
		balancer := observedSet(b, algorithm)
		b.Run(algorithm, func(b *testing.B) {
			b.ReportAllocs()
			key := uint64(0)
			for b.Loop() {
				key++
				balancer.Pick(key, nil)
			}
		})
	}
}

func BenchmarkSet(b *testing.B) {
	for _, algorithm := range []string{RoundRobin, SourceHash} {
		balancer, targets := newSet(b, algorithm, 1, 1, 2, 2, 3, 3, 4, 4)
		b.Run(algorithm, func(b *testing.B) {
			for b.Loop() {
				balancer.Set(targets)
			}
		})
	}
}
