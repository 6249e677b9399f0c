package backend

import (
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/health"
)

// endpoint is one address of a service: how it does with the service's requests. The
// links to it are its pool's.
type endpoint struct {
	service *service // static after construction
	pool    *pool
	target  *balance.Target // counts the service's requests, not those of others in the pool
	ejector *health.Ejector
	log     *zap.Logger

	up        atomic.Bool // requests may go here, as far as the service knows
	probation atomic.Bool // back from an ejection, nothing answered yet

	// Guarded by service.mu.
	leaving bool      // no longer in the service's list
	leftAt  time.Time // since when
	ended   bool      // has parted from its pool; nothing new is sent
}

// newEndpoint makes one with links; service.mu is held.
func newEndpoint(s *service, to destination) *endpoint {
	e := &endpoint{
		service: s,
		target:  balance.NewTarget(to.address, 1),
		log:     s.log.With(zap.String("endpoint", to.address)),
	}
	e.ejector = health.NewEjector(s.router.timing.ejectAfter, e.ejected)
	e.pool = s.router.join(e, to, s.rules.demand())
	s.router.metrics.addEndpoint(e)
	for _, l := range *e.pool.live.Load() {
		e.check(l.conn.Peer().Services) // those that open later check it themselves
	}
	return e
}

func (e *endpoint) address() string { return e.pool.to.address }

// check warns of a backend that says it answers for other services. It is used, for
// it will say so itself.
func (e *endpoint) check(services []string) {
	if len(services) > 0 && !slices.Contains(services, e.service.name) {
		e.log.Warn("the backend does not answer for this service", zap.Strings("it answers for", services))
	}
}

// ejected hears of each ejection and of its end.
func (e *endpoint) ejected(out bool, reason string) {
	if out {
		e.log.Warn("endpoint ejected", zap.String("reason", reason))
		e.service.router.metrics.ejections.WithLabelValues(e.service.name, e.address()).Inc()
	} else {
		e.log.Info("endpoint on probation", zap.String("reason", reason))
		e.probation.Store(true)
	}
	e.service.refresh()
}

// inFlight is how many requests of the service are at the endpoint.
func (e *endpoint) inFlight() int { return int(e.target.InFlight()) }

// reserved reports whether the endpoint is on probation and has the one request
// that shall show whether it is well.
func (e *endpoint) reserved() bool { return e.probation.Load() && e.target.InFlight() > 0 }

// answered notes that the endpoint has done what it was asked, and tells the balancer how long it took, if it wants to know.
func (e *endpoint) answered(q *request) {
	e.alive()
	if e.service.observes.Load() {
		took := time.Duration(e.service.router.clock() - q.sent)
		e.target.Observe(took)
		e.service.replies.Observe(took)
	}
}

// errorTimes is how much longer than the service's answers an error takes, to the balancer.
const errorTimes = 2

// erred notes that the endpoint has answered with an error. It is alive, and the request may be to blame, so that it is not ejected.
// But errors are quick: as what they take, an endpoint that has nothing else would pass for the fastest. As the
// whole timeout, a device that asks for nonsense would empty the endpoints that it reaches.
func (e *endpoint) erred(q *request) {
	e.alive()
	if !e.service.observes.Load() {
		return
	}
	if usual := e.service.replies.Response(); usual > 0 { // else nothing is known of how fast it could be
		e.target.Observe(max(time.Duration(e.service.router.clock()-q.sent), errorTimes*usual))
	}
}

func (e *endpoint) alive() {
	e.ejector.Succeeded()
	if e.probation.Load() {
		e.probation.Store(false)
	}
}

// failed notes that the endpoint did not do what it was asked. To the balancer that is as long as the
// request's timeout, however soon it came: one that refuses at once must not pass for the fastest.
func (e *endpoint) failed(q *request, why error) {
	e.ejector.Failed(why)
	if e.service.observes.Load() {
		e.target.Observe(time.Duration(max(e.service.router.clock(), q.deadline) - q.sent))
	}
}

// end parts from the pool, whose links go if nobody else wants them and what they have in
// flight is answered. service.mu is held.
func (e *endpoint) end() {
	e.ended = true
	e.pool.part(e)
}

// gone reports whether nothing of an ended endpoint is in flight any more.
func (e *endpoint) gone() bool { return e.target.InFlight() == 0 }
