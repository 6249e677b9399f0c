package backend

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// rules is a service's configuration, checked, and the balancer that goes with it.
type rules struct {
	dynamic.Service // endpoints sorted, each once
	balancer        *balance.Balancer
}

// demand is what an endpoint of the service asks of its pool.
func (c *rules) demand() demand { return demand{links: c.Links, timeout: c.Timeout.D()} }

// selection is what a request needs to be sent. It never changes, but for the
// balancer's set.
type selection struct {
	balancer   *balance.Balancer
	endpoints  map[*balance.Target]*endpoint // every one the balancer may pick
	timeout    time.Duration
	idempotent bool
	failures   failures
}

// service is one route: endpoints, and the rules by which requests are sent to them.
type service struct {
	router *Router // static after construction
	name   string
	log    *zap.Logger

	selection atomic.Pointer[selection] // what send reads
	budget    budget
	observes  atomic.Bool     // response times matter to the balancer
	replies   *balance.Target // how long answers take that are no errors, if so; it is never picked

	mu        sync.Mutex
	rules     rules
	endpoints []*endpoint // those that leave included
	resolver  *resolver   // nil: endpoints are listed
	leaving   bool        // no longer in the table
	down      bool        // was said in the log
}

func newService(r *Router, name string) *service {
	s := &service{
		router: r, name: name, log: r.cfg.Log.With(zap.String("service", name)),
		replies: balance.NewTarget(name, 1),
		down:    true, // until the first link: no news
	}
	s.budget.tenths.Store(firstRetries * retryCost)
	r.metrics.addService(name)
	return s
}

// apply puts new rules in force. What is the same as before is left alone.
func (s *service) apply(next rules) {
	s.mu.Lock()
	old := s.rules
	if old.balancer != nil && old.Algorithm == next.Algorithm {
		next.balancer = old.balancer // it goes on where it is
	}
	s.rules = next
	var stopped *resolver
	if s.resolver != nil && (s.resolver.name != next.DNS || kindOf(&old.Service) != kindOf(&next.Service)) {
		stopped, s.resolver = s.resolver, nil
	}
	if next.DNS == "" {
		s.reconcile(next.Endpoints)
	} else if s.resolver == nil {
		s.resolver = startResolver(s, next.DNS)
	}
	for _, e := range s.endpoints {
		if !e.leaving {
			e.pool.want(e, next.demand())
		}
	}
	s.choose()
	s.mu.Unlock()
	if stopped != nil {
		stopped.stop()
	}
}

// resolved takes a look-up's addresses, sorted, each once.
func (s *service) resolved(by *resolver, addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resolver == by && !s.leaving { // else it was stopped meanwhile
		s.reconcile(addresses)
		s.choose()
	}
}

// reconcile makes the endpoints those of the list. One that is no longer in it
// serves on until another is up, or for a short time: so a list that changes
// altogether leaves no gap. mu is held.
func (s *service) reconcile(addresses []string) {
	wanted := make([]destination, len(addresses))
	for i, address := range addresses {
		wanted[i] = s.destination(address)
		at := slices.IndexFunc(s.endpoints, func(e *endpoint) bool { return e.pool.to == wanted[i] && !e.ended })
		if at >= 0 {
			s.endpoints[at].leaving = false
		} else {
			s.endpoints = append(s.endpoints, newEndpoint(s, wanted[i]))
		}
	}
	now := time.Now()
	for _, e := range s.endpoints {
		if !e.leaving && !slices.Contains(wanted, e.pool.to) {
			e.leaving, e.leftAt = true, now
		}
	}
}

// refresh works out anew which endpoints requests may go to.
func (s *service) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.choose()
}

