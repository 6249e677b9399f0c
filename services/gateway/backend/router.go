package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/quicktcp"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// timing is how long things take, and how often. Tests shorten it.
type timing struct {
	dial         time.Duration // to connect
	minPause     time.Duration // after a link that broke or could not be opened; doubles
	maxPause     time.Duration
	stable       time.Duration // a link that lived so long starts the pauses anew
	resolve      time.Duration // between two look-ups
	handover     time.Duration // how long endpoints that left serve on if no new one is up
	push         time.Duration // until a push is answered "timed out"
	ejectAfter   int           // failures in a row
	maxSweepTick time.Duration // how late, at most, a timeout is noticed
}

func defaultTiming() timing {
	return timing{
		dial:         2 * time.Second,
		minPause:     50 * time.Millisecond,
		maxPause:     2 * time.Second,
		stable:       10 * time.Second,
		resolve:      time.Second,
		handover:     2 * time.Second,
		push:         5 * time.Second,
		ejectAfter:   5,
		maxSweepTick: 50 * time.Millisecond,
	}
}

// Router routes requests by service name to pools of links. It is safe for
// concurrent use.
//
// Locks, in the order in which they may be held together: Router.mu, service.mu,
// Router.poolsMu, pool.mu, departing.mu, retry.mu, liveLink.mu, link.Streams' own. Done and OnPush are
// called with none of them held.
type Router struct {
	// Static after construction.
	cfg     Config
	timing  timing
	metrics *metrics
	born    time.Time // the origin of clock
	lookup  func(ctx context.Context, host string) ([]string, error)
	connect func(ctx context.Context, addr string) (net.Conn, error)

	table atomic.Pointer[map[string]*service] // what Send reads; a map never changes

	mu      sync.Mutex
	closed  bool
	leaving map[*service]struct{} // no longer in the table, and still at work

	poolsMu sync.Mutex
	open    map[destination]*pool // those with users
	pools   map[*pool]struct{}    // those that drain included

	working sync.WaitGroup // one for each service and each pool at work
}

// NewRouter makes a router without services; see Apply. It must be ended with
// Shutdown.
func NewRouter(cfg Config) *Router {
	dialer := &net.Dialer{}
	r := &Router{
		cfg:    cfg,
		timing: defaultTiming(),
		born:   time.Now(),
		lookup: cfg.Lookup,
		connect: func(ctx context.Context, addr string) (net.Conn, error) {
			nc, err := dialer.DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			return quicktcp.Wrap(nc), nil
		},
		leaving: make(map[*service]struct{}),
		open:    make(map[destination]*pool),
		pools:   make(map[*pool]struct{}),
	}
	if r.lookup == nil {
		r.lookup = net.DefaultResolver.LookupHost
	}
	r.table.Store(&map[string]*service{})
	r.metrics = newMetrics(cfg.Metrics, r)
	return r
}

// clock is the time since the router was made, in nanoseconds: it never jumps.
func (r *Router) clock() int64 { return int64(time.Since(r.born)) }

// Apply puts a routing table in force. It may be called at any time: what did
// not change stays as it is, and requests in flight are answered whatever
// changed. It returns before links to new endpoints are open; see
// Unavailable. An error (a *config.Error naming the key) leaves the old
// table in force.
func (r *Router) Apply(services map[string]dynamic.Service) error {
	changes := make(map[string]rules, len(services))
	for name, cfg := range services {
		next, err := newRules(name, cfg)
		if err != nil {
			return err
		}
		changes[name] = next
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("backend: the router is shut down")
	}
	old := *r.table.Load()
	table := make(map[string]*service, len(services))
	for name, next := range changes {
		s := old[name]
		if s == nil {
			s = newService(r, name)
			r.working.Add(1)
			go s.tend() // ends when the service has left and drained
		}
		s.apply(next)
		table[name] = s
	}
	r.table.Store(&table)
	for name, s := range old {
		if table[name] == nil {
			r.leaving[s] = struct{}{}
			s.leave()
		}
	}
	return nil
}

// newRules checks a service's configuration.
func newRules(name string, cfg dynamic.Service) (rules, error) {
	key := "services." + name
	b, err := balance.New(cfg.Algorithm)
	if err != nil {
		return rules{}, &config.Error{Key: key + ".algorithm", Err: err}
	}
	if len(name) > link.MaxServiceName || name == "" {
		return rules{}, config.Errorf(key, "a service's name must have from 1 to %d bytes", link.MaxServiceName)
	}
	if cfg.Links < 1 || cfg.Timeout <= 0 {
		return rules{}, config.Errorf(key, "links and timeout must be positive, got %d and %v", cfg.Links, cfg.Timeout.D())
	}
	if err := cfg.CheckAddresses(key); err != nil {
		return rules{}, err
	}
	endpoints := slices.Clone(cfg.Endpoints)
	slices.Sort(endpoints)
	cfg.Endpoints = slices.Compact(endpoints)
	return rules{Service: cfg, balancer: b}, nil
}

// Unavailable lists, sorted, the services that have no backend to send to
// just now.
func (r *Router) Unavailable() []string {
	var names []string
	for name, s := range *r.table.Load() {
		if len(s.selection.Load().balancer.Targets()) == 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Send sends a request. It never blocks. Exactly one w.Done(tag, reply) follows,
// possibly before Send returns, unless Handle.Cancel returns true first.
func (r *Router) Send(req Request, w Waiter, tag uint32) Handle {
	s := (*r.table.Load())[req.Service]
	if s == nil {
		w.Done(tag, Reply{Err: wire.Errorf(wire.CodeNoSuchService, "there is no service of this name")})
		return Handle{}
	}
	return s.send(&req, w, tag)
}

// Shutdown refuses new requests, waits for those in flight until ctx ends (then
// they are answered backend_unavailable), closes every link and ends every
// goroutine. The error says what was cut short.
func (r *Router) Shutdown(ctx context.Context) error {
	for _, s := range r.close() {
		s.leave()
	}
	drained := make(chan struct{})
	go func() { r.working.Wait(); close(drained) }() // ends with the last service
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		n := 0
		for _, p := range r.allPools() {
			n += p.cut()
		}
		if n > 0 {
			err = fmt.Errorf("%d requests to backends cut short: %w", n, context.Cause(ctx))
		}
		<-drained
	}
	r.metrics.unregister()
	return err
}

// close refuses further tables and returns every service at work.
func (r *Router) close() []*service {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	return r.all()
}

// all is every service at work, those that have left the table included.
func (r *Router) all() []*service {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*service
	for _, s := range *r.table.Load() {
		list = append(list, s)
	}
	for s := range r.leaving {
		list = append(list, s)
	}
	return list
}

// left forgets a service that has ended.
func (r *Router) left(s *service) {
	r.mu.Lock()
	delete(r.leaving, s)
	r.mu.Unlock()
	r.working.Done()
}
