package balancer

import (
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/health"
)

// pool is a set of upstreams, discovered and checked, for the listeners that
// share it. It works out which of them may get connections whenever that
// changes, and hands the result to its fronts, whose paths read it without a lock.
//
// Lock order: pool.mu, then what is in health, balance and metrics. Monitors and ejectors
// call into the pool and are stopped outside pool.mu.
type pool struct {
	// Static after construction.
	log     *zap.Logger
	metrics *metrics
	health  *admin.Health
	name    string // in health: "upstreams"
	dnsName string // in health: "dns"
	lookup  lookupFunc
	admin   map[string]adminState // of upstreams, by name, when they join first
	poked   chan struct{}

	levelling atomic.Bool // fronts place by least connections

	// Guarded by Server.life.
	discovery     *discovery // nil: of none
	stopDiscovery func()     // and wait for it; nil without discovery
	cancel        context.CancelFunc
	goroutines    sync.WaitGroup

	mu        sync.Mutex
	spec      poolSpec
	fronts    []*front
	leaving   []*front // those that get no connections any more, until their last one has ended
	upstreams map[netip.AddrPort]*upstream
	retired   bool // no listener uses it
	closed    bool
}

// poolSpec is what the configuration says of a pool.
type poolSpec struct {
	upstreams   Upstreams
	health      Health
	proxyHeader bool
	slowStart   time.Duration
}

// poolSpec is what holds for the upstreams u.
func (c Config) poolSpec(u Upstreams) poolSpec {
	spec := poolSpec{upstreams: u, health: c.Health, proxyHeader: c.ProxyProtocol, slowStart: c.Health.SlowStart}
	if c.Algorithm == balance.SourceHash {
		spec.slowStart = 0 // it would move each client twice
	}
	return spec
}

// newPool makes the pool of one listener, or the one that others share (listener ""). It is to
// be started.
func (s *Server) newPool(listener string) *pool {
	return &pool{
		log:       s.log,
		metrics:   s.metrics,
		health:    s.health,
		name:      poolDependency(listener),
		dnsName:   dnsDependency(listener),
		lookup:    s.lookup,
		admin:     s.operator,
		upstreams: map[netip.AddrPort]*upstream{},
		poked:     make(chan struct{}, 1),
	}
}

// start discovers once, for at most a second or so, and goes on by itself until
// close.
func (p *pool) start(spec poolSpec) {
	p.mu.Lock()
	p.spec = spec
	p.mu.Unlock()
	p.discover()
	p.mu.Lock()
	p.offer() // also when there was nothing to discover
	p.mu.Unlock()
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	p.goroutines.Go(func() { p.tend(ctx) })
}

// set changes what is configured. What is known of the upstreams stays: their health, what an
// operator wants of them, their connections.
func (p *pool) set(spec poolSpec) {
	p.mu.Lock()
	was, retired := p.spec, p.retired
	p.spec, p.retired = spec, false
	if was.health != spec.health || was.proxyHeader != spec.proxyHeader {
		for _, u := range p.upstreams {
			if u.listed {
				u.monitor.Set(p.probe(u), spec.health.rule())
			}
		}
	}
	p.offer()
	p.mu.Unlock()
	p.poke() // the shares may grow at another pace
	if retired || !reflect.DeepEqual(was.upstreams, spec.upstreams) {
		p.discover()
	}
}

// discover begins to look for the upstreams that are configured, in place of what it did before,
// and returns when it has looked once.
func (p *pool) discover() {
	if p.stopDiscovery != nil {
		p.stopDiscovery()
	}
	d := newDiscovery(p.spec.upstreams, p.lookup, p.apply, p.resolved)
	d.inherit(p.discovery)
	p.discovery = d
	ctx, cancel := context.WithCancel(context.Background())
	d.refresh(ctx)
	var running sync.WaitGroup
	running.Go(func() { d.run(ctx) })
	p.stopDiscovery = func() { cancel(); running.Wait() }
}

// retire takes all upstreams away: no listener uses the pool any more. The connections that they
// have go on. set brings it back.
func (p *pool) retire() {
	p.stopDiscovery()
	p.discovery, p.stopDiscovery = nil, nil
	p.mu.Lock()
	p.retired = true
	p.mu.Unlock()
	p.apply(nil)
	p.health.Forget(p.name)
	p.health.Forget(p.dnsName)
}

// close ends discovery, probes and ejections, and waits for them.
func (p *pool) close() {
	if p.stopDiscovery != nil {
		p.stopDiscovery()
	}
	p.cancel()
	p.goroutines.Wait()
	p.mu.Lock()
	p.closed = true
	var stops []func()
	for _, u := range p.upstreams {
		stops = append(stops, p.remove(u)...)
	}
	p.mu.Unlock()
	runAll(stops)
}

