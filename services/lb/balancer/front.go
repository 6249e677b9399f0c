package balancer

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/health"
	"github.com/goshield/goshield/services/lb/relay"
)

// front places the connections of one listener. It does not change: a listener that is
// configured anew gets another one.
type front struct {
	// Static after construction.
	frontSpec
	pool      *pool
	gate      *gate
	balancer  *balance.Balancer
	level     *balance.Balancer // by least connections: in force while the pool is levelled
	metrics   *metrics
	log       *zap.Logger
	closeAddr func(netip.AddrPort) // resets what is relayed to an address

	open atomic.Int64 // connections admitted and not closed yet

	// routes says what to do with a target that the balancer picked; the map
	// never changes once it is stored. Written under pool.mu.
	routes atomic.Pointer[map[*balance.Target]*route]
}

// frontSpec is what the configuration says of a front.
type frontSpec struct {
	name           string
	port           uint16 // at the upstream; 0: its own
	algorithm      string
	ejectAfter     int
	connectTimeout time.Duration
}

// route is the way from one listener to one upstream.
type route struct {
	// Static after construction.
	upstream *upstream
	addr     netip.AddrPort // to connect to
	ejector  *health.Ejector
	*series
}

func (s *Server) newFront(spec frontSpec, p *pool) *front {
	b, _ := balance.New(spec.algorithm) // validated
	level, _ := balance.New(balance.LeastConnections)
	return &front{
		frontSpec: spec,
		pool:      p,
		gate:      s.gate,
		balancer:  b,
		level:     level,
		metrics:   s.metrics,
		log:       s.log,
		closeAddr: s.engine.CloseUpstream,
	}
}

func (f *front) newRoute(u *upstream) *route {
	addr := u.addr
	if f.port != 0 {
		addr = netip.AddrPortFrom(addr.Addr(), f.port)
	}
	return &route{
		upstream: u,
		addr:     addr,
		series:   f.metrics.series(f.name, u.name),
		ejector: health.NewEjector(f.ejectAfter, func(ejected bool, reason string) {
			fields := []zap.Field{zap.String("listener", f.name), zap.String("upstream", u.name), zap.String("reason", reason)}
			if ejected {
				f.log.Warn("upstream ejected", fields...)
			} else {
				f.log.Info("upstream admitted again", fields...)
			}
			f.pool.poke()
		}),
	}
}

func (f *front) route(u *upstream) *route {
	if routes := f.routes.Load(); routes != nil {
		return (*routes)[u.target]
	}
	return nil
}

// offer takes all upstreams that are known and those of them that may get
// connections. Those that are ejected get none, unless that were all. pool.mu is
// held.
func (f *front) offer(known map[netip.AddrPort]*upstream, offered []*upstream) {
	routes := make(map[*balance.Target]*route, len(known))
	for _, u := range known {
		r := f.route(u)
		if r == nil {
			r = f.newRoute(u)
		}
		routes[u.target] = r
		r.ejected.Set(boolFloat(r.ejector.Ejected()))
	}
	var targets, all []*balance.Target
	for _, u := range offered {
		all = append(all, u.target)
		if !routes[u.target].ejector.Ejected() {
			targets = append(targets, u.target)
		}
	}
	if len(targets) == 0 {
		targets = all
	}
	f.routes.Store(&routes)
	f.balancer.Set(targets)
	f.level.Set(targets)
}

// picker is what picks the upstream of the next connection.
func (f *front) picker() *balance.Balancer {
	if f.pool.levelling.Load() {
		return f.level
	}
	return f.balancer
}

func boolFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// remove forgets an upstream, and returns what stops its ejector. pool.mu is
// held.
func (f *front) remove(u *upstream) (stop func()) {
	r := f.route(u)
	if r == nil {
		return func() {}
	}
	routes := make(map[*balance.Target]*route)
	for t, other := range *f.routes.Load() {
		if other != r {
			routes[t] = other
		}
	}
	f.routes.Store(&routes)
	f.metrics.release(f.name, u.name)
	return r.ejector.Stop
}

