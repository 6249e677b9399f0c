package link

import (
	"encoding/binary"
	"runtime"
	"slices"
	"sync"
	"time"
)

const (
	// controlReserve is how far over the queue's limit short frames may go that
	// free something at the peer, or keep the link alive.
	controlReserve = 64 << 10
	// keepCapacity is the largest buffer that is kept for the next frames, in bytes, and keepCancelled of streams.
	keepCapacity  = 256 << 10
	keepCancelled = 256
)

// queue holds the bytes that are ready to be written. Producers append whole
// frames; one writer takes all there is and writes it at once. So at most twice
// the limit is held: what is queued and what is being written.
type queue struct {
	limit int // bytes; static after construction

	mu    sync.Mutex
	ready sync.Cond // the writer waits for bytes, or for the end
	room  sync.Cond // producers that can wait do so here
	batch
	state   queueState
	idle    bool // the writer waits on ready
	waiting int  // producers on room
}

// batch is what is written at once.
type batch struct {
	buf       []byte   // whole frames
	cancelled []uint64 // streams of the CANCELs among them
}

type queueState uint8

const (
	queueOpen      queueState = iota
	queueFinishing            // takes no more; what it holds will be written
	queueClosed               // takes no more; what it holds is lost
)

func (q *queue) init(limit int) {
	q.limit = limit
	q.ready.L, q.room.L = &q.mu, &q.mu
}

// admit locks the queue and returns nil if a frame of size bytes may be appended to
// buf; commit must follow. With an error the queue is not locked. An empty
// queue takes any frame.
func (q *queue) admit(size int, reserve int, wait bool) error {
	q.mu.Lock()
	for q.state == queueOpen && len(q.buf) > 0 && len(q.buf)+size > q.limit+reserve {
		if !wait {
			q.mu.Unlock()
			return ErrBackpressure
		}
		q.waiting++
		q.room.Wait()
		q.waiting--
	}
	if q.state != queueOpen {
		q.mu.Unlock()
		return ErrClosed
	}
	return nil
}

// commit hands what was appended to the writer and unlocks.
func (q *queue) commit() {
	wake := q.idle
	q.idle = false
	q.mu.Unlock()
	if wake {
		q.ready.Signal()
	}
}

// end moves the queue towards its end; it never goes back.
func (q *queue) end(to queueState) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if to > q.state {
		q.state = to
	}
	if q.state == queueClosed {
		q.batch = batch{}
	}
	q.ready.Signal()
	q.room.Broadcast()
}

// take waits until there is something to write and returns all of it, in
// exchange for a batch that is no longer needed. ok is false at the end.
func (q *queue) take(spare batch) (out batch, ok bool) {
	q.mu.Lock()
	if len(q.buf) == 0 {
		for len(q.buf) == 0 && q.state == queueOpen {
			q.idle = true
			q.ready.Wait()
		}
		if q.state == queueOpen {
			// One frame woke the writer. Whoever else is about to run may have
			// another: let them append it, and pay for one system call.
			q.mu.Unlock()
			runtime.Gosched()
			q.mu.Lock()
		}
	}
	defer q.mu.Unlock()
	if len(q.buf) == 0 {
		return batch{}, false
	}
	if cap(spare.buf) > keepCapacity {
		spare.buf = nil
	}
	if cap(spare.cancelled) > keepCancelled {
		spare.cancelled = nil
	}
	out, q.batch = q.batch, batch{spare.buf[:0], spare.cancelled[:0]}
	if q.waiting > 0 {
		q.room.Broadcast()
	}
	return out, true
}

// dropCancelled takes out each REQUEST that was cancelled before it was written: its deadline has passed, or whoever asked has
// gone, and nobody is to work on it. The CANCELs stay, which for a stream that is not open mean nothing.
func (b *batch) dropCancelled() {
	if len(b.cancelled) == 0 {
		return
	}
	slices.Sort(b.cancelled)
	kept := b.buf[:0]
	for rest := b.buf; len(rest) > 0; {
		size := HeaderSize + int(binary.BigEndian.Uint32(rest[4:]))
		_, dropped := slices.BinarySearch(b.cancelled, binary.BigEndian.Uint64(rest[8:]))
		if !dropped || Type(rest[1]) != TypeRequest {
			kept = append(kept, rest[:size]...)
		}
		rest = rest[size:]
	}
	b.buf = kept
}

// writeFrames is the writer: it writes what is queued until the queue ends or
// a write fails, then closes c.written. It alone writes after the handshake.
func (c *Conn) writeFrames() {
	defer close(c.written)
	var spare batch
	for {
		out, ok := c.out.take(spare)
		if !ok {
			return
		}
		out.dropCancelled()
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.cfg.WriteTimeout))
		if _, err := c.nc.Write(out.buf); err != nil {
			c.close(err)
			return
		}
		spare = out
	}
}