// join begins to tell a front which upstreams may get connections.
func (p *pool) join(f *front) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fronts = append(p.fronts, f)
	p.offer()
}

// leave tells a front nothing more. It is forgotten when its last connection has ended.
func (p *pool) leave(f *front) {
	p.mu.Lock()
	p.fronts = slices.DeleteFunc(p.fronts, func(other *front) bool { return other == f })
	p.leaving = append(p.leaving, f)
	stops := f.ejectors()
	p.mu.Unlock()
	runAll(stops)
}

// everyFront is those that get connections, and those that still have some. p.mu is held.
func (p *pool) everyFront() []*front { return slices.Concat(p.fronts, p.leaving) }

func runAll(stops []func()) {
	for _, stop := range stops {
		stop()
	}
}

// tend does what time brings until ctx ends: shares that grow, upstreams that left
// and whose last connection has ended, ejections.
func (p *pool) tend(ctx context.Context) {
	for {
		timer := time.NewTimer(p.tickEvery())
		select {
		case <-timer.C:
			p.tick()
		case <-p.poked:
			p.mu.Lock()
			p.offer()
			p.mu.Unlock()
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// tickEvery is often enough for shares to grow in small steps.
func (p *pool) tickEvery() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.spec.slowStart == 0 {
		return time.Second
	}
	return min(time.Second, max(p.spec.slowStart/20, 10*time.Millisecond))
}

func (p *pool) tick() {
	p.mu.Lock()
	var stops []func()
	growing := false
	now := time.Now()
	for _, u := range p.upstreams {
		if !u.listed && u.target.InFlight() == 0 {
			stops = append(stops, p.remove(u)...)
		}
		before := u.target.Share()
		u.target.SetShare(u.share(now, p.spec.slowStart))
		growing = growing || u.target.Share() != before
	}
	p.leaving = slices.DeleteFunc(p.leaving, func(f *front) bool {
		if f.open.Load() > 0 {
			return false
		}
		for _, u := range p.upstreams {
			f.remove(u) // its ejectors were stopped when it left
		}
		return true
	})
	if growing {
		p.offer()
	}
	p.mu.Unlock()
	runAll(stops)
}

// resolved hears how each round of discovery went.
func (p *pool) resolved(err error) {
	wrong := ""
	if err != nil {
		wrong = err.Error()
	}
	if !p.health.SetDegraded(p.dnsName, wrong) {
		return
	}
	if err != nil {
		p.log.Warn("cannot resolve, keeping the last answer", zap.Error(err))
	} else {
		p.log.Info("resolving works again")
	}
}

// apply takes a new list of upstreams. Those that are not in it get no new
// connections; they are forgotten when their last one has ended.
func (p *pool) apply(list []candidate) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	var stops []func()
	for _, u := range p.upstreams {
		if u.listed && !slices.ContainsFunc(list, func(c candidate) bool { return c.addr == u.addr }) {
			p.log.Info("upstream left", zap.String("upstream", u.name), zap.Int64("connections", u.target.InFlight()))
			stops = append(stops, u.monitor.Stop)
			u.listed, u.monitor, u.upSince = false, nil, time.Time{}
			p.metrics.up.WithLabelValues(u.name).Set(0)
		}
	}
	for _, c := range list {
		u, ok := p.upstreams[c.addr]
		if !ok {
			u = newUpstream(c)
			if state, ok := p.admin[u.name]; ok {
				u.admin = state
			}
			p.upstreams[c.addr] = u
		}
		u.target.SetWeight(c.weight)
		if !u.listed {
			p.log.Info("upstream joined", zap.String("upstream", u.name), zap.Int("weight", c.weight))
			p.watch(u)
		}
	}
	p.offer()
	p.mu.Unlock()
	runAll(stops)
}

// watch starts checking an upstream that is listed from now on. p.mu is held.
func (p *pool) watch(u *upstream) {
	u.listed = true
	p.metrics.up.WithLabelValues(u.name).Set(0)
	u.watched++
	watch := u.watched
	u.monitor = health.Start(p.probe(u), p.spec.health.rule(), func(c health.Change) { p.judged(u, watch, c) })
}

// probe is how an upstream is checked now. p.mu is held.
func (p *pool) probe(u *upstream) health.Probe {
	probe, err := p.spec.health.probe(u.name, p.spec.proxyHeader)
	if err != nil { // a validated template fails for no address
		return func(context.Context) error { return err }
	}
	return probe
}

// judged runs on the goroutine of u's monitor, the one of that number.
func (p *pool) judged(u *upstream, watch int, c health.Change) {
	fields := []zap.Field{zap.String("upstream", u.name), zap.Stringer("was", c.From), zap.String("reason", c.Reason)}
	p.mu.Lock()
	if !u.listed || u.watched != watch || p.closed {
		p.mu.Unlock()
		return
	}
	if c.To == health.Up {
		u.upSince = time.Now()
		u.target.SetShare(u.share(u.upSince, p.spec.slowStart))
		p.metrics.up.WithLabelValues(u.name).Set(1)
		p.log.Info("upstream up", fields...)
	} else {
		u.upSince = time.Time{}
		p.metrics.up.WithLabelValues(u.name).Set(0)
		p.log.Warn("upstream down", fields...)
	}
	p.offer()
	fronts := slices.Clone(p.fronts)
	p.mu.Unlock()
	if c.To == health.Up {
		for _, f := range fronts {
			f.pardon(u)
		}
	}
}

// offer works out which upstreams may get connections and tells the fronts. With
// none healthy it offers them all: a check may be wrong, and there is nothing
// to lose. p.mu is held.
func (p *pool) offer() {
	var all, up []*upstream
	starting := false
	for _, u := range p.upstreams {
		if !u.eligible() {
			continue
		}
		all = append(all, u)
		if !u.upSince.IsZero() {
			up = append(up, u)
		}
		// One that is not down has not been judged yet, or is about to be told of as up.
		starting = starting || u.monitor.Status().State != health.Down
	}
	wrong := ""
	offered := up
	if len(up) == 0 {
		offered = all
		if len(all) == 0 {
			wrong = "there is none that could be tried"
		} else if !starting {
			wrong = "none is healthy: all are tried"
		}
	}
	if !p.retired && p.health.SetDegraded(p.name, wrong) {
		if wrong != "" {
			p.log.Error(p.name+": "+wrong, zap.Int("known", len(p.upstreams)))
		} else {
			p.log.Info(p.name+": at least one is healthy again", zap.Int("healthy", len(up)))
		}
	}
	for _, f := range p.fronts {
		f.offer(p.upstreams, offered)
	}
}

// poke hears from a front that an ejection began or ended. That is on the path of a
// connection: tend does the work.
func (p *pool) poke() {
	select {
	case p.poked <- struct{}{}:
	default:
	}
}

// remove forgets an upstream and returns what has to be stopped without the
// lock. p.mu is held.
func (p *pool) remove(u *upstream) (stops []func()) {
	delete(p.upstreams, u.addr)
	if u.monitor != nil {
		stops = append(stops, u.monitor.Stop)
	}
	for _, f := range p.everyFront() {
		stops = append(stops, f.remove(u))
	}
	p.metrics.up.DeleteLabelValues(u.name)
	return stops
}

// loads are those that may get connections, with what they carry.
func (p *pool) loads() []upstreamLoad {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []upstreamLoad
	for _, u := range p.upstreams {
		if u.eligible() && !u.upSince.IsZero() {
			list = append(list, upstreamLoad{u, u.target.InFlight(), float64(u.target.Weight()) * u.target.Share()})
		}
	}
	return list
}

// known is every upstream that gets connections, or has some.
func (p *pool) known() []*upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.upstreams))
}

