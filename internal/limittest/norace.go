//go:build !race

package limittest

// Race says whether this is a program with the race detector, which takes several times the memory: Memory and
// PeakResident tell little then.
const Race = false
