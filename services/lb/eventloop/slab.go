//go:build linux

package eventloop

// The two sides of a connection, and with them the two directions: data read
// from one side is written to the other, side^1.
const (
	client   = 0
	upstream = 1
)

// The phases of a connection.
const (
	vacant  = iota // the slot is free
	dialing        // an upstream is being connected to; the client is not read from
	starved        // as dialing, but no descriptor could be had for the upstream's socket
	open           // bytes are relayed
)

// What is known of one side of a connection.
const (
	readable  = 1 << iota // the kernel may have something to read
	exhaust               // a short read proves nothing: read until EAGAIN or the end
	final                 // the end is in the kernel: a short read has come to it
	ended                 // its end of stream was read
	shut                  // FIN was sent to it
	broken                // writing to it failed, or it was reset: what it sent before is still read
	streaming             // what it sends goes through a pipe
)

// pair is one relayed connection: the client's socket and the upstream's. It is
// owned by its loop. What each event needs lies within the first 64 bytes, one cache line.
type pair struct {
	fd     [2]int32 // -1: not open
	state  [2]uint8
	streak [2]uint8 // reads in a row that speak for changing the way this side is read
	phase  uint8
	epoch  uint8 // which attempt fd[upstream] is: tells late events from present ones
	listed bool  // stands in loop.ready
	writes uint8 // to the upstream, up to 2
	self   int32 // index in the slab

	next, prev int32  // in the wheel's slot
	slot       uint16 // of the wheel, 0: in none
	due        uint32 // tick at which the wheel hands it out
	active     uint32 // tick at which a byte last moved

	out [2]*backlog // what waits to be written to that side, nil: nothing

	asked int64 // nanoseconds of the loop's clock: when the first byte was sent to the upstream

	moved     [2]uint64 // bytes written towards (or queued for) the other side, by where they came from
	placement Placement
	dial      *dial // nil unless dialing or starved

	_ [24]byte // to 128 bytes, so that no pair shares a cache line
}

// blockSize is the number of pairs in one allocation: 32 KiB.
const blockSize = 256

// slab holds a loop's pairs under small integers, which is what the kernel
// hands back with events, and what links them in lists that the garbage
// collector need not follow. It grows and never shrinks.
type slab struct {
	blocks []*[blockSize]pair
	free   int32 // first free pair, linked by next; -1: none
}

func (s *slab) at(i int32) *pair {
	return &s.blocks[i/blockSize][i%blockSize]
}

func (s *slab) take() *pair {
	if s.free < 0 {
		s.grow()
	}
	p := s.at(s.free)
	s.free = p.next
	*p = pair{self: p.self, fd: [2]int32{-1, -1}, next: -1, prev: -1}
	return p
}

// give frees a pair. Nothing may refer to it: no event of the batch in hand, no list.
func (s *slab) give(p *pair) {
	*p = pair{self: p.self, fd: [2]int32{-1, -1}, next: s.free, prev: -1}
	s.free = p.self
}

func (s *slab) grow() {
	block := new([blockSize]pair)
	first := int32(len(s.blocks)) * blockSize
	s.blocks = append(s.blocks, block)
	for i := range int32(blockSize) {
		block[i].self = first + i
		block[i].next = first + i + 1
	}
	block[blockSize-1].next = -1
	s.free = first
}

// each calls f with every pair in use.
func (s *slab) each(f func(*pair)) {
	for _, block := range s.blocks {
		for i := range block {
			if block[i].phase != vacant {
				f(&block[i])
			}
		}
	}
}
