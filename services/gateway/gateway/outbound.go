package gateway

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
)

const (
	// outboundLimit is how many bytes may wait for a device before the gateway
	// stops reading from it and pushes nothing more. Answers to requests that
	// were accepted before still join the queue: max_in_flight of at most
	// frame.max_bytes each.
	outboundLimit = 64 << 10
	// writeChunk is how much a device must take within the write deadline.
	writeChunk = 16 << 10
	// keepBuffer is the largest buffer that is kept for others to use.
	keepBuffer = 64 << 10
)

// outbound is what waits to be written to the device. Guarded by the session's mu.
type outbound struct {
	buf      *buffer // frames that wait; nil: none
	bytes    int     // of buf, and of what the flusher is writing
	full     int64   // since when bytes is at the limit; 0: it is not
	flushing bool    // there is a flusher
}

// buffer is a reusable slice of bytes.
type buffer struct{ b []byte }

// buffers keeps buffers that nobody uses: an idle session has none.
type buffers struct{ pool sync.Pool }

func (p *buffers) get() *buffer {
	if b, ok := p.pool.Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 0, 1<<10)}
}

func (p *buffers) put(b *buffer) {
	if cap(b.b) <= keepBuffer {
		b.b = b.b[:0]
		p.pool.Put(b)
	}
}

// send queues a frame, and reports whether it could be encoded. mu is held; startFlush
// must follow before it is given up.
func (s *session) send(m wire.Message) bool {
	if s.out.buf == nil {
		s.out.buf = s.srv.buffers.get()
	}
	before := len(s.out.buf.b)
	b, err := wire.Append(s.out.buf.b, s.version, m)
	s.out.buf.b = b
	if err != nil {
		s.log().Error("frame cannot be sent", zap.Stringer("type", m.Type()), zap.Error(err)) // a fault of ours: sizes were checked
		return false
	}
	s.srv.metrics.framesOut[m.Type()].Inc()
	s.queued(len(b) - before)
	return true
}

// enqueue queues a frame that is encoded. mu is held; startFlush must follow.
func (s *session) enqueue(frame []byte) {
	if s.out.buf == nil {
		s.out.buf = s.srv.buffers.get()
	}
	s.out.buf.b = append(s.out.buf.b, frame...)
	s.queued(len(frame))
}

// queued counts bytes that joined the queue. mu is held.
func (s *session) queued(n int) {
	s.out.bytes += n
	if s.out.bytes >= outboundLimit && s.out.full == 0 {
		s.out.full = s.srv.now()
		s.arm(s.out.full + int64(s.srv.timings.writeStall))
	}
}

// startFlush sees to it that what is queued gets written. mu is held.
func (s *session) startFlush() {
	if s.out.flushing {
		return
	}
	s.out.flushing = true
	s.srv.work.Add(1)
	go s.flushFn()
}

// tell queues a frame and sends it, if the session is open.
func (s *session) tell(m wire.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state <= stateOpen && s.send(m) {
		s.startFlush()
	}
}

// flush is the flusher: it writes until nothing waits, together what became ready together, and
// closes the connection if those were the last words. It ends when the queue is empty, or the connection
// closed, at the latest by the write deadline.
func (s *session) flush() {
	defer s.srv.work.Done()
	defer s.recoverSilently() // half a frame may have been written
	for written := 0; ; {
		buf, closing := s.nextToFlush(written)
		if buf == nil {
			if closing {
				s.linger()
			}
			return
		}
		err := s.write(buf.b)
		written = len(buf.b)
		s.srv.buffers.put(buf)
		if err != nil {
			s.abort(closedReset)
			return
		}
	}
}

// nextToFlush is what the flusher writes next, after so many bytes that it has written. With nil the flusher
// is done, and if closing those were the last words.
func (s *session) nextToFlush(written int) (buf *buffer, closing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.bytes -= written
	if s.out.bytes < outboundLimit && s.out.full != 0 {
		s.out.full = 0
		s.changed.Broadcast()
	}
	if s.out.buf != nil && s.state != stateClosed {
		buf, s.out.buf = s.out.buf, nil
		return buf, false
	}
	closing = s.state == stateClosing
	s.out.flushing = closing // nobody starts another one behind the last words
	return nil, closing
}

// write writes p piece by piece, each under the write deadline, which the timer wheel keeps.
func (s *session) write(p []byte) error {
	defer s.writeStart.Store(0)
	for len(p) > 0 {
		now := s.srv.now()
		s.writeStart.Store(now)
		s.armLocked(now + int64(s.srv.timings.writeStall))
		n := s.pieceOf(p)
		if _, err := s.conn.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// pieceOf is how much of p, which is whole frames, to write at once: whole frames, too.
func (s *session) pieceOf(p []byte) int {
	if len(p) <= writeChunk {
		return len(p)
	}
	n := 0
	for n < len(p) {
		size := wire.HeaderSize + (int(p[n+2])<<8 | int(p[n+3]))
		if n > 0 && n+size > writeChunk {
			break
		}
		n += size
	}
	return n
}

// linger ends the connection so that the last words arrive: it closes the
// outgoing direction and waits, a bounded time, for the device to close its own.
func (s *session) linger() {
	if err := s.conn.CloseWrite(); err == nil {
		s.mu.Lock()
		var gone chan struct{}
		if s.reading {
			s.readGone = make(chan struct{})
			gone = s.readGone
		}
		s.mu.Unlock()
		if gone != nil {
			timer := time.NewTimer(s.srv.timings.linger)
			select {
			case <-gone:
			case <-timer.C:
			}
			timer.Stop()
		}
	}
	s.abort("") // wrapUp was done by end
}
