package gateway

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

// pushesMax is how many PUSHes of one device may wait for their PUSH_ACK.
const pushesMax = 64

// pushOutcome is what became of a message for a device. Each is a metric label.
type pushOutcome string

const (
	pushQueued       pushOutcome = "queued" // it is on its way
	pushAcked        pushOutcome = "acknowledged"
	pushNotConnected pushOutcome = "not_connected"
	pushQueueFull    pushOutcome = "queue_full"
	pushNoAck        pushOutcome = "no_ack"      // sent and not acknowledged: it may have arrived
	pushLost         pushOutcome = "lost"        // counted only: the session ended before the acknowledgement; who asks is told no_ack
	pushRefused      pushOutcome = "refused"     // no device could take it: too long, or no JSON
	pushUnavailable  pushOutcome = "unavailable" // not sent; the gateway that has the device cannot be found or reached
)

// pendingPush is a PUSH that waits for its PUSH_ACK.
type pendingPush struct {
	id       uint32
	deadline int64
	done     func(pushOutcome) // nil: nobody asks
}

// pushEnded counts what became of a message that was queued, and tells who asks. Nobody asks after one that was answered 202: the
// count is all that says whether it arrived.
func (s *session) pushEnded(p pendingPush, o pushOutcome) {
	s.srv.countPush(o)
	if o == pushLost {
		o = pushNoAck
	}
	if p.done != nil {
		p.done(o)
	}
}

// push queues a message for the device. If the outcome is pushQueued and done is not nil,
// done follows once, with pushAcked or pushNoAck, from any goroutine; it must not block.
// body is copied. Where the service's pushes are converted, it is JSON.
func (s *session) push(service string, body []byte, wait time.Duration, done func(pushOutcome)) (outcome pushOutcome) {
	defer func() {
		if outcome == "" { // a fault: it may have been queued
			outcome = pushNoAck
		}
	}()
	defer s.recoverFault()
	if conv := s.srv.settings.Load().bodies[service]; conv != nil {
		var err error
		if body, err = conv.Push(body, s.json); err != nil {
			return pushRefused
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen || s.lost || s.leaving {
		return pushNotConnected
	}
	const envelope = len(`{"id":4294967295,"service":"","body":}`)
	if envelope+len(service)+len(body) > s.told.doc.Frame.MaxBytes || (s.json && !wire.ValidJSON(body)) {
		return pushRefused
	}
	if s.out.full != 0 || len(s.pushes) >= pushesMax {
		return pushQueueFull
	}
	if s.other != nil {
		if outcome := s.other.mayPush(service, len(body)); outcome != pushQueued {
			return outcome
		}
	}
	s.pushID++
	if !s.send(&wire.Push{ID: s.pushID, Service: service, Body: body}) {
		return pushRefused
	}
	deadline := s.srv.now() + int64(wait)
	s.pushes = append(s.pushes, pendingPush{id: s.pushID, deadline: deadline, done: done})
	s.arm(deadline)
	s.startFlush()
	return pushQueued
}

// handlePushAck ends the wait of the PUSH with that id. Acknowledging costs a device nothing; making
// acknowledgements up does.
func (s *session) handlePushAck(f wire.Frame) bool {
	var ack wire.PushAck
	if e := s.decode(f, &ack); e != nil {
		return s.refuse(e)
	}
	if p, ok := s.takePush(ack.ID); ok {
		s.pushEnded(p, pushAcked)
		return true
	}
	_, goOn := s.admit(len(f.Payload), nil)
	return goOn
}

func (s *session) takePush(id uint32) (pendingPush, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.pushes {
		if p.id == id {
			s.pushes = append(s.pushes[:i], s.pushes[i+1:]...)
			return p, true
		}
	}
	return pendingPush{}, false
}

// latePushes takes out those that were not acknowledged in time. mu is held.
func (s *session) latePushes(now int64) []pendingPush {
	var late []pendingPush
	kept := s.pushes[:0]
	for _, p := range s.pushes {
		if p.deadline <= now {
			late = append(late, p)
		} else {
			kept = append(kept, p)
		}
	}
	clear(s.pushes[len(kept):])
	s.pushes = kept
	return late
}

// pushLocal pushes to a device of this gateway; done as for session.push. The outcome is counted, unless it is
// pushNotConnected: then it is for who asks no other gateway to count it.
func (s *Server) pushLocal(id wire.ClientID, service string, body []byte, wait time.Duration, done func(pushOutcome)) pushOutcome {
	ses := s.table.find(id)
	if ses == nil {
		return pushNotConnected
	}
	outcome := ses.push(service, body, wait, done)
	if outcome != pushNotConnected {
		s.countPush(outcome)
	}
	return outcome
}

func (s *Server) countPush(o pushOutcome) { s.metrics.pushes.WithLabelValues(string(o)).Inc() }

// pushFromBackend takes a message that came over a link (backend.PushFunc): to the
// device here, or to the gateway that has it.
func (s *Server) pushFromBackend(id wire.ClientID, service string, body []byte, done func(link.PushResult)) {
	if conv := s.settings.Load().bodies[service]; conv != nil {
		var err error
		if body, err = conv.Pushed(body); err != nil {
			s.log.Debug("a push cannot be converted", zap.String("service", service), zap.Error(err))
			s.countPush(pushRefused)
			done(linkResult(pushRefused))
			return
		}
	}
	outcome := s.pushLocal(id, service, body, s.timings.pushAck, func(o pushOutcome) { done(linkResult(o)) })
	switch {
	case outcome == pushQueued: // done follows
	case outcome == pushNotConnected && s.peers != nil:
		s.forwardPush(id, pushMessage{Service: service, Body: append([]byte(nil), body...), WaitMS: s.timings.pushAck.Milliseconds()}, done)
	case outcome == pushNotConnected:
		s.countPush(outcome)
		fallthrough
	default:
		done(linkResult(outcome))
	}
}

// forwardPush sends a message on, one hop, in a goroutine of its own.
func (s *Server) forwardPush(id wire.ClientID, m pushMessage, done func(link.PushResult)) {
	if !s.peers.take() {
		s.countPush(pushQueueFull)
		done(link.PushQueueFull)
		return
	}
	if !s.begin() {
		s.peers.give()
		done(link.PushNotConnected)
		return
	}
	go func() { // ends with the call, which has a deadline
		defer s.work.Done()
		defer s.peers.give()
		done(linkResult(s.pushElsewhere(s.ctx, id, m)))
	}()
}

// pushElsewhere finds the gateway that has the device and pushes through it. That one counts what became of the message;
// if it did not answer, it is counted here. The caller has one of the places of peers.
func (s *Server) pushElsewhere(ctx context.Context, id wire.ClientID, m pushMessage) pushOutcome {
	outcome := pushNotConnected
	node, err := s.locate(ctx, id)
	switch {
	case err == nil:
		outcome, err = s.peers.push(ctx, node, id, m)
	case !errors.Is(err, registry.ErrNotConnected):
		outcome = pushUnavailable
	}
	if err != nil && (outcome != pushNoAck || ctx.Err() == nil) { // who gave up waiting lost nothing
		s.log.Debug("a push did not reach a device's gateway", zap.Error(err))
		s.countPush(outcome)
	}
	return outcome
}

// linkResult is an outcome as backends are told.
func linkResult(o pushOutcome) link.PushResult {
	switch o {
	case pushAcked:
		return link.PushAcknowledged
	case pushQueueFull:
		return link.PushQueueFull
	case pushNoAck:
		return link.PushTimedOut
	}
	// pushUnavailable, too: the backend then asks its other gateways, which finds the device without Redis.
	return link.PushNotConnected
}
