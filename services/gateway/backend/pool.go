package backend

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/services/gateway/bridge"
)

// destination is where links lead, and how they are opened. Services share links
// only if all of it is the same.
type destination struct {
	address    string
	kind       kind
	serverName string // what the certificate must name; "" without TLS
}

// kind is what an endpoint speaks. One that is to speak something else is another
// endpoint.
type kind struct {
	protocol   string
	http2      bool
	healthPath string
}

func kindOf(cfg *dynamic.Service) kind {
	return kind{cfg.Protocol, cfg.HTTPVersion == "2", cfg.HealthPath}
}

// demand is what an endpoint asks of its pool.
type demand struct {
	links   int
	timeout time.Duration // of its service's requests
}

// pool is the links to one destination. Every endpoint that leads there is one of its users;
// it has as many links as the user that wants most. Without users it takes no more
// requests, and ends when those in flight are answered.
//
// What is in flight is bounded, whatever the backend does with its links: each has its own bound, and those that are leaving
// may keep as much as those that are not. See hasRoom.
//
// It knows nothing of who is well: that a backend answers one service says
// little of another, so each endpoint has an ejector of its own.
type pool struct {
	router *Router // static after construction
	to     destination
	log    *zap.Logger
	gone   *departing

	live    atomic.Pointer[[]*liveLink] // those that take requests; a slice never changes
	kept    atomic.Int32                // how many there shall be that take requests
	sharers atomic.Pointer[[]*endpoint] // the users; a slice never changes
	working atomic.Int32                // keepers and links that have not ended

	// Guarded by Router.poolsMu.
	users   map[*endpoint]demand
	keepers []context.CancelFunc

	mu  sync.Mutex
	all []*liveLink // until each has ended
}

// departing is the links to one destination that take no more requests and have something in flight. A pool shares it with those
// before it that still drain.
type departing struct {
	links atomic.Pointer[[]*liveLink] // a slice never changes
	mu    sync.Mutex                  // held to change it
}

func (d *departing) add(l *liveLink) {
	d.mu.Lock()
	defer d.mu.Unlock()
	links := append(slices.Clone(*d.links.Load()), l)
	d.links.Store(&links)
}

func (d *departing) drop(l *liveLink) {
	d.mu.Lock()
	defer d.mu.Unlock()
	links := without(*d.links.Load(), l)
	d.links.Store(&links)
}

// without is a copy of the links, but for one.
func without(links []*liveLink, l *liveLink) []*liveLink {
	return slices.DeleteFunc(slices.Clone(links), func(x *liveLink) bool { return x == l })
}

// departingFrom is what leaves a destination. poolsMu is held.
func (r *Router) departingFrom(to destination) *departing {
	for p := range r.pools {
		if p.to == to {
			return p.gone
		}
	}
	d := &departing{}
	d.links.Store(new([]*liveLink))
	return d
}

// join makes an endpoint a user of the pool that leads to a destination; the first one
// opens it.
func (r *Router) join(e *endpoint, to destination, want demand) *pool {
	r.poolsMu.Lock()
	defer r.poolsMu.Unlock()
	p := r.open[to]
	if p == nil {
		p = &pool{
			router: r,
			to:     to,
			log:    r.cfg.Log.With(zap.String("endpoint", to.address)),
			gone:   r.departingFrom(to),
			users:  make(map[*endpoint]demand),
		}
		p.live.Store(new([]*liveLink))
		p.sharers.Store(new([]*endpoint))
		r.open[to] = p
		r.pools[p] = struct{}{}
		r.metrics.addAddress(to.address)
		r.working.Add(1)
		go p.sweep() // ends when the pool is without users and has drained
	}
	p.users[e] = want
	p.keep()
	p.share()
	return p
}

// want changes what a user asks for.
func (p *pool) want(e *endpoint, want demand) {
	p.router.poolsMu.Lock()
	defer p.router.poolsMu.Unlock()
	p.users[e] = want
	p.keep()
}

// part takes a user out. Whoever joins after the last one has gone gets another pool.
func (p *pool) part(e *endpoint) {
	r := p.router
	r.poolsMu.Lock()
	defer r.poolsMu.Unlock()
	delete(p.users, e)
	if len(p.users) == 0 && r.open[p.to] == p {
		delete(r.open, p.to)
	}
	p.keep()
	p.share()
}

// share has the users as they are now share the links. poolsMu is held.
func (p *pool) share() {
	sharers := slices.Collect(maps.Keys(p.users))
	p.sharers.Store(&sharers)
}

