//go:build linux

package eventloop

import (
	"math/rand/v2"
	"testing"
)

// Against a plain list of deadlines: every pair is handed out exactly at its tick,
// whatever is set, moved and cleared, also where ticks wrap around.
func TestWheelKeepsDeadlines(t *testing.T) {
	for _, start := range []uint32{0, 1, 63, 4095, 1<<18 - 1, 1<<32 - 5000, 1<<31 - 100} {
		r := rand.New(rand.NewPCG(1, uint64(start)))
		s := &slab{free: -1}
		w := newWheel(s)
		w.now = start
		want := map[*pair]uint32{}
		var pairs []*pair
		for range 30 {
			pairs = append(pairs, s.take())
		}
		for step := range 20_000 {
			p := pairs[r.IntN(len(pairs))]
			switch r.IntN(4) {
			case 0, 1:
				due := w.now + 1 + uint32(r.Uint64N(1<<(1+r.IntN(20))))
				w.set(p, due)
				want[p] = due
			case 2:
				w.clear(p)
				delete(want, p)
			case 3:
				to := w.now + uint32(r.Uint64N(1<<r.IntN(14)))
				w.advance(to, func(p *pair) {
					if due, ok := want[p]; !ok || due != w.now {
						t.Fatalf("start %d step %d: handed out at %d, want %d (set %v)", start, step, w.now, due, ok)
					}
					delete(want, p)
				})
				if w.now != to {
					t.Fatalf("now %d after advance to %d", w.now, to)
				}
				for _, due := range want {
					if int32(due-to) <= 0 {
						t.Fatalf("start %d step %d: due at %d, not handed out by %d", start, step, due, to)
					}
				}
			}
			if step%16 == 0 {
				checkNext(t, &w, want)
			}
		}
	}
}

// next must never sleep past a deadline.
func checkNext(t *testing.T, w *wheel, want map[*pair]uint32) {
	t.Helper()
	next := w.next()
	if (next < 0) != (len(want) == 0) {
		t.Fatalf("next gives %d with %d timers", next, len(want))
	}
	for _, due := range want {
		if next < 1 || next > int64(due-w.now) {
			t.Fatalf("next gives %d, a timer is due in %d", next, due-w.now)
		}
	}
}

func TestWheelBeyondItsHorizon(t *testing.T) {
	s := &slab{free: -1}
	w := newWheel(s)
	p := s.take()
	due := uint32(3 * horizon)
	w.set(p, due)
	var got uint32
	w.advance(due+10, func(*pair) { got = w.now })
	if got != due {
		t.Errorf("handed out at %d, want %d", got, due)
	}
}

func TestWheelMaySetInExpired(t *testing.T) {
	s := &slab{free: -1}
	w := newWheel(s)
	p, q := s.take(), s.take()
	w.set(p, 5)
	w.set(q, 5)
	count := 0
	w.advance(100, func(p *pair) {
		count++
		if count < 10 {
			w.set(p, w.now+3)
		}
	})
	if count != 11 {
		t.Errorf("handed out %d times, want 11", count)
	}
	if n := w.next(); n != -1 {
		t.Errorf("next gives %d with no timer", n)
	}
}

func BenchmarkWheelSet(b *testing.B) {
	s := &slab{free: -1}
	w := newWheel(s)
	p := s.take()
	for i := range b.N {
		w.set(p, uint32(i+60_000))
	}
}