// choose is refresh with mu held. Requests go to endpoints with a link that are not
// ejected; without any, to the ejected ones (never are all out); without those,
// to those that are leaving.
func (s *service) choose() {
	var well, ejected, leaving []*balance.Target
	known := make(map[*balance.Target]*endpoint, len(s.endpoints))
	for _, e := range s.endpoints {
		known[e.target] = e
		switch {
		case e.ended || !e.pool.connected():
		case e.leaving:
			leaving = append(leaving, e.target)
		case e.ejector.Ejected():
			ejected = append(ejected, e.target)
		default:
			well = append(well, e.target)
		}
	}
	chosen := well
	if len(chosen) == 0 {
		chosen = ejected
	}
	if len(chosen) == 0 {
		chosen = leaving
	}
	for _, e := range s.endpoints {
		e.up.Store(slices.Contains(chosen, e.target))
	}
	s.observes.Store(s.rules.Algorithm == balance.LeastResponseTime)
	s.selection.Store(&selection{
		balancer:   s.rules.balancer,
		endpoints:  known,
		timeout:    s.rules.Timeout.D(),
		idempotent: s.rules.Idempotent,
		failures:   newFailures(s.name, s.rules),
	})
	s.rules.balancer.Set(chosen)
	if down := len(chosen) == 0; down != s.down && !s.leaving {
		s.down = down
		if down {
			s.log.Warn("no backend of the service can be reached")
		} else {
			s.log.Info("the service has a backend")
		}
	}
}

// send places a request on a link, or tells why it cannot.
func (s *service) send(req *Request, w Waiter, tag uint32) Handle {
	sel := s.selection.Load()
	now := s.router.clock()
	q := request{
		waiter:   w,
		sent:     now,
		deadline: now + int64(sel.timeout),
		maxReply: req.MaxReply,
		tag:      tag,
		json:     req.JSON,
	}
	if sel.idempotent {
		s.budget.earn()
		q.retry = &retry{waiter: w, req: *req}
		q.retry.req.Body = append([]byte(nil), req.Body...)
	}
	l, stream, failure := s.place(sel, req, q, nil)
	if failure != nil {
		q.done(Reply{Err: failure})
		return Handle{}
	}
	if q.retry != nil {
		return Handle{retry: q.retry}
	}
	return Handle{link: l, stream: stream}
}

// maxTries is how many endpoints a request is offered to.
const maxTries = 4

// place finds an endpoint other than not that takes the request. The error is for the
// device.
func (s *service) place(sel *selection, req *Request, q request, not *endpoint) (*liveLink, uint64, *wire.Error) {
	var refused [maxTries + 1]*endpoint
	refused[maxTries] = not
	failure := sel.failures.unavailable
	for i := range maxTries {
		e := sel.pick(req, &refused)
		if newer := s.selection.Load(); e == nil && newer != sel {
			sel = newer // the endpoints have changed while we looked
			e = sel.pick(req, &refused)
		}
		if e == nil {
			break
		}
		q.endpoint = e
		l, stream, err := e.pool.send(req, q)
		if err == nil {
			return l, stream, nil
		}
		refused[i] = e
		var mistake *wire.Error
		switch {
		case errors.As(err, &mistake): // frame_too_large
			return nil, 0, sel.failures.tooLarge
		case errors.Is(err, link.ErrTooManyStreams):
			s.router.metrics.refusals.WithLabelValues(s.name, e.address(), refusedInFlight).Inc()
			failure = sel.failures.busy
		case errors.Is(err, link.ErrBackpressure):
			s.router.metrics.refusals.WithLabelValues(s.name, e.address(), refusedQueue).Inc()
			failure = sel.failures.busy
		}
	}
	return nil, 0, failure
}

// pick returns an endpoint that is not in refused, or nil. One on probation gets a
// request only while it has none, or if there is no other.
func (sel *selection) pick(req *Request, refused *[maxTries + 1]*endpoint) *endpoint {
	key := uint64(req.ClientID[0])<<8 | uint64(req.ClientID[1]) // of no account but to source_hash
	t := sel.balancer.Pick(key, nil)
	if t == nil {
		return nil
	}
	if e := sel.endpoints[t]; e != nil && !slices.Contains(refused[:], e) && !e.reserved() {
		return e
	}
	t = sel.balancer.Pick(key, func(t *balance.Target) bool {
		e := sel.endpoints[t]
		return e == nil || slices.Contains(refused[:], e) || e.reserved()
	})
	if t == nil {
		t = sel.balancer.Pick(key, func(t *balance.Target) bool {
			e := sel.endpoints[t]
			return e == nil || slices.Contains(refused[:], e)
		})
	}
	return sel.endpoints[t]
}

