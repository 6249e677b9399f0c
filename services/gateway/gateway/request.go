package gateway

import (
	"errors"
	"sync"
	"time"

	"github.com/goshield/goshield/internal/transcode"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/backend"
)

// router sends requests to backends; see package backend.
type router interface {
	Send(req backend.Request, w backend.Waiter, tag uint32) backend.Handle
}

// requests keeps decoded requests that nobody uses.
type requests struct{ pool sync.Pool }

func (p *requests) get() *wire.Request {
	if r, ok := p.pool.Get().(*wire.Request); ok {
		return r
	}
	return new(wire.Request)
}

func (p *requests) put(r *wire.Request) {
	r.Body = nil // it aliases a session's reading buffer
	p.pool.Put(r)
}

// decode parses a frame's payload.
func (s *session) decode(f wire.Frame, m wire.Message) *wire.Error {
	err := wire.Unmarshal(f.Version, f.Payload, m)
	if err == nil {
		return nil
	}
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	return wire.Errorf(wire.CodeBadFrame, "%s does not parse", f.Type)
}

// handleRequest takes a REQUEST to its backend.
func (s *session) handleRequest(f wire.Frame) bool {
	req := s.srv.requests.get()
	defer s.srv.requests.put(req)
	started := s.srv.now()
	if e := s.decode(f, req); e != nil {
		return s.refuse(e)
	}
	service := s.srv.settings.Load().service(req.Service)
	if ok, goOn := s.admit(len(f.Payload), &req.ID); !ok {
		service.fail(wire.CodeRateLimited)
		return goOn
	}
	if _, refused := s.checkToken(req.Token); refused != nil {
		return s.refuse(refused)
	}
	if s.other != nil && s.json && !s.jsonBody(service, req) {
		return true
	}
	body, bodyIsJSON, maxReply := req.Body, s.json, s.maxReply(req.ID)
	if service.body != nil {
		var err error
		if body, bodyIsJSON, err = service.body.Request(body, s.json); err != nil {
			s.refuseBody(service, req.ID, err.Error())
			return true
		}
		if bodyIsJSON != s.json {
			maxReply = transcode.MaxBody // what becomes of it is looked at
		}
	}
	if !s.withinService(service, req.ID) {
		return true
	}
	if taken, goOn := s.enlist(req.ID, inflight{started: started, metrics: service}); !taken {
		return goOn
	}
	handle := s.srv.router.Send(backend.Request{
		ClientID: s.client, Service: req.Service, Body: body, JSON: bodyIsJSON, MaxReply: maxReply,
	}, s, req.ID)
	if !s.keepHandle(req.ID, handle) {
		handle.Cancel()
	}
	return true
}

// jsonBody sees to it that a body which did not come in JSON is some, or refuses the request.
func (s *session) jsonBody(service *serviceMetrics, req *wire.Request) bool {
	if len(req.Body) == 0 {
		req.Body = []byte("null")
	}
	if wire.ValidJSON(req.Body) {
		return true
	}
	s.refuseBody(service, req.ID, "the body is not JSON")
	return false
}

// refuseBody answers a request whose body does not fit. The connection goes on.
func (s *session) refuseBody(service *serviceMetrics, id uint32, why string) {
	service.fail(wire.CodeBadFrame)
	s.tell(&wire.Error{Code: wire.CodeBadFrame, Message: why, ID: id, HasID: true})
}

// keepHandle notes how to give up a request, which may have been answered already; false if the session has
// closed.
func (s *session) keepHandle(id uint32, h backend.Handle) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, waiting := s.inflight[id]; waiting {
		r.handle = h
		s.inflight[id] = r
	}
	return s.state <= stateOpen
}

// maxReply is the longest body whose RESPONSE fits the device's longest frame.
func (s *session) maxReply(id uint32) int {
	const envelope = len(`{"id":,"body":}`)
	digits := 1
	for ; id >= 10; id /= 10 {
		digits++
	}
	return s.told.doc.Frame.MaxBytes - envelope - digits
}

// enlist notes a request as in flight. If it is not to be sent, goOn tells whether the session goes on.
func (s *session) enlist(id uint32, r inflight) (taken, goOn bool) {
	taken, goOn, twice := s.tryEnlist(id, r)
	if twice {
		return false, s.refuse(wire.Errorf(wire.CodeBadFrame, "request id %d is in flight already", id))
	}
	return taken, goOn
}

// tryEnlist is enlist's part under the lock.
func (s *session) tryEnlist(id uint32, r inflight) (taken, goOn, twice bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen {
		return false, false, false
	}
	if s.leaving || (s.goneAt != 0 && r.started >= s.goneAt) {
		r.metrics.fail(wire.CodeShuttingDown)
		s.send(&wire.Error{Code: wire.CodeShuttingDown, Message: "this gateway was to be left by now", ID: id, HasID: true})
		s.startFlush()
		return false, true, false
	}
	if _, twice = s.inflight[id]; twice {
		return false, false, true
	}
	if s.inflight == nil {
		s.inflight = make(map[uint32]inflight)
	}
	s.inflight[id] = r
	return true, true, false
}

// Done implements backend.Waiter: the answer to a request joins the outbound queue.
func (s *session) Done(tag uint32, r backend.Reply) {
	defer s.recoverFault() // the link is other devices', too
	req, waiting, left := s.answer(tag, s.converted(tag, &r))
	if !waiting {
		return // the session closed
	}
	if r.Err == nil {
		req.metrics.ok.Inc()
	} else {
		req.metrics.fail(r.Err.Code)
	}
	req.metrics.duration.Observe(time.Duration(s.srv.now() - req.started).Seconds())
	if left {
		s.end(closedDrained, nil)
	}
}

// converted makes the service's answer one for the device, or an error.
func (s *session) converted(tag uint32, r *backend.Reply) *backend.Reply {
	s.mu.Lock()
	req, waiting := s.inflight[tag]
	s.mu.Unlock()
	if !waiting || r.Err != nil || req.metrics.body == nil {
		return r
	}
	body, err := req.metrics.body.Response(r.Body, s.json)
	switch most := s.maxReply(tag); {
	case err != nil:
		return &backend.Reply{Err: wire.Errorf(wire.CodeBackendError, "the service's answer cannot be converted: %s", err)}
	case len(body) > most:
		return &backend.Reply{Err: wire.Errorf(wire.CodeBackendError, "the service's answer becomes %d bytes long, over the limit of %d", len(body), most)}
	}
	return &backend.Reply{Body: body}
}

// answer queues the answer to a request, if it is in flight. left tells that the session was to go when its last
// request had been answered, which this was.
func (s *session) answer(tag uint32, r *backend.Reply) (req inflight, waiting, left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	req, waiting = s.inflight[tag]
	if !waiting {
		return req, false, false
	}
	delete(s.inflight, tag)
	if r.Err == nil {
		s.response = wire.Response{ID: tag, Body: r.Body}
		s.send(&s.response)
		s.response.Body = nil
	} else {
		e := *r.Err // shared
		e.ID, e.HasID, e.Close = tag, true, false
		s.send(&e)
	}
	s.startFlush()
	if s.stopped != 0 {
		s.changed.Broadcast() // the reader may wait for room
	}
	return req, true, s.leaving && len(s.inflight) == 0
}
