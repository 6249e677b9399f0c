package gateway

import (
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// timings are the protocol's fixed times. Tests shorten them.
type timings struct {
	proxyHeader time.Duration // for a PROXY header
	handshake   time.Duration // for TLS, and for an HTTP upgrade
	hello       time.Duration // for HELLO, and for PROOF
	frame       time.Duration // for a frame, or the TLS record it comes in, to become complete, from its first byte
	writeStall  time.Duration // for a device to take a piece, or to empty a full queue
	rejection   time.Duration // of nothing but rejected frames
	lastWords   time.Duration // for an ERROR to be written and the connection to be closed
	linger      time.Duration // of that, for the device to close its side
	finish      time.Duration // for requests in flight when a session has to go
	park        time.Duration // without a frame until the reader leaves; 0: it stays
	pushAck     time.Duration // for a PUSH_ACK where the sender says nothing
	confirm     time.Duration // between tries to confirm a token while auth-service is away
	tick        time.Duration // of the timer wheel
}

func defaultTimings() timings {
	return timings{
		proxyHeader: 5 * time.Second,
		handshake:   5 * time.Second,
		hello:       5 * time.Second,
		frame:       10 * time.Second,
		writeStall:  10 * time.Second,
		rejection:   10 * time.Second,
		lastWords:   3 * time.Second,
		linger:      time.Second,
		finish:      30 * time.Second,
		park:        500 * time.Millisecond,
		pushAck:     5 * time.Second,
		confirm:     time.Second,
		tick:        100 * time.Millisecond,
	}
}

// wheelSlots times the tick is one turn of the timer wheel.
const wheelSlots = 512

// arm makes the timer fire at the given time or before. mu is held. A deadline that moved away
// needs no arm: the timer fires, finds nothing, and is armed for what comes next.
func (s *session) arm(at int64) {
	if s.state == stateClosed || (s.armed != 0 && s.armed <= at) {
		return
	}
	s.armed = at
	s.srv.wheel.Schedule(&s.timer, s, at)
}

// armLocked is arm for callers that do not hold mu.
func (s *session) armLocked(at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arm(at)
}

// Expire implements wheel.Expirer: it looks at every deadline of the session.
func (s *session) Expire(now int64) {
	defer s.recoverFault() // the wheel turns for all sessions
	late, v := s.look(now)
	for _, p := range late {
		s.pushEnded(p, pushNoAck)
	}
	switch {
	case v.reason == "":
	case v.abort:
		s.abort(v.reason)
	default:
		s.end(v.reason, v.err)
	}
}

// look is Expire's part under the lock: it takes out the pushes that are late, and arms the timer anew.
func (s *session) look(now int64) (late []pendingPush, v verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == stateClosed {
		return nil, verdict{}
	}
	s.armed = 0
	late = s.latePushes(now)
	v = s.overdue(now)
	if v.next != 0 {
		s.arm(v.next)
	}
	return late, v
}

// verdict is what a look at the deadlines found: a reason to close, or when to look again.
type verdict struct {
	reason string // "": none
	abort  bool   // close at once, without words
	err    *wire.Error
	next   int64 // 0: not before something changes
}

// deadlines collects the earliest of several.
type deadlines struct{ next int64 }

// passed reports whether at has come. 0 is never; a time yet to come is collected.
func (d *deadlines) passed(at, now int64) bool {
	if at == 0 {
		return false
	}
	if at <= now {
		return true
	}
	if d.next == 0 || at < d.next {
		d.next = at
	}
	return false
}

// after is a deadline so long after a start; 0 if nothing was started, or d is 0.
func after(start int64, d time.Duration) int64 {
	if start == 0 || d == 0 {
		return 0
	}
	return start + int64(d)
}

// overdue looks at every deadline. mu is held.
func (s *session) overdue(now int64) verdict {
	t, d := &s.srv.timings, &deadlines{}
	if d.passed(after(s.writeStart.Load(), t.writeStall), now) || d.passed(after(s.out.full, t.writeStall), now) {
		return verdict{reason: closedWriteStalled, abort: true}
	}
	if s.state == stateClosing {
		if d.passed(s.closeBy, now) {
			return verdict{reason: closedWriteStalled, abort: true}
		}
		return verdict{next: d.next}
	}
	if d.passed(s.helloBy, now) {
		return s.timedOut(wire.CodeAuthTimeout, "no HELLO or PROOF in time")
	}
	if s.stopped == 0 && d.passed(after(s.frameStart.Load(), t.frame), now) {
		v := s.timedOut(wire.CodeIdleTimeout, "a frame did not become complete in time")
		v.reason = closedFrameTimeout
		return v
	}
	if s.state == stateOpen {
		if v := s.overdueOpen(now, d); v.reason != "" {
			return v
		}
	}
	return verdict{next: d.next}
}

// overdueOpen looks at the deadlines that begin with WELCOME.
func (s *session) overdueOpen(now int64, d *deadlines) verdict {
	if d.passed(s.tokens.expiry(), now) {
		return s.timedOut(wire.CodeTokenExpired, "the token has expired")
	}
	if d.passed(s.finishBy, now) {
		return verdict{reason: closedDrained}
	}
	if d.passed(s.leaveBy, now) {
		s.leaveBy = 0
		s.leaving = true
		s.finishBy = now + int64(s.srv.timings.finish)
		if len(s.inflight) == 0 {
			return verdict{reason: closedDrained}
		}
		d.passed(s.finishBy, now)
	}
	for _, p := range s.pushes {
		d.passed(p.deadline, now) // those that are late have been taken out
	}
	if s.stopped != 0 {
		return verdict{} // neither silence nor missed heartbeats are the device's fault now
	}
	idle, beat := s.silence()
	if d.passed(idle, now) {
		return s.timedOut(wire.CodeIdleTimeout, "no frame for too long")
	}
	if d.passed(beat, now) {
		return s.timedOut(wire.CodeHeartbeatTimeout, "no HEARTBEAT for too long")
	}
	if d.passed(s.parkAt(), now) {
		s.askToPark()
	}
	return verdict{}
}

// silence is when the device will have been silent for too long; 0: never.
func (s *session) silence() (idle, beat int64) {
	doc := &s.told.doc
	if s.other != nil {
		last := s.lastFrame.Load()
		return after(last, doc.IdleTimeout.D()), after(last, s.other.patience())
	}
	return after(s.lastFrame.Load(), doc.IdleTimeout.D()),
		after(s.lastBeat.Load(), time.Duration(doc.Heartbeat.Missed)*doc.Heartbeat.Interval.D())
}

// armSilence arms the timer for the deadlines of silence. mu is held.
func (s *session) armSilence() {
	idle, beat := s.silence()
	s.arm(idle)
	if beat != 0 {
		s.arm(beat)
	}
}

func (s *session) timedOut(code wire.Code, text string) verdict {
	return verdict{reason: string(code), err: wire.Errorf(code, "%s", text)}
}

// mayRead waits until the session may take another frame: the outbound queue has room and fewer
// requests than allowed are in flight. It reports whether the session still
// goes on. The reader calls it.
func (s *session) mayRead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blocked() {
		s.stopReading()
		for s.blocked() {
			s.changed.Wait()
		}
		s.readAgain()
	}
	return s.state <= stateOpen
}

