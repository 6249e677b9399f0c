package link

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestStreamIDs(t *testing.T) {
	for _, role := range []Role{Gateway, Backend} {
		s := NewStreams[int](role, 100)
		seen := map[uint64]bool{}
		for i := range 1000 {
			id, err := s.Open(i)
			if err != nil {
				t.Fatal(err)
			}
			if !role.Owns(id) || id>>(slotBits+1) == 0 {
				t.Fatalf("%s: id %#x has the wrong parity or no random bits", role, id)
			}
			if seen[id] {
				t.Fatalf("%s: id %#x came twice", role, id)
			}
			seen[id] = true
			if got, ok := s.Take(id); !ok || got != i {
				t.Fatalf("Take: got %d, %v; want %d, true", got, ok, i)
			}
			if _, ok := s.Take(id); ok {
				t.Fatal("a stream could be taken twice")
			}
		}
	}
}

func TestStreamsAreBoundedAndSealed(t *testing.T) {
	s := NewStreams[string](Gateway, 2)
	a, _ := s.Open("a")
	if _, err := s.Open("b"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open("c"); !errors.Is(err, ErrTooManyStreams) {
		t.Errorf("third of two: got %v, want ErrTooManyStreams", err)
	}
	s.Take(a)
	if _, err := s.Open("c"); err != nil {
		t.Errorf("after one was taken: got %v", err)
	}
	s.Seal()
	if _, err := s.Open("d"); !errors.Is(err, ErrSealed) {
		t.Errorf("sealed: got %v, want ErrSealed", err)
	}
	if s.Drained() || s.Len() != 2 {
		t.Errorf("sealed with two open: Drained %v, Len %d", s.Drained(), s.Len())
	}
	got := s.GiveUpWhere(nil, func(*string) bool { return true })
	if len(got) != 2 || !s.Drained() || s.Len() != 0 {
		t.Errorf("gave up %d, Drained %v, Len %d; want 2, true, 0", len(got), s.Drained(), s.Len())
	}
}

// RELIABILITY row 29: an id that is wrong in any way hits nothing, and one that was given up is
// told apart from it.
func TestWrongIDsHitNothing(t *testing.T) {
	s := NewStreams[int](Gateway, 1000)
	var ids []uint64
	for i := range 1000 {
		id, err := s.Open(i)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		for _, wrong := range []uint64{0, id + 1, id + 2, id - 2, id ^ 1<<63, id ^ 1<<40, id >> 1, ^id} {
			if _, ok := s.Take(wrong); ok {
				t.Fatalf("%#x took the stream of another; %#x is open", wrong, id)
			}
			if s.Late(wrong) {
				t.Fatalf("%#x is late; it was never open", wrong)
			}
		}
	}
	if s.Len() != 1000 {
		t.Fatalf("got %d open, want 1000", s.Len())
	}
	if v, ok := s.GiveUp(ids[7]); !ok || v != 7 {
		t.Errorf("GiveUp: got %d, %v; want 7, true", v, ok)
	}
	if _, ok := s.Take(ids[7]); ok || !s.Late(ids[7]) {
		t.Errorf("after GiveUp: taken %v, late %v; want false, true", ok, s.Late(ids[7]))
	}
	s.Take(ids[8])
	if s.Late(ids[8]) {
		t.Error("an answered stream counts as given up")
	}
}

// Each stream is taken out once, however many try.
func TestStreamsTakenOnce(t *testing.T) {
	const streams, takers = 2000, 4
	s := NewStreams[int](Backend, streams)
	var ids []uint64
	for i := range streams {
		id, _ := s.Open(i)
		ids = append(ids, id)
	}
	var taken [streams]atomic.Int32
	var wg sync.WaitGroup
	for n := range takers {
		wg.Go(func() {
			for _, id := range ids {
				if n%2 == 0 {
					if v, ok := s.Take(id); ok {
						taken[v].Add(1)
					}
				} else if v, ok := s.GiveUp(id); ok {
					taken[v].Add(1)
				}
			}
		})
	}
	wg.Go(func() {
		for _, x := range s.GiveUpWhere(nil, func(v *int) bool { return *v%3 == 0 }) {
			taken[x.Value].Add(1)
			if x.ID != ids[x.Value] {
				t.Errorf("stream %d was given up as %d, want %d", x.Value, x.ID, ids[x.Value])
			}
		}
	})
	wg.Wait()
	for i := range taken {
		if n := taken[i].Load(); n != 1 {
			t.Fatalf("stream %d was taken %d times", i, n)
		}
	}
}

func TestStreamsDoNotAllocate(t *testing.T) {
	s := NewStreams[int](Gateway, 10)
	if allocs := testing.AllocsPerRun(1000, func() {
		id, _ := s.Open(1)
		s.Take(id)
	}); allocs != 0 {
		t.Errorf("got %v allocations, want 0", allocs)
	}
}