// sendAgain places a request of an idempotent service once more, after it was lost at
// its endpoint. false: it may not be, or cannot.
func (s *service) sendAgain(q request) bool {
	sel := s.selection.Load()
	if q.retry == nil || q.deadline <= s.router.clock() || !q.retry.begin() {
		return false
	}
	if !s.budget.spend() {
		s.router.metrics.retries.WithLabelValues(s.name, "over_budget").Inc()
		return false
	}
	if _, _, failure := s.place(sel, &q.retry.req, q, q.endpoint); failure != nil {
		s.router.metrics.retries.WithLabelValues(s.name, "no_endpoint").Inc()
		return false
	}
	s.router.metrics.retries.WithLabelValues(s.name, "sent").Inc()
	return true
}

// tend lets endpoints go. It ends when the service has left the table and has nothing in
// flight any more.
func (s *service) tend() {
	defer s.router.left(s)
	ticker := time.NewTicker(s.router.timing.maxSweepTick)
	defer ticker.Stop()
	for range ticker.C {
		gone, last := s.release()
		for _, e := range gone {
			e.ejector.Stop()
			s.router.metrics.forget(e)
		}
		if last {
			return
		}
	}
}

// release ends endpoints that are leaving and no longer needed, and takes out
// those that are gone. last: there is no more, of a service that has left.
func (s *service) release() (gone []*endpoint, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	successor := slices.ContainsFunc(s.endpoints, func(e *endpoint) bool { return !e.leaving && e.pool.connected() })
	changed := false
	s.endpoints = slices.DeleteFunc(s.endpoints, func(e *endpoint) bool {
		if e.leaving && !e.ended && (successor || s.leaving || time.Since(e.leftAt) >= s.router.timing.handover) {
			e.end()
			changed = true
		}
		if e.ended && e.gone() {
			gone = append(gone, e)
			return true
		}
		return false
	})
	if changed {
		s.choose()
	}
	return gone, s.leaving && len(s.endpoints) == 0
}

// leave takes the service out of work: it gets no new requests, and ends when those in
// flight have been answered.
func (s *service) leave() {
	s.mu.Lock()
	stopped := s.resolver
	s.resolver, s.leaving = nil, true
	for _, e := range s.endpoints {
		e.leaving = true
		if !e.ended {
			e.end()
		}
	}
	s.choose()
	s.mu.Unlock()
	if stopped != nil {
		stopped.stop()
	}
}

// destination is where the links of an address lead. A certificate must be for the name
// that the address was found by. mu is held.
func (s *service) destination(address string) destination {
	to := destination{address: address, kind: kindOf(&s.rules.Service)}
	switch cfg := &s.router.cfg; {
	case cfg.TLS == nil:
	case cfg.ServerName != "":
		to.serverName = cfg.ServerName
	case s.rules.DNS != "":
		to.serverName = hostOf(s.rules.DNS)
	default:
		to.serverName = hostOf(address)
	}
	return to
}

// reply makes an answer's body a reply, if the device can take it.
func (s *service) reply(q *request, body []byte) Reply {
	switch {
	case q.maxReply > 0 && len(body) > q.maxReply:
		return Reply{Err: wire.Errorf(wire.CodeBackendError, "the answer of service %s is %d bytes long, over the limit of %d", s.name, len(body), q.maxReply)}
	case q.json && !wire.ValidJSON(body):
		return Reply{Err: wire.Errorf(wire.CodeBackendError, "the answer of service %s is not JSON", s.name)}
	}
	return Reply{Body: body}
}
