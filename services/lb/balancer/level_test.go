package balancer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// fill is upstreams with so many connections each, all of the same weight.
func fill(connections ...int64) []upstreamLoad {
	var loads []upstreamLoad
	for _, n := range connections {
		loads = append(loads, upstreamLoad{upstream: &upstream{}, connections: n, weight: 1})
	}
	return loads
}

func TestSurplus(t *testing.T) {
	for _, tt := range []struct {
		connections []int64
		weights     []float64 // nil: all 1
		surplus     []int
		excess      float64
	}{
		{[]int64{}, nil, []int{}, 1},
		{[]int64{0, 0}, nil, []int{0, 0}, 1},
		{[]int64{50, 50}, nil, []int{0, 0}, 1},
		{[]int64{100, 0}, nil, []int{50, 0}, 2},
		{[]int64{1, 0}, nil, []int{0, 0}, 1},       // as even as it gets
		{[]int64{2, 2, 0}, nil, []int{0, 0, 0}, 1}, // likewise
		{[]int64{3, 1}, nil, []int{1, 0}, 1.5},
		{[]int64{60, 60, 0}, nil, []int{20, 20, 0}, 1.5},
		{[]int64{75, 25}, []float64{3, 1}, []int{0, 0}, 1},
		{[]int64{50, 50}, []float64{3, 1}, []int{0, 25}, 2},
	} {
		loads := fill(tt.connections...)
		for i := range tt.weights {
			loads[i].weight = tt.weights[i]
		}
		if got := surpluses(loads); !slices.Equal(got, tt.surplus) || excess(loads) != tt.excess {
			t.Errorf("%v of weights %v: surplus %v, excess %v; want %v, %v", tt.connections, tt.weights, got, excess(loads), tt.surplus, tt.excess)
		}
	}
}

func TestPortion(t *testing.T) {
	for _, tt := range []struct {
		over []int
		pace int
		want []int
	}{
		{[]int{10, 0}, 50, []int{10, 0}},
		{[]int{100, 0}, 50, []int{50, 0}},
		{[]int{100, 100}, 50, []int{25, 25}},
		{[]int{300, 100, 0}, 40, []int{30, 10, 0}},
		{[]int{0, 1, 1, 1}, 2, []int{0, 1, 1, 0}},
		{[]int{1000, 1}, 10, []int{10, 0}},
	} {
		total := 0
		for _, n := range tt.over {
			total += n
		}
		if got := portion(tt.over, total, tt.pace); !slices.Equal(got, tt.want) {
			t.Errorf("%v at %d: %v, want %v", tt.over, tt.pace, got, tt.want)
		}
	}
}

// A gateway joins others that are full. Devices take up to five seconds to move, and are counted twice
// meanwhile, as they dial before they hang up.
func TestLevelEvensOut(t *testing.T) {
	for _, pace := range []int{1, 20, 1000} {
		t.Run(fmt.Sprint(pace), func(t *testing.T) {
			const gateways, devices = 4, 900
			loads := fill(300, 300, 300, 0)
			var leaving [gateways][settleRounds]int // by the rounds they still take
			l := &level{}
			moved, rounds := 0, 0
			for excess(loads) > enough || rounds < 10 {
				if rounds++; rounds > 2000 {
					t.Fatalf("not even after %d rounds: %v", rounds, loads)
				}
				for i := range gateways {
					loads[i].connections -= int64(leaving[i][0])
					copy(leaving[i][:], leaving[i][1:])
					leaving[i][settleRounds-1] = 0
				}
				asks := l.round(loads, pace)
				sum := 0
				for i, n := range asks {
					l.tell(loads[i].upstream, n)
					sum += n
					for range n {
						loads[3].connections++ // by least connections
						leaving[i][rand.IntN(settleRounds-1)]++
					}
				}
				if asks != nil {
					l.done(sum)
				}
				if moved += sum; sum > pace {
					t.Fatalf("round %d: %d devices asked, want at most %d", rounds, sum, pace)
				}
			}
			// 225 have to move; what is on its way may be counted twice for a while.
			if moved < 200 || moved > 260 {
				t.Errorf("%d devices were moved, want about 225", moved)
			}
			for range 100 {
				if asks := l.round(loads, pace); asks != nil {
					t.Fatalf("even, and still %v are asked", asks)
				}
			}
			if l.active {
				t.Error("still active")
			}
			total := int64(0)
			for i := range gateways {
				total += loads[i].connections
				for _, n := range leaving[i] {
					total -= int64(n)
				}
			}
			if total != devices {
				t.Fatalf("the model has %d devices, want %d", total, devices)
			}
		})
	}
}

// It begins when one is a tenth above its share for some rounds on end, and goes on below that.
func TestLevelHysteresis(t *testing.T) {
	l := &level{}
	active := func(connections ...int64) bool {
		l.round(fill(connections...), 1)
		return l.active
	}
	for i, tt := range []struct {
		a, b int64
		want bool
	}{
		{109, 91, false}, {109, 91, false}, {109, 91, false}, {109, 91, false},
		{120, 80, false}, {120, 80, false}, {100, 100, false}, // not long enough
		{120, 80, false}, {120, 80, false}, {120, 80, true},
		{105, 95, true}, {103, 97, true}, {102, 98, false}, {105, 95, false},
	} {
		if got := active(tt.a, tt.b); got != tt.want {
			t.Errorf("step %d, %d and %d: active %t, want %t", i, tt.a, tt.b, got, tt.want)
		}
	}
	for range 3 {
		active(200, 0)
	}
	if active(200) {
		t.Error("active with one upstream left")
	}
}

// Gateways that move nobody are left alone for a while.
func TestLevelRests(t *testing.T) {
	l := &level{}
	loads := fill(100, 0)
	asked, rested := 0, 0
	for range 3 * (confirmRounds - 1 + vainRounds + restRounds) {
		if asks := l.round(loads, 10); asks != nil {
			asked++
			l.tell(loads[0].upstream, 0)
			if l.done(0) {
				rested++
			}
		}
	}
	if asked != 3*vainRounds || rested != 3 {
		t.Errorf("asked in %d rounds, rested %d times; want %d and 3", asked, rested, 3*vainRounds)
	}
	l.forget(nil)
	if len(l.asked) != 0 {
		t.Errorf("%d upstreams remembered, want none", len(l.asked))
	}
}
