package link

import (
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// What Streams.Open answers instead of opening.
var (
	ErrTooManyStreams = errors.New("link: as many streams are open as the peer takes")
	ErrSealed         = errors.New("link: no new streams")
)

// Streams is the table of the streams that this end opened and the peer has not
// answered, each with a value of the caller's. Who takes a stream out owns its value, and only
// one can: so an answer, a deadline, a cancellation and the link's end may race, and one of
// them wins. Ids are chosen at random, 43 bits of them, so that
// a peer which answers with a wrong id hits none but by guessing. It is safe for
// concurrent use and allocates only while it grows.
type Streams[T any] struct {
	role Role // static after construction
	max  int

	open atomic.Int32 // changed under mu

	mu     sync.Mutex
	slots  []slot[T]
	free   []uint32 // indices of slots that are not in use
	sealed bool
	random *rand.ChaCha8
}

// slot holds one stream. An id is, from the top, 43 random bits, the slot's
// index in 20, and the parity of the role.
type slot[T any] struct {
	id    uint64 // 0: free
	lost  uint64 // the last id here that was given up before it was answered
	value T
}

const slotBits = 20 // MaxStreams

// NewStreams makes a table for the streams that role opens, at most max at
// once (at most MaxStreams).
func NewStreams[T any](role Role, max int) *Streams[T] {
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // never fails
	return &Streams[T]{role: role, max: min(max, MaxStreams), random: rand.NewChaCha8(seed)}
}

// Open enters v and returns the id to send. The error is ErrTooManyStreams or
// ErrSealed.
func (s *Streams[T]) Open(v T) (id uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed {
		return 0, ErrSealed
	}
	if int(s.open.Load()) >= s.max {
		return 0, ErrTooManyStreams
	}
	var i uint32
	if n := len(s.free); n > 0 {
		i, s.free = s.free[n-1], s.free[:n-1]
	} else {
		i = uint32(len(s.slots))
		s.slots = append(s.slots, slot[T]{})
	}
	at := &s.slots[i]
	for id>>(slotBits+1) == 0 || id == at.lost {
		id = s.random.Uint64()<<(slotBits+1) | uint64(i)<<1 | uint64(s.role)
	}
	at.id, at.value = id, v
	s.open.Add(1)
	return id, nil
}

// Take takes the stream out because it was answered. ok is false if it is not
// open: never was, or was taken out before.
func (s *Streams[T]) Take(id uint64) (v T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.find(id); at != nil {
		return s.remove(at), true
	}
	return v, false
}

// GiveUp takes the stream out although it was not answered: from now on its
// answer is Late. ok as in Take.
func (s *Streams[T]) GiveUp(id uint64) (v T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.find(id); at != nil {
		at.lost = id
		return s.remove(at), true
	}
	return v, false
}

// GiveUpWhere gives up each stream for which over is true, and adds what it
// took out to dst. over is called with the table locked: it must be short and must not call back.
func (s *Streams[T]) GiveUpWhere(dst []Taken[T], over func(*T) bool) []Taken[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open.Load() == 0 {
		return dst
	}
	for i := range s.slots {
		if at := &s.slots[i]; at.id != 0 && over(&at.value) {
			id := at.id // before remove takes it
			at.lost = id
			dst = append(dst, Taken[T]{id, s.remove(at)})
		}
	}
	return dst
}

// Taken is a stream that was taken out of the table.
type Taken[T any] struct {
	ID    uint64
	Value T
}

// Late reports whether id was given up: an answer with it comes late, where one
// with another unknown id is wrong. It remembers one id for each stream that
// may be open.
func (s *Streams[T]) Late(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := int(id >> 1 & (1<<slotBits - 1))
	return id != 0 && i < len(s.slots) && s.slots[i].lost == id
}

// Seal makes every further Open fail.
func (s *Streams[T]) Seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = true
}

// Drained reports whether the table is sealed and empty: it stays so.
func (s *Streams[T]) Drained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sealed && s.open.Load() == 0
}

// Len is how many streams are open.
func (s *Streams[T]) Len() int { return int(s.open.Load()) }

// find returns the slot of an open stream, or nil. mu is held.
func (s *Streams[T]) find(id uint64) *slot[T] {
	i := int(id >> 1 & (1<<slotBits - 1))
	if id == 0 || i >= len(s.slots) || s.slots[i].id != id {
		return nil
	}
	return &s.slots[i]
}

// remove frees a slot. mu is held.
func (s *Streams[T]) remove(at *slot[T]) T {
	var none T
	v := at.value
	s.free = append(s.free, uint32(at.id>>1&(1<<slotBits-1)))
	at.id, at.value = 0, none
	s.open.Add(-1)
	return v
}