// drained forgets a pool that has ended.
func (r *Router) drained(p *pool) {
	r.poolsMu.Lock()
	delete(r.pools, p)
	again := false // another one leads to the same address
	for other := range r.pools {
		again = again || other.to.address == p.to.address
	}
	if !again {
		r.metrics.forgetAddress(p.to.address)
	}
	r.poolsMu.Unlock()
	r.working.Done()
}

// allPools is every pool at work, those without users included.
func (r *Router) allPools() []*pool {
	r.poolsMu.Lock()
	defer r.poolsMu.Unlock()
	return slices.Collect(maps.Keys(r.pools))
}

// keep makes the number of links what the users want; a bridge is one link
// whatever they do. poolsMu is held.
func (p *pool) keep() {
	n := 0
	for _, want := range p.users {
		n = max(n, want.links)
	}
	if p.to.kind.protocol != "link" {
		n = min(n, 1)
	}
	p.kept.Store(int32(n))
	for len(p.keepers) < n {
		ctx, cancel := context.WithCancel(context.Background())
		p.keepers = append(p.keepers, cancel)
		p.working.Add(1)
		go p.keepLink(ctx) // ends when cancel is called, here below
	}
	for len(p.keepers) > n {
		last := len(p.keepers) - 1
		p.keepers[last]()
		p.keepers = p.keepers[:last]
	}
}

// keepLink keeps one link open until ctx ends: it opens another when one breaks or
// is asked to leave, after a pause that grows.
func (p *pool) keepLink(ctx context.Context) {
	defer p.working.Add(-1)
	timing := &p.router.timing
	pause, failing := timing.minPause, false
	for {
		began := time.Now()
		l, err := p.openLink(ctx)
		if err == nil {
			failing = false
			select {
			case <-l.left:
			case <-ctx.Done():
				l.leave(true)
			}
		} else if !failing && ctx.Err() == nil {
			failing = true // and say it once
			p.log.Warn("link cannot be opened", zap.Error(err))
		}
		if err == nil && time.Since(began) >= timing.stable {
			pause = timing.minPause
		}
		select {
		case <-time.After(jitter(pause)):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, timing.maxPause)
	}
}

// jitter is a time from half of d to all of it, so that the links that broke together
// do not all come back together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// openLink dials and shakes hands; the link takes requests when it returns.
func (p *pool) openLink(ctx context.Context) (*liveLink, error) {
	r := p.router
	dialing, cancel := context.WithTimeout(ctx, r.timing.dial)
	defer cancel()
	nc, wait, err := p.connect(dialing)
	if err != nil {
		return nil, err
	}
	conn, err := link.Open(ctx, nc, link.Config{Node: r.cfg.Node, Secret: r.cfg.Secret.First()})
	if err != nil {
		wait()
		return nil, fmt.Errorf("%s: %w", p.to.address, err)
	}
	l := newLiveLink(p, conn, wait)
	if !p.enter(ctx, l) {
		conn.Close()
		wait()
		return nil, context.Cause(ctx)
	}
	p.working.Add(1)
	go l.serve() // ends with the link
	p.changed()
	p.log.Info("link open", zap.String("backend", conn.Peer().Node), zap.Int("max_frame", conn.Limits().MaxFrame), zap.Int("max_streams", conn.Limits().MaxStreams))
	for _, e := range p.usersNow() {
		e.check(conn.Peer().Services)
	}
	return l, nil
}

// connect reaches the backend itself, or a bridge to it. wait returns when the
// connection has ended and nothing runs for it any more.
func (p *pool) connect(ctx context.Context) (nc net.Conn, wait func(), err error) {
	r := p.router
	if p.to.kind.protocol == "link" {
		if nc, err = r.connect(ctx, p.to.address); err != nil {
			return nil, nil, err
		}
		if r.cfg.TLS != nil {
			nc = tls.Client(nc, p.tlsConfig())
		}
		return nc, func() {}, nil
	}
	cfg := bridge.Config{
		Protocol:   bridge.Protocol(p.to.kind.protocol),
		Address:    p.to.address,
		Node:       r.cfg.Node,
		Secret:     r.cfg.Secret.First,
		Log:        p.log,
		HTTP2:      p.to.kind.http2,
		HealthPath: p.to.kind.healthPath,
	}
	if r.cfg.TLS != nil {
		cfg.TLS = p.tlsConfig
	}
	b, err := bridge.Dial(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	return b, b.Wait, nil
}

// tlsConfig is the TLS of one connection; Config.TLS is set.
func (p *pool) tlsConfig() *tls.Config {
	cfg := p.router.cfg.TLS()
	cfg.ServerName = p.to.serverName
	return cfg
}

// enter adds a link, unless it is no longer wanted.
func (p *pool) enter(ctx context.Context, l *liveLink) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	p.all = append(p.all, l)
	live := append(slices.Clone(*p.live.Load()), l)
	p.live.Store(&live)
	return true
}

