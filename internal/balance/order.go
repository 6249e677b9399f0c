package balance

import (
	"math"
	"slices"
)

const (
	// longestOrder bounds the round robin order; weights that would need more
	// are rounded.
	longestOrder = 8192
	// shareSteps is how finely a share below 1 is told apart in that order.
	shareSteps = 20
)

// smooth is one period of nginx's smooth weighted round robin: each step, every target gains
// its weight, the one with the most is next and loses the sum of all.
func smooth(entries []entry) []uint16 {
	weights := wholeWeights(entries)
	sum := 0
	for _, w := range weights {
		sum += w
	}
	order := make([]uint16, sum)
	current := make([]int, len(entries))
	for step := range order {
		best := 0
		for i, w := range weights {
			current[i] += w
			if current[i] > current[best] {
				best = i
			}
		}
		current[best] -= sum
		order[step] = uint16(best)
	}
	return order
}

// wholeWeights are the smallest whole numbers in the proportion of the entries' weights.
func wholeWeights(entries []entry) []int {
	whole := true
	sum := 0.0
	for _, e := range entries {
		w := 1 / e.perWeight
		whole = whole && math.Abs(w-math.Round(w)) < 1e-6
		sum += w
	}
	scale := 1.0
	if !whole {
		scale = shareSteps
	}
	scale = min(scale, max(longestOrder, float64(len(entries)))/sum)
	weights := make([]int, len(entries))
	divisor := 0
	for i, e := range entries {
		weights[i] = max(1, int(math.Round(scale/e.perWeight)))
		divisor = gcd(divisor, weights[i])
	}
	for i := range weights {
		weights[i] /= divisor
	}
	return weights
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// tableSize is a prime, far above a hundred times the targets one usually has,
// so that their shares are even to about one percent (Maglev, §5.3).
const tableSize = 65537

// maglev fills the table: the targets take turns, as often as their weights
// say, to claim the next free slot of their own permutation of all slots.
func maglev(entries []entry) []uint16 {
	if len(entries) == 0 {
		return nil
	}
	const free = math.MaxUint16
	table := slices.Repeat([]uint16{free}, tableSize)
	type claim struct {
		at, step uint64  // the permutation: at, at+step, … modulo tableSize
		due      float64 // the turn from which it may claim again
	}
	claims := make([]claim, len(entries))
	lightest := math.Inf(1) // 1/weight of the heaviest: it claims each turn
	for i, e := range entries {
		h := hashName(e.name)
		claims[i] = claim{at: h % tableSize, step: mix(h)%(tableSize-1) + 1}
		lightest = min(lightest, e.perWeight)
	}
	filled := 0
	for turn := 0.0; ; turn++ {
		for i := range claims {
			c := &claims[i]
			if c.due > turn {
				continue
			}
			c.due += entries[i].perWeight / lightest
			for table[c.at] != free {
				c.at = (c.at + c.step) % tableSize
			}
			table[c.at] = uint16(i)
			if filled++; filled == tableSize {
				return table
			}
		}
	}
}

// hashName is FNV-1a, mixed: a hash that is the same in every process.
func hashName(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finalizer of SplitMix64: each bit of x changes half of the
// result's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
