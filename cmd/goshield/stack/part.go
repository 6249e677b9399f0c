package stack

import (
	"context"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/service"
)

// server is a service as the stack handles it.
type server interface {
	service.Server
	Addr() string
	Kill()
}

// part is one service of the stack: it can be ended and started again at the
// address it had. It answers for the service on the admin server, whichever run
// of it is the present one.
type part struct {
	name string // static
	make func(addr string, deps service.Deps) (server, error)
	deps service.Deps

	addr string // asked for, then the one bound; of the goroutine that starts and ends

	mu     sync.Mutex
	server server         // nil: not running
	routes *http.ServeMux // its admin routes
	reg    *partRegistry
}

func (s *Stack) newPart(name, addr string, make func(string, service.Deps) (server, error)) *part {
	return &part{
		name: name,
		make: make,
		deps: service.Deps{
			Log:     s.cfg.Log.Named(name),
			Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"node": name}, s.reg),
		},
		addr: addr,
	}
}

func (p *part) start() error {
	reg := &partRegistry{Registerer: p.deps.Metrics}
	srv, err := p.make(p.addr, service.Deps{Log: p.deps.Log, Metrics: reg})
	if err == nil {
		err = srv.Start()
	}
	if err != nil {
		reg.unregisterAll()
		return err
	}
	routes := http.NewServeMux()
	srv.RegisterAdmin(routes)
	routes.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { admin.WriteReadiness(w, srv.Health()) })
	p.addr = srv.Addr()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server, p.routes, p.reg = srv, routes, reg
	return nil
}

func (p *part) shutdown(ctx context.Context) error {
	srv := p.running()
	if srv == nil {
		return nil
	}
	err := srv.Shutdown(ctx)
	p.ended(srv)
	return err
}

func (p *part) kill() {
	srv := p.running()
	if srv == nil {
		return
	}
	srv.Kill()
	p.ended(srv)
}

func (p *part) running() server {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.server
}

// ended forgets one run. That a run was drained and killed meanwhile is told twice.
func (p *part) ended(srv server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != srv {
		return
	}
	p.reg.unregisterAll()
	p.server, p.routes, p.reg = nil, nil, nil
}

// Ready implements admin.Readiness.
func (p *part) Ready() (ready bool, text string) {
	srv := p.running()
	if srv == nil {
		return false, p.name + ": not ready: ended\n"
	}
	ready, text = srv.Health().Ready()
	return ready, p.name + ": " + text
}

// ServeHTTP answers the service's own admin routes.
func (p *part) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	routes := p.routes
	p.mu.Unlock()
	if routes == nil {
		http.Error(w, p.name+" has ended", http.StatusServiceUnavailable)
		return
	}
	routes.ServeHTTP(w, r)
}

// partRegistry remembers what one run of a part registered, so that the next
// run can register the same.
type partRegistry struct {
	prometheus.Registerer

	mu         sync.Mutex
	collectors []prometheus.Collector
}

// Register implements prometheus.Registerer.
func (r *partRegistry) Register(c prometheus.Collector) error {
	err := r.Registerer.Register(c)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.collectors = append(r.collectors, c)
	}
	return err
}

// MustRegister implements prometheus.Registerer.
func (r *partRegistry) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			panic(err) // two metrics of one name: a fault of the program
		}
	}
}

func (r *partRegistry) unregisterAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.collectors {
		r.Unregister(c)
	}
	r.collectors = nil
}
