package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// HalfLife is the time in which an average that is not fed halves, and in
// which an old average loses half its weight against a new observation.
const HalfLife = 5 * time.Second

// Target is one thing that can be picked. It outlives the sets it is in: its
// counts are its own. All methods are safe for concurrent use.
type Target struct {
	name string    // static after construction
	born time.Time // static after construction; the origin of the times in response

	weight   atomic.Int32
	share    atomic.Uint64 // float64 bits, (0, 1]
	inFlight atomic.Int64

	// response is the moving average of what Observe was told: float32 bits of
	// seconds in the upper half, milliseconds after born in the lower one (they
	// wrap after 49 days, which at worst makes an average last longer). In one
	// word, so that both change at once. 0: never observed.
	response atomic.Uint64
}

// NewTarget makes a target. The name tells it from others and, for source_hash,
// decides which keys are its own: use its address. Weights outside 1 to
// MaxWeight are brought into that range.
func NewTarget(name string, weight int) *Target {
	t := &Target{name: name, born: time.Now()}
	t.SetWeight(weight)
	t.SetShare(1)
	return t
}

// Name is the name given to NewTarget.
func (t *Target) Name() string { return t.name }

// Weight is the target's weight, 1 to MaxWeight.
func (t *Target) Weight() int { return int(t.weight.Load()) }

// SetWeight changes the weight, from the next Balancer.Set on.
func (t *Target) SetWeight(weight int) {
	t.weight.Store(int32(min(max(weight, 1), MaxWeight)))
}

// SetShare makes the target count for only a part, over 0 and up to 1, of its
// weight, from the next Balancer.Set on: how a newcomer is started slowly.
func (t *Target) SetShare(share float64) {
	t.share.Store(math.Float64bits(min(max(share, 0.01), 1)))
}

// Share is the part set by SetShare, 1 at first.
func (t *Target) Share() float64 { return math.Float64frombits(t.share.Load()) }

func (t *Target) effective() float64 { return float64(t.weight.Load()) * t.Share() }

// Acquire counts one more in flight on the target, Release one less. Each
// Acquire needs one Release.
func (t *Target) Acquire() { t.inFlight.Add(1) }

// Release undoes one Acquire.
func (t *Target) Release() { t.inFlight.Add(-1) }

// InFlight is how many are in flight on the target.
func (t *Target) InFlight() int64 { return t.inFlight.Load() }

// Observe tells how long the target took to answer. Tell it of failures too,
// as the time that was waited in vain: a target that refuses quickly would
// otherwise look like the fastest.
func (t *Target) Observe(d time.Duration) {
	at := t.clock()
	for {
		old := t.response.Load()
		seconds := max(d.Seconds(), 1e-6)
		if old != 0 {
			// A burst of observations in one millisecond must still move the average.
			keep := min(fade(at, old), 0.99)
			seconds = keep*averageOf(old) + (1-keep)*seconds
		}
		packed := uint64(math.Float32bits(float32(seconds)))<<32 | uint64(at)
		if t.response.CompareAndSwap(old, packed) {
			return
		}
	}
}

// Response is the moving average of the observations, faded by the time since
// the last one; 0 if there was none.
func (t *Target) Response() time.Duration {
	seconds, _ := t.average(t.clock())
	return time.Duration(seconds * float64(time.Second))
}

// clock is the time now in milliseconds after born.
func (t *Target) clock() uint32 { return uint32(time.Since(t.born).Milliseconds()) }

func (t *Target) average(at uint32) (seconds float64, observed bool) {
	packed := t.response.Load()
	if packed == 0 {
		return 0, false
	}
	return averageOf(packed) * fade(at, packed), true
}

func averageOf(packed uint64) float64 {
	return float64(math.Float32frombits(uint32(packed >> 32)))
}

// fade is the part of a packed average that is left at the time at: a half
// after each HalfLife, in a straight line between (an exponential would cost
// more than all the rest of a pick).
func fade(at uint32, packed uint64) float64 {
	elapsed := int32(at - uint32(packed)) // negative: observed while we were looking
	if elapsed <= 0 {
		return 1
	}
	const half = uint32(HalfLife / time.Millisecond)
	halves, rest := uint32(elapsed)/half, uint32(elapsed)%half
	if halves > 1000 {
		return 0
	}
	power := math.Float64frombits(uint64(1023-halves) << 52) // 2^-halves
	return power * (1 - float64(rest)*(0.5/float64(half)))
}