// setAdmin does what an operator wants of an upstream and reports whether it is
// known.
func (p *pool) setAdmin(addr netip.AddrPort, state adminState) bool {
	p.mu.Lock()
	u, ok := p.upstreams[addr]
	if !ok {
		p.mu.Unlock()
		return false
	}
	was := u.admin
	u.admin = state
	p.offer()
	fronts := p.everyFront()
	p.mu.Unlock()
	if was != state {
		p.log.Info("upstream set by an operator", zap.String("upstream", u.name), zap.String("state", string(state)), zap.String("was", string(was)))
	}
	if state == down {
		for _, f := range fronts {
			f.closeUpstream(u)
		}
	}
	return true
}

// status lists the upstreams by address.
func (p *pool) status() []upstreamStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []upstreamStatus
	for _, u := range p.upstreams {
		s := upstreamStatus{
			Address:     u.name,
			Pool:        p.name,
			Weight:      u.target.Weight(),
			Share:       u.target.Share(),
			State:       u.admin,
			Health:      "left",
			Since:       u.joined,
			Connections: u.target.InFlight(),
			ResponseMs:  float64(u.target.Response()) / float64(time.Millisecond),
			EjectedFrom: []string{},
		}
		if u.monitor != nil {
			m := u.monitor.Status()
			s.Health, s.Reason, s.Since, s.ProbeMs = m.State.String(), m.Reason, m.Since, float64(m.Took)/float64(time.Millisecond)
		}
		for _, f := range p.fronts {
			if f.isEjected(u) {
				s.EjectedFrom = append(s.EjectedFrom, f.name)
			}
			if r := f.route(u); r != nil {
				s.Total += valueOf(r.total)
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b upstreamStatus) int { return strings.Compare(a.Address, b.Address) })
	return list
}
