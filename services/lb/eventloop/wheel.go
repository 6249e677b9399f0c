//go:build linux

package eventloop

import (
	"math/bits"
	"time"
)

// tick is the wheel's resolution: a timeout ends up to one tick late, never early.
const tick = 10 * time.Millisecond

// The wheel has levels of 64 slots; a slot of one level spans a whole turn of the
// level below: 640 ms, 41 s, 44 min, 46 h.
const (
	levelBits = 6
	levelSize = 1 << levelBits
	levels    = 4
	horizon   = 1<<(levelBits*levels) - 1 // ticks; later deadlines are handed out then, and put back
)

// wheel is a hierarchical timing wheel over the pairs of a slab, each in at most
// one slot. Setting and clearing a timer takes constant time and no memory of its own.
// Ticks are counted in 32 bits and may wrap around.
type wheel struct {
	pairs    *slab
	now      uint32
	heads    [levels * levelSize]int32
	occupied [levels]uint64 // bit s: slot s of that level holds a pair
}

func newWheel(pairs *slab) wheel {
	w := wheel{pairs: pairs}
	for i := range w.heads {
		w.heads[i] = -1
	}
	return w
}

// set has p handed out at the tick due, or at the next one if that is past.
func (w *wheel) set(p *pair, due uint32) {
	w.clear(p)
	if int32(due-w.now) <= 0 {
		due = w.now + 1
	}
	p.due = due
	w.place(p)
}

func (w *wheel) place(p *pair) {
	at := p.due
	delta := at - w.now
	if delta > horizon {
		delta, at = horizon, w.now+horizon
	}
	level := max(0, bits.Len32(delta)-1) / levelBits
	s := at >> (level * levelBits) % levelSize
	index := int32(level*levelSize) + int32(s)
	head := w.heads[index]
	p.slot, p.prev, p.next = uint16(index)+1, -1, head
	if head >= 0 {
		w.pairs.at(head).prev = p.self
	}
	w.heads[index] = p.self
	w.occupied[level] |= 1 << s
}

// clear takes p out of the wheel.
func (w *wheel) clear(p *pair) {
	if p.slot == 0 {
		return
	}
	index := int32(p.slot) - 1
	if p.next >= 0 {
		w.pairs.at(p.next).prev = p.prev
	}
	if p.prev >= 0 {
		w.pairs.at(p.prev).next = p.next
	} else if w.heads[index] = p.next; p.next < 0 {
		w.occupied[index/levelSize] &^= 1 << (index % levelSize)
	}
	p.slot, p.next, p.prev = 0, -1, -1
}

// next is how many ticks there are until advance may have something to do: to
// hand out, or to move to a finer level. -1: the wheel is empty.
func (w *wheel) next() int64 {
	best := int64(-1)
	for level := range levels {
		if w.occupied[level] == 0 {
			continue
		}
		span := uint32(1) << (level * levelBits)
		place := w.now >> (level * levelBits) % levelSize
		// The slot at place itself was emptied when now came to it, so what stands there is a whole turn away.
		ahead := uint32(bits.TrailingZeros64(bits.RotateLeft64(w.occupied[level], -int(place)-1))) + 1
		if t := int64(ahead*span - w.now%span); best < 0 || t < best {
			best = t
		}
	}
	return best
}

// advance moves the wheel to the tick to, and hands out in order every pair that has
// become due. expired may set and clear timers.
func (w *wheel) advance(to uint32, expired func(*pair)) {
	for int32(to-w.now) > 0 {
		step := w.next()
		if step < 0 || step > int64(to-w.now) {
			w.now = to
			return
		}
		w.now += uint32(step)
		for level := levels - 1; level > 0; level-- {
			if w.now%(1<<(level*levelBits)) == 0 {
				w.cascade(level)
			}
		}
		index := w.now % levelSize
		for w.heads[index] >= 0 {
			p := w.pairs.at(w.heads[index])
			w.clear(p)
			if int32(p.due-w.now) > 0 { // beyond the horizon when it was set
				w.place(p)
				continue
			}
			expired(p)
		}
	}
}

// cascade moves the pairs of a level's present slot to finer levels.
func (w *wheel) cascade(level int) {
	index := level*levelSize + int(w.now>>(level*levelBits)%levelSize)
	for i := w.heads[index]; i >= 0; {
		p := w.pairs.at(i)
		i = p.next
		p.slot, p.next, p.prev = 0, -1, -1
		w.place(p)
	}
	w.heads[index] = -1
	w.occupied[level] &^= 1 << (index % levelSize)
}