// waits notes that bytes are waited for: the rest of what has begun, which then has its deadline, or something new. Whoever reads from
// the socket calls it, which is the reader until the last words are out.
func (s *session) waits() {
	switch {
	case s.within.Load() || (s.sock.secure != nil && tlsHoldsPart(s.sock.secure)):
		s.frameBegan()
	case s.frameStart.Load() != 0:
		s.frameStart.Store(0) // it was a ping, or a record that is TLS's own
	}
}

// frameBegan notes that part of a frame has come.
func (s *session) frameBegan() {
	if s.frameStart.Load() == 0 {
		now := s.srv.now()
		s.frameStart.Store(now)
		s.armLocked(now + int64(s.srv.timings.frame))
	}
}

// blocked reports whether the gateway must not read from the device. mu is held.
func (s *session) blocked() bool {
	return s.state <= stateOpen && (s.out.full != 0 || len(s.inflight) >= s.srv.settings.Load().doc.MaxInFlight)
}

// stopReading and readAgain stand around every time in which the gateway itself
// does not read: the device's silence does not count then. mu is held.
func (s *session) stopReading() { s.stopped = s.srv.now() }

func (s *session) readAgain() {
	d := s.srv.now() - s.stopped
	s.stopped = 0
	s.lastFrame.Add(d)
	s.lastBeat.Add(d)
	if began := s.frameStart.Load(); began != 0 { // a ping inside a message had to wait
		s.frameStart.Store(began + d)
		s.arm(began + d + int64(s.srv.timings.frame))
	}
	if s.state == stateOpen {
		s.armSilence() // nothing was armed for what did not run
		s.armParking()
	}
}

// pausing runs f, which may take its time, as time in which the gateway does
// not read. The reader calls it, without mu.
func (s *session) pausing(f func()) {
	s.mu.Lock()
	s.stopReading()
	s.mu.Unlock()
	f()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readAgain()
}