// withdraw has a link take no more requests.
func (p *pool) withdraw(l *liveLink) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(p.all, l) { // else it has broken meanwhile and ended
		p.gone.add(l)
	}
	live := without(*p.live.Load(), l)
	p.live.Store(&live)
}

// forget drops a link that has ended.
func (p *pool) forget(l *liveLink) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = slices.DeleteFunc(p.all, func(x *liveLink) bool { return x == l })
	p.gone.drop(l)
}

// links is every link, those that are leaving included.
func (p *pool) links() []*liveLink {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

// connected reports whether there is a link that takes requests.
func (p *pool) connected() bool { return len(*p.live.Load()) > 0 }

func (p *pool) usersNow() []*endpoint {
	p.router.poolsMu.Lock()
	defer p.router.poolsMu.Unlock()
	return slices.Collect(maps.Keys(p.users))
}

// changed tells the users' services that a link came or left. No lock is held.
func (p *pool) changed() {
	for _, e := range p.usersNow() {
		e.service.refresh()
	}
}

// send gives a request to the least busy link; if that one cannot take it, to the others in
// turn.
func (p *pool) send(req *Request, q request) (l *liveLink, stream uint64, err error) {
	live := *p.live.Load()
	if len(live) == 0 {
		return nil, 0, link.ErrClosed
	}
	least, room := 0, 0
	for i := range live {
		room += live[i].room()
		if live[i].streams.Len() < live[least].streams.Len() {
			least = i
		}
	}
	if !p.hasRoom(live) || !p.hasShare(q.endpoint, live, room) {
		return nil, 0, link.ErrTooManyStreams
	}
	for i := range live {
		l = live[(least+i)%len(live)]
		if stream, err = l.send(req, q); err == nil {
			return l, stream, nil
		}
	}
	return nil, 0, err
}

// hasRoom reports whether the endpoint may have one request more in flight. A link that leaves keeps what it has, and another one
// takes its place: a backend that sends its links away again and again, and answers slowly, would gather ever more. So
// all links together have twice at most what those that are kept take. Requests that are sent at the same moment may each find the last place.
func (p *pool) hasRoom(live []*liveLink) bool {
	leaving := *p.gone.links.Load()
	if len(leaving) == 0 {
		return true // each link has its own bound
	}
	inFlight, streams := 0, 0
	for _, l := range leaving {
		inFlight += l.streams.Len()
	}
	for _, l := range live {
		inFlight += l.streams.Len()
		streams = max(streams, l.conn.Limits().MaxStreams)
	}
	return inFlight < 2*int(p.kept.Load())*streams
}

// hasShare reports whether a user may have one request more in flight on the links, which have room for so many. Who hangs must not
// use up what its neighbours need: half of what the links take is set aside for their users, the same for each, and
// nobody else gets what one has not used of it. Requests that are sent at the same moment may each find the last place.
func (p *pool) hasShare(e *endpoint, live []*liveLink, room int) bool {
	sharers := *p.sharers.Load()
	if len(sharers) < 2 {
		return true
	}
	most := 0
	for _, l := range live {
		most += l.conn.Limits().MaxStreams
	}
	reserve := max(most/2/len(sharers), min(most/len(sharers), 1))
	if room > reserve*(len(sharers)-1) || e.inFlight() < reserve {
		return true
	}
	for _, other := range sharers {
		if other != e {
			room -= max(reserve-other.inFlight(), 0)
		}
	}
	return room > 0
}

// sweep enforces deadlines, of all requests and pushes at once and not by a timer
// each. It ends when the pool is without users and nothing of it is at work any
// more.
func (p *pool) sweep() {
	defer p.router.drained(p)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var overdue []link.Taken[request]
	for range timer.C {
		now := p.router.clock()
		for _, l := range p.links() {
			overdue = l.sweep(now, overdue[:0])
		}
		tick, last := p.pace()
		if last {
			return
		}
		timer.Reset(tick)
	}
}

// pace is how long the next sweep may wait. last: there is nothing left to sweep.
func (p *pool) pace() (tick time.Duration, last bool) {
	p.router.poolsMu.Lock()
	defer p.router.poolsMu.Unlock()
	tick = p.router.timing.maxSweepTick
	for _, want := range p.users {
		tick = min(tick, max(want.timeout/20, time.Millisecond))
	}
	return tick, len(p.users) == 0 && p.working.Load() == 0
}

// cut breaks every link and returns how many requests were in flight.
func (p *pool) cut() (requests int) {
	for _, l := range p.links() {
		requests += l.streams.Len()
		l.conn.Close()
	}
	return requests
}

// hostOf is the host of "host:port".
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}
