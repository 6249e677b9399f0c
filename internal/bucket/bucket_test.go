package bucket

import (
	"math"
	"testing"
	"time"
)

const second = int64(time.Second)

// taken asks for one token each step, from time 0 to the end, and counts what is given.
func taken(l Limit, b *Bucket, from, to, step int64) int {
	n := 0
	for now := from; now < to; now += step {
		if ok, _ := l.Take(b, now, 1); ok {
			n++
		}
	}
	return n
}

// The seed's bucket rounded elapsed·rate down and reset its clock at each call: who asked often
// got nothing at all. However often one asks, the rate must come out.
func TestRateHoldsHoweverOftenItIsAsked(t *testing.T) {
	for _, tt := range []struct {
		name string
		rate float64
		step time.Duration
	}{
		{"seldom", 50, 15 * time.Millisecond},
		{"often", 50, 100 * time.Microsecond},
		{"very often", 50, 3 * time.Microsecond},
		{"three a second", 3, time.Millisecond},
		{"one in four seconds", 0.25, time.Millisecond},
		{"a third", 1.0 / 3, time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := NewLimit(tt.rate, 2)
			var b Bucket
			const span = 60 * second
			got := taken(l, &b, 0, span, int64(tt.step))
			want := int(math.Floor(tt.rate*60)) + 2 // the burst, and what came since
			if got < want-1 || got > want {
				t.Errorf("tokens in 60 s at %g/s, asked each %v = %d, want %d", tt.rate, tt.step, got, want)
			}
		})
	}
}

func TestBurst(t *testing.T) {
	l := NewLimit(10, 5)
	var b Bucket
	for i := range 5 {
		if ok, _ := l.Take(&b, 7*second, 1); !ok {
			t.Fatalf("token %d of the burst refused, want given", i+1)
		}
	}
	ok, retry := l.Take(&b, 7*second, 1)
	if ok || retry != 100*time.Millisecond {
		t.Errorf("sixth token = %v, retry %v, want refused, retry 100ms", ok, retry)
	}
	if wait := l.Wait(&b, 7*second, 1); wait != retry {
		t.Errorf("Wait() = %v, want what Take said, %v", wait, retry)
	}
	if ok, _ := l.Take(&b, 7*second+int64(retry)-1, 1); ok {
		t.Error("a token was given 1 ns before retry, want refused")
	}
	if ok, _ := l.Take(&b, 7*second+int64(retry), 1); !ok {
		t.Error("no token was given after retry, want given")
	}
	if got := taken(l, &b, 100*second, 100*second+10, 1); got != 5 {
		t.Errorf("burst after a long rest = %d, want 5", got)
	}
}

func TestMoreThanTheBurstLeavesDebt(t *testing.T) {
	l := NewLimit(100, 10)
	var b Bucket
	if ok, _ := l.Take(&b, 0, 30); !ok {
		t.Fatal("30 tokens of a full bucket of 10 refused, want given")
	}
	ok, retry := l.Take(&b, 0, 1)
	if ok || retry != 210*time.Millisecond {
		t.Errorf("next token = %v, retry %v, want refused, retry 210ms (21 tokens)", ok, retry)
	}
}

func TestUnlimited(t *testing.T) {
	var b Bucket
	for _, l := range []Limit{{}, NewLimit(0, 0), NewLimit(-1, 5)} {
		l.Charge(&b, 0, 1e9)
		if ok, _ := l.Take(&b, 0, 1e9); !ok {
			t.Errorf("limit %+v refused, want unlimited", l)
		}
	}
}

func TestTinyRateDoesNotOverflow(t *testing.T) {
	l := NewLimit(1e-300, 1e300)
	var b Bucket
	if ok, _ := l.Take(&b, maxSpan, 1); !ok {
		t.Error("first token refused, want given")
	}
	ok, retry := l.Take(&b, maxSpan, 1)
	if ok || retry <= 0 {
		t.Errorf("second token = %v, retry %v, want refused, a positive retry", ok, retry)
	}
}

// Charge makes a flood starve itself, and forgives soon.
func TestCharge(t *testing.T) {
	l := NewLimit(10, 5)
	var b Bucket
	for range 1000 {
		l.Charge(&b, 0, 0.1)
	}
	ok, retry := l.Take(&b, 0, 1)
	if ok || retry != 100*time.Millisecond {
		t.Errorf("after many charges: %v, retry %v, want refused, retry 100ms: never worse than empty", ok, retry)
	}
	// A debt that is there already stays.
	var debt Bucket
	l.Take(&debt, 0, 20)
	before := debt
	l.Charge(&debt, 0, 1)
	if debt != before {
		t.Errorf("charging a bucket in debt = %+v, want unchanged %+v", debt, before)
	}
}

func TestTakeDoesNotAllocate(t *testing.T) {
	l := NewLimit(50, 100)
	var b Bucket
	now := int64(0)
	if n := testing.AllocsPerRun(100, func() { now += 1e6; l.Take(&b, now, 1); l.Charge(&b, now, 1) }); n != 0 {
		t.Errorf("allocations = %v, want 0", n)
	}
}
