// Package beside holds what others notice of somebody's misbehaviour: a latency beside it against the
// same latency without it.
//
//	beside.Promise{Ratio: 1.2, Floor: 2 * time.Millisecond}.Hold(t, quiet, flooded)
//
// One window of each is measured in turn, so that what else the machine does falls on both, and the
// medians over all windows are compared. It makes neither the load nor the misbehaviour.
package beside

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Promise is what a latency beside something may be, at most Ratio times the one without it and Floor:
// what is shorter cannot be told from noise.
type Promise struct {
	Ratio float64
	Floor time.Duration
	// Least and Most are how many windows of each are measured: the least if the promise is kept by then, else
	// more, since a busy machine has bad moments. 0: 5 and 25.
	Least, Most int
}

// Outcome is what was measured: medians of Windows windows each.
type Outcome struct {
	Without, Beside time.Duration
	Windows         int
}

// String is how docs tell it.
func (o Outcome) String() string {
	return fmt.Sprintf("%.2f: %v without, %v beside, medians of %d windows",
		float64(o.Beside)/float64(o.Without), o.Without.Round(time.Microsecond), o.Beside.Round(time.Microsecond), o.Windows)
}

// Hold measures windows by calling without and beside in turn, and fails the test if the promise is not
// kept after the most of them.
func (p Promise) Hold(t testing.TB, without, beside func() time.Duration) Outcome {
	t.Helper()
	o, kept := p.measure(without, beside)
	if !kept {
		t.Errorf("beside/without %v; want at most %v times the one without, and %v", o, p.Ratio, p.Floor)
	}
	return o
}

func (p Promise) measure(without, beside func() time.Duration) (o Outcome, kept bool) {
	if p.Least == 0 {
		p.Least = 5
	}
	if p.Most == 0 {
		p.Most = 5 * p.Least
	}
	var w, b []time.Duration
	for o.Windows = 1; ; o.Windows++ {
		w, b = append(w, without()), append(b, beside())
		o.Without, o.Beside = median(w), median(b)
		kept = float64(o.Beside) <= p.Ratio*float64(o.Without)+float64(p.Floor)
		if o.Windows >= p.Most || kept && o.Windows >= p.Least {
			return o, kept
		}
	}
}

// median leaves its argument as it is.
func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// Percentile is what percent of 100 took no longer than. It sorts took, of which there must be some.
func Percentile(took []time.Duration, percent int) time.Duration {
	slices.Sort(took)
	return took[min(len(took)*percent/100, len(took)-1)]
}
