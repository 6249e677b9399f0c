//go:build linux

package eventloop

import "sync/atomic"

// chunkSize is what a chunk's bytes come to when it fills a 16 KiB allocation,
// with the allocator's header of eight bytes.
const chunkSize = 16<<10 - 24

// chunk is a piece of a backlog: data[start:end] waits.
type chunk struct {
	next       *chunk
	start, end int32
	data       [chunkSize]byte
}

// backlog is what was read from one side and could not yet be written to the
// other: in chunks if it was copied, in a pipe if it was spliced. The side it came from
// is not read while there is one, so it holds at most one read's worth: nothing at all, if the
// rest was left in the kernel (loop.carry).
type backlog struct {
	first, last *chunk
	pipe        *pipe // not nil: it holds the bytes
}

// store keeps the pieces that backlogs are made of between their uses.
type store struct {
	chunks   *chunk // linked by next
	spare    int    // of chunks
	backlogs []*backlog
	queued   atomic.Int64 // bytes in chunks in use, by capacity; written by the loop only
}

// What a store keeps for the next use; the rest is left to the garbage collector.
const (
	spareChunks   = 64
	spareBacklogs = 256
)

func (s *store) takeChunk() *chunk {
	s.queued.Add(chunkSize)
	c := s.chunks
	if c == nil {
		return new(chunk)
	}
	s.chunks = c.next
	s.spare--
	c.next, c.start, c.end = nil, 0, 0
	return c
}

func (s *store) giveChunk(c *chunk) {
	s.queued.Add(-chunkSize)
	if s.spare < spareChunks {
		c.next = s.chunks
		s.chunks = c
		s.spare++
	}
}

func (s *store) takeBacklog() *backlog {
	if last := len(s.backlogs) - 1; last >= 0 {
		b := s.backlogs[last]
		s.backlogs = s.backlogs[:last]
		return b
	}
	return new(backlog)
}

// giveBacklog takes back a backlog and its chunks. A pipe must have been taken out of it.
func (s *store) giveBacklog(b *backlog) {
	for b.first != nil {
		c := b.first
		b.first = c.next
		s.giveChunk(c)
	}
	*b = backlog{}
	if len(s.backlogs) < spareBacklogs {
		s.backlogs = append(s.backlogs, b)
	}
}

// add copies data to the end of b.
func (s *store) add(b *backlog, data []byte) {
	for len(data) > 0 {
		if b.last == nil || b.last.end == chunkSize {
			c := s.takeChunk()
			if b.last == nil {
				b.first = c
			} else {
				b.last.next = c
			}
			b.last = c
		}
		n := copy(b.last.data[b.last.end:], data)
		b.last.end += int32(n)
		data = data[n:]
	}
}

// sent drops n bytes, of the first chunk, from b.
func (s *store) sent(b *backlog, n int) {
	c := b.first
	c.start += int32(n)
	if c.start < c.end {
		return
	}
	if b.first = c.next; b.first == nil {
		b.last = nil
	}
	s.giveChunk(c)
}
