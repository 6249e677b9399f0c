package balance

import (
	"math"
	"testing"
	"time"
)

func TestFade(t *testing.T) {
	const half = uint32(HalfLife / time.Millisecond)
	for _, tt := range []struct {
		name       string
		observedAt uint32
		at         uint32
		want       float64
	}{
		{"now", 100, 100, 1},
		{"observed a moment after we looked", 101, 100, 1},
		{"half of a half-life", 100, 100 + half/2, 0.75},
		{"one half-life", 100, 100 + half, 0.5},
		{"three", 100, 100 + 3*half, 0.125},
		{"over the wrap of the clock", math.MaxUint32 - half + 1, 0, 0.5},
		{"a day", 0, 86_400_000, 0},
	} {
		if got := fade(tt.at, uint64(tt.observedAt)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
