package beside

import (
	"testing"
	"time"
)

// series gives its values one after the other, the last one again and again.
func series(ms ...int) func() time.Duration {
	i := -1
	return func() time.Duration {
		i = min(i+1, len(ms)-1)
		return time.Duration(ms[i]) * time.Millisecond
	}
}

func TestMeasure(t *testing.T) {
	p := Promise{Ratio: 1.2, Floor: 2 * time.Millisecond, Least: 3, Most: 7}
	for _, tt := range []struct {
		name            string
		without, beside func() time.Duration
		want            Outcome
		kept            bool
	}{
		{"the same", series(10), series(10), Outcome{10e6, 10e6, 3}, true},
		{"a fifth and the floor more", series(10), series(14), Outcome{10e6, 14e6, 3}, true},
		{"more than that", series(10), series(15), Outcome{10e6, 15e6, 7}, false},
		{"one bad moment", series(10), series(10, 500, 10), Outcome{10e6, 10e6, 3}, true},
		{"a bad beginning", series(10), series(100, 100, 10), Outcome{10e6, 10e6, 5}, true},
		{"below the floor", series(1), series(3), Outcome{1e6, 3e6, 3}, true},
	} {
		if got, kept := p.measure(tt.without, tt.beside); got != tt.want || kept != tt.kept {
			t.Errorf("%s: measure = %+v, %v, want %+v, %v", tt.name, got, kept, tt.want, tt.kept)
		}
	}
}

func TestPercentile(t *testing.T) {
	took := make([]time.Duration, 200)
	for i := range took {
		took[i] = time.Duration(200 - i)
	}
	for percent, want := range map[int]time.Duration{50: 101, 99: 199, 100: 200} {
		if got := Percentile(took, percent); got != want {
			t.Errorf("Percentile(%d) = %d, want %d", percent, got, want)
		}
	}
}
