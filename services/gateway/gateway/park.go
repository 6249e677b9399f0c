package gateway

import (
	"go.uber.org/zap"

	"github.com/goshield/goshield/services/gateway/parking"
)

// Parking: after a short time without a frame the reader leaves, with its stack and its buffers, and the
// connection waits in the lot (package parking) until something comes. A reader waits in Read, at no cost to
// the frames that come; when it has waited for long enough, the timer wheel interrupts it, and it looks for itself whether it may leave.
// By then crypto/tls has handed out all that it had, and if that Read was waiting for the rest of a frame or of a TLS record, it stays: until
// then there are buffers, and a deadline (see waits). Bytes that come between the interrupt and the parking make the connection readable at once.
//
// A parked session is like any other to everybody but its reader: the flusher writes, deadlines pass, others
// end it.

// startParking makes the lot, where the system can have one.
func (s *Server) startParking() {
	if s.timings.park == 0 {
		return
	}
	lot, err := parking.New()
	if err != nil {
		s.log.Info("idle connections keep their goroutines", zap.Error(err))
		return
	}
	s.lot = lot
	go lot.Run() // until endWork
}

// spotFor is conn as something to park; nil: it cannot be. Either way it gives up what its handshake needed: nobody reads from it yet.
func (s *Server) spotFor(conn transport) parkable {
	p, ok := conn.(parkable)
	if !ok {
		return nil
	}
	p.shrink()
	if s.lot == nil || p.space() == nil {
		return nil
	}
	return p
}

// parkAt is when the reader should leave if no frame comes; 0: it stays, or has been asked. mu is held.
func (s *session) parkAt() int64 {
	if s.spot == nil || !s.reading || s.interrupted {
		return 0
	}
	return s.quietSince() + int64(s.srv.timings.park)
}

// armParking arms the timer for the reader's leave. mu is held.
func (s *session) armParking() {
	if at := s.parkAt(); at != 0 {
		s.arm(at)
	}
}

// quietSince is when the last frame came, or the reader. mu is held.
func (s *session) quietSince() int64 { return max(s.lastFrame.Load(), s.readerCame) }

// askToPark interrupts the reader. mu is held.
func (s *session) askToPark() {
	s.interrupted = true
	s.spot.interrupt()
}

// stay takes back that the reader was asked to leave. mu is held.
func (s *session) stay() {
	s.interrupted = false
	s.spot.resume()
}

// park is the interrupted reader's look whether it may leave. If so the session is another reader's when it
// returns.
func (s *session) park() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stay()
	now := s.srv.now()
	quiet := now-s.quietSince() >= int64(s.srv.timings.park)
	if s.state != stateOpen || !quiet || s.frameStart.Load() != 0 || !s.enterLot() {
		s.readerCame = now // asked again after as long
		s.armParking()
		return false
	}
	return true
}

// enterLot gives up what a session without traffic does not need, and parks it. mu is held.
func (s *session) enterLot() bool {
	s.in.Release()
	s.spot.shrink()
	if len(s.inflight) == 0 {
		s.inflight = nil
	}
	if len(s.pushes) == 0 {
		s.pushes = nil
	}
	if !s.srv.lot.Park(s.spot.space(), s) {
		return false
	}
	s.reading, s.parked = false, true
	s.srv.metrics.active.Dec()
	s.srv.metrics.parked.Inc()
	return true
}

// Wake implements parking.Waker: something has come.
func (s *session) Wake() {
	defer s.recoverFault() // the lot wakes all sessions
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked {
		s.unpark()
	}
}

// unpark brings a reader back. mu is held.
func (s *session) unpark() {
	s.leaveLot()
	s.reading, s.readerCame = true, s.srv.now()
	s.armParking()
	s.srv.work.Add(1)
	go s.read()
}

// leaveLot notes that the session is no longer parked. mu is held.
func (s *session) leaveLot() {
	s.parked = false
	s.srv.metrics.parked.Dec()
	s.srv.metrics.active.Inc()
}
