package gateway

import (
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// rejectionPrice is what a rejected frame costs, in tokens. Without a price a flood
// would always find the tokens that have just come; with it, a device at more than ten times its
// rate gets nothing but rejections, and is closed after a while.
const rejectionPrice = 0.1

// After so many rejected frames of which none was taken the reader has a pause. To refuse a frame costs little, but all
// devices share the cores: so a flood costs them what some thousand frames a second do, however fast it is, and the rest of
// it waits at the device. A pause brings no tokens: those would keep the device from being closed.
const (
	floodPause = 2 * time.Millisecond
	floodTurn  = 10 // rejected frames between two pauses, or
	floodTimes = 20 // as many as make so many times the device's rate
)

// admit takes a frame with so many bytes of payload out of the device's buckets. id is that of a
// REQUEST, nil for other frames. If the frame is not to be dealt with, goOn tells
// whether the session goes on. The reader calls it.
func (s *session) admit(payload int, id *uint32) (ok, goOn bool) {
	retry := s.takeTokens(payload)
	if retry == 0 {
		s.rejecting, s.rejected = 0, 0
		s.srv.metrics.deviceAllowed.Inc()
		return true, true
	}
	if s.srv.settings.Load().doc.DeviceLimit.OnLimit == dynamic.LimitWait {
		s.srv.metrics.deviceWaited.Inc()
		return s.awaitTokens(payload, retry)
	}
	return false, s.reject(retry, id)
}

// admitPing takes a WebSocket ping, a pong or a further fragment of a message out of the device's buckets, as if it were a frame, and reports
// whether a ping is to be answered. One that is over the limit gets no answer, which could not be told from one to a frame; a
// fragment is taken all the same, late, or its message would be lost.
// The transport calls it, on the reader; the flusher, too, but only when the session is closing.
func (s *session) admitPing(payload int) bool {
	if !s.isOpen() {
		return false
	}
	retry := s.takeTokens(payload)
	switch {
	case retry == 0:
		s.rejecting, s.rejected = 0, 0
		s.srv.metrics.deviceAllowed.Inc()
		return true
	case s.srv.settings.Load().doc.DeviceLimit.OnLimit == dynamic.LimitWait:
		s.srv.metrics.deviceWaited.Inc()
		s.awaitTokens(payload, retry)
	default:
		if e := s.rejection(retry); e.Close {
			s.refuse(e)
		} else {
			s.slowDown()
		}
	}
	return false
}

// isOpen reports whether the session deals with what comes.
func (s *session) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state <= stateOpen
}

// takeTokens returns 0 if the device is within its limits, else when to ask again.
func (s *session) takeTokens(payload int) (retry time.Duration) {
	set, now := s.srv.settings.Load(), s.srv.now()
	ok, retry := set.frames.Take(&s.frames, now, 1)
	if !ok {
		return retry
	}
	if _, retry = set.bytes.Take(&s.bytes, now, float64(wire.HeaderSize+payload)); retry > 0 {
		return retry
	}
	return 0
}

// awaitTokens stops reading until there are tokens.
func (s *session) awaitTokens(payload int, retry time.Duration) (ok, goOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopReading()
	defer s.readAgain()
	for retry > 0 {
		if !s.waitFor(retry) {
			return false, false
		}
		retry = s.takeTokens(payload)
	}
	return true, true
}

// slowDown has the pause of a reader that meets a flood, when it is due. It reports whether the session goes on.
func (s *session) slowDown() bool {
	set := s.srv.settings.Load()
	if !s.pauseDue(set) {
		return true
	}
	goOn := s.standStill(floodPause)
	set.frames.Charge(&s.frames, s.srv.now(), missed(set))
	return goOn
}

// missed is how many tokens come in a pause.
func missed(set *settings) float64 { return set.doc.DeviceLimit.Rate * floodPause.Seconds() }

// pauseDue reports whether the reader pauses after the last rejection.
func (s *session) pauseDue(set *settings) bool {
	return s.rejected%max(floodTurn, int(min(floodTimes*missed(set), 1e6))) == 0
}

// standStill reads nothing for so long.
func (s *session) standStill(d time.Duration) (goOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopReading()
	defer s.readAgain()
	return s.waitFor(d)
}

// waitFor waits for so long, unless the session closes: then it returns false. The reader calls it; mu is held.
func (s *session) waitFor(d time.Duration) bool {
	until := s.srv.now() + int64(d)
	timer := time.AfterFunc(d, s.wakeReader)
	defer timer.Stop()
	for s.state <= stateOpen && s.srv.now() < until {
		s.changed.Wait()
	}
	return s.state <= stateOpen
}

// wakeReader makes a waiting reader look again.
func (s *session) wakeReader() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed.Broadcast()
}

// reject refuses a frame; a device that gets nothing but rejections for long is closed. It
// reports whether the session goes on.
func (s *session) reject(retry time.Duration, id *uint32) bool {
	e := s.rejection(retry)
	if e.Close {
		return s.refuse(e)
	}
	if id != nil {
		e.ID, e.HasID = *id, true
	}
	s.tell(e)
	return s.slowDown()
}

// rejection is what a device is told of a frame that was refused, after its price was charged. Who comes again when he is
// told to, and sends nothing before, is served.
func (s *session) rejection(retry time.Duration) *wire.Error {
	s.srv.metrics.deviceRejected.Inc()
	now := s.srv.now()
	set := s.srv.settings.Load()
	set.frames.Charge(&s.frames, now, rejectionPrice)
	s.rejected++
	if s.rejecting == 0 {
		s.rejecting = now
	}
	retry = max(retry, set.frames.Wait(&s.frames, now, 1))
	if s.pauseDue(set) {
		retry += floodPause
	}
	e := &wire.Error{Code: wire.CodeRateLimited, Message: "over the device's limit", RetryAfter: roundUp(retry)}
	if now-s.rejecting >= int64(s.srv.timings.rejection) {
		e.Message, e.Close = "nothing but rejections for too long", true
	}
	return e
}

// withinService takes a request out of its service's limit over all gateways, or answers that it is over it. The device
// need not be to blame, so this closes no connection.
func (s *session) withinService(service *serviceMetrics, id uint32) bool {
	if service.limit == nil {
		return true
	}
	retry := service.limit.Take()
	if retry == 0 {
		s.srv.metrics.serviceAllowed.Inc()
		return true
	}
	s.srv.metrics.serviceRejected.Inc()
	service.fail(wire.CodeRateLimited)
	s.tell(&wire.Error{Code: wire.CodeRateLimited, Message: "over the service's limit", ID: id, HasID: true,
		RetryAfter: roundUp(retry)})
	return false
}

// roundUp is a wait in whole milliseconds, as a device is told it.
func roundUp(wait time.Duration) time.Duration {
	return max(wait+time.Millisecond-1, time.Millisecond).Truncate(time.Millisecond)
}