// ejectors are those of all its routes: what has to be stopped when no connection comes any more.
func (f *front) ejectors() (stops []func()) {
	for _, r := range *f.routes.Load() {
		stops = append(stops, r.ejector.Stop)
	}
	return stops
}

// pardon ends an ejection early: health checks saw the upstream fall and rise.
func (f *front) pardon(u *upstream) {
	if r := f.route(u); r != nil {
		r.ejector.Pardon("health checks succeed again")
	}
}

func (f *front) isEjected(u *upstream) bool {
	r := f.route(u)
	return r != nil && r.ejector.Ejected()
}

func (f *front) closeUpstream(u *upstream) {
	if r := f.route(u); r != nil {
		f.closeAddr(r.addr)
	}
}

// admit is relay.Director's Admit.
func (f *front) admit(client netip.AddrPort) relay.Placement {
	counted, why := f.gate.enter(client.Addr())
	if why != "" {
		f.metrics.rejected[why].Inc()
		return nil
	}
	f.open.Add(1)
	return &placement{front: f, client: client.Addr(), counted: counted}
}

// maxAttempts bounds how many upstreams one connection tries.
const maxAttempts = 3

// placement follows one connection. It implements relay.Placement.
type placement struct {
	front     *front
	client    netip.Addr
	counted   bool                         // for its address, by the gate
	route     *route                       // the one being tried, or connected to
	tried     [maxAttempts]*balance.Target // in order
	attempts  int
	began     time.Time // the present attempt
	connected bool
}

// Next implements relay.Placement.
func (p *placement) Next(failed error) (netip.AddrPort, bool) {
	f := p.front
	if failed != nil {
		r := p.route
		p.leave()
		if relay.Local(failed) {
			f.metrics.rejected[shortOfResources].Inc()
			f.log.Warn("cannot connect to any upstream", zap.Error(failed))
			return netip.AddrPort{}, false
		}
		// One that refuses at once must not pass for the fastest.
		r.upstream.target.Observe(max(time.Since(p.began), f.connectTimeout))
		r.ejector.Failed(failed)
	}
	for p.attempts < maxAttempts {
		var skip func(*balance.Target) bool
		if p.attempts > 0 {
			skip = p.wasTried
		}
		t := f.picker().Pick(keyOf(p.client), skip)
		if t == nil {
			break
		}
		p.tried[p.attempts] = t
		p.attempts++
		if r := (*f.routes.Load())[t]; r != nil { // else it was forgotten a moment ago
			p.route, p.began = r, time.Now()
			t.Acquire()
			return r.addr, true
		}
	}
	if p.attempts == 0 {
		f.metrics.rejected[noUpstream].Inc()
	} else {
		f.metrics.rejected[connectFailed].Inc()
	}
	return netip.AddrPort{}, false
}

func (p *placement) wasTried(t *balance.Target) bool {
	for _, tried := range p.tried[:p.attempts] {
		if tried == t {
			return true
		}
	}
	return false
}

// keyOf tells clients apart for source_hash, the same way in every balancer.
func keyOf(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])*31 + binary.BigEndian.Uint64(b[8:])
}

// Observe implements relay.Placement.
func (p *placement) Observe(e relay.Event, took time.Duration) {
	p.route.upstream.target.Observe(took)
	if e == relay.Connected {
		p.connected = true
		p.route.ejector.Succeeded()
		p.route.connections.Inc()
		p.route.total.Inc()
		p.front.metrics.connect.Observe(took.Seconds())
	}
}

// leave undoes what was counted of the present route, if there is one.
func (p *placement) leave() {
	if p.route == nil {
		return
	}
	if p.connected {
		p.route.connections.Dec()
	}
	p.route.upstream.target.Release()
	p.route, p.connected = nil, false
}

// Closed implements relay.Placement.
func (p *placement) Closed(r relay.Result) {
	if p.connected {
		p.front.metrics.closed[r.Reason].Inc()
	}
	p.leave()
	p.front.gate.leave(p.client, p.counted)
	p.front.open.Add(-1)
}
