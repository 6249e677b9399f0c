//go:build linux

package main

import "slices"

// series are the figures of one contestant, by round. Rounds with the same
// index ran next to each other.
type series []float64

// median is 0 for a series without figures.
func (s series) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// ratio is the median of the rounds' ratios to another contestant, 0 without
// any round of both.
func (s series) ratio(to series) float64 {
	var ratios series
	for i := range min(len(s), len(to)) {
		if to[i] != 0 {
			ratios = append(ratios, s[i]/to[i])
		}
	}
	return ratios.median()
}

// ofMedians is the ratio of the medians to that of another contestant, 0 without any.
func (s series) ofMedians(to series) float64 {
	if to.median() == 0 {
		return 0
	}
	return s.median() / to.median()
}

// bounds are the lowest and the highest figure.
func (s series) bounds() (low, high float64) {
	if len(s) == 0 {
		return 0, 0
	}
	return slices.Min(s), slices.Max(s)
}
