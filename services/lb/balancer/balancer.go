// Package balancer is the layer-4 load balancer: it accepts TCP connections
// and relays each to one of the upstreams that are well.
//
//	cfg := balancer.DefaultConfig()
//	cfg.Upstreams.Static = []string{"127.0.0.1:9443", "127.0.0.1:9444 weight=2"}
//	s, err := balancer.New(cfg, service.Deps{Log: log, Metrics: registry})
//	err = s.Start()
//	defer s.Shutdown(ctx)
//
// It reads nothing of what it relays: TLS passes through to the gateway, which learns the
// client's address from the PROXY v2 header.
//
// # Parts
//
// A listener has a front, which admits its connections through the gate (limits) and
// places them with package balance. A pool is the set of upstreams that fronts
// share: discovery finds them, monitors (package health) check them, and with each
// change the pool works out anew which of them the fronts may pick. Package eventloop
// (on systems without epoll: relay) moves the bytes, and knows none of this.
//
// # Which upstreams get connections
//
// Those that discovery lists, that no operator has drained, and that are
// healthy. A new one enters on its first successful check, and starts with a
// tenth of its share, growing over slow_start; one that fell returns after as
// many successes as rise says. Beside the checks, a listener whose connections
// to an upstream fail eject_after times in a row leaves it alone for a while (5 s, then
// doubling up to a minute). No upstream is ever given up: checks go on, ejections
// end. And with none healthy all are tried, which the log, the readiness page and
// goshield_degraded{dependency="upstreams"} say.
package balancer

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/handover"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/lb/relay"
)

// Server is a load balancer. It implements service.Server, service.Reloader and
// service.Restarter.
type Server struct {
	// Static after construction.
	log     *zap.Logger
	health  *admin.Health
	metrics *metrics
	gate    *gate
	engine  *engine
	lookup  lookupFunc
	shedder *shedder
	began   time.Time

	inherited *handover.Inheritance // nil: no predecessor. Guarded by life
	operator  map[string]adminState // what an operator wanted of upstreams, in the predecessor; static

	rebalancer rebalancer
	vipWatch   vipWatch

	// life is held while the server starts, takes a new configuration or ends. Lock
	// order: life, mu, pool.mu.
	life sync.Mutex

	// Guarded by mu, and changed by who holds life, too.
	mu        sync.Mutex
	cfg       Config
	secret    *secret.Secret // nil: the admin API is for reading only
	pools     []*pool        // also those that no listener uses any more
	listeners []*listener    // as configured
	closed    bool
}

// New makes a balancer. It owns nothing that has to be closed until Start; end
// it with Shutdown or Kill then.
func New(cfg Config, deps service.Deps) (*Server, error) {
	return newServer(cfg, deps, systemLookup)
}

func newServer(cfg Config, deps service.Deps, lookup lookupFunc) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: deps.Log, lookup: lookup, shedder: newShedder(), began: time.Now()}
	s.rebalancer = rebalancer{server: s, levels: map[*pool]*level{}}
	s.vipWatch = vipWatch{server: s, local: isLocal}
	s.inherited = deps.Inherited
	var left heritage
	err := s.inherited.State(&left)
	if err != nil {
		return nil, fmt.Errorf("read what the predecessor left: %w", err)
	}
	s.operator = left.Operator
	if s.secret, err = openSecret(cfg.AdminSecretFile); err != nil {
		return nil, err
	}
	s.engine = newEngine(deps.Log, cfg.relaySettings())
	s.metrics = newMetrics(deps.Metrics, s.engine.Stats)
	s.metrics.vip.set(cfg.VIP)
	s.gate = newGate(cfg.MaxConnections, cfg.PerIP, s.metrics.perIP, s.engine.Stats)
	s.health = admin.NewHealth(deps.Metrics, dependencies(cfg)...)
	return s, nil
}

// openSecret returns nil for no file.
func openSecret(path string) (*secret.Secret, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // none is wanted
	}
	s, err := secret.Open(path)
	if err != nil {
		return nil, config.Errorf("admin_secret_file", "%w", err)
	}
	return s, nil
}

func (c Config) relaySettings() relay.Settings {
	return relay.Settings{ConnectTimeout: c.ConnectTimeout, IdleTimeout: c.IdleTimeout, ProxyHeader: c.ProxyProtocol}
}

// dependencies are the names under which the pools report to the health page.
func dependencies(cfg Config) []string {
	var names []string
	for _, l := range cfg.Listeners {
		if l.Upstreams == nil {
			names = append(names, poolDependency(""), dnsDependency(""))
		} else {
			names = append(names, poolDependency(l.Name), dnsDependency(l.Name))
		}
	}
	return names
}

// poolDependency is what the upstreams of a listener are called, or, for "", those
// that listeners share.
func poolDependency(listener string) string { return dependency("upstreams", listener) }

// dnsDependency is what resolving their names is called.
func dnsDependency(listener string) string { return dependency("dns", listener) }

func dependency(what, listener string) string {
	if listener == "" {
		return what
	}
	return what + " of " + listener
}

// Start implements service.Server. Upstreams need not be there yet.
func (s *Server) Start() error {
	s.life.Lock()
	defer s.life.Unlock()
	if err := s.apply(s.cfg); err != nil {
		s.kill()
		return err
	}
	s.rebalancer.start()
	s.vipWatch.start()
	s.health.SetReady()
	return nil
}

// Addr is where the listener of that name listens, after Start; "" if there is
// none.
func (s *Server) Addr(listener string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if l.front.Load().name == listener {
			return l.bound.String()
		}
	}
	return ""
}

// Health implements service.Server. It does not depend on the upstreams: a
// balancer that left because of them would only take the last one away.
func (s *Server) Health() *admin.Health { return s.health }

// RegisterAdmin implements service.Server.
func (s *Server) RegisterAdmin(mux *http.ServeMux) { s.registerAdmin(mux) }

// Kill closes everything at once, without drain.
func (s *Server) Kill() {
	s.life.Lock()
	defer s.life.Unlock()
	s.kill()
}

// kill is Kill for who holds life.
func (s *Server) kill() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	pools := s.pools
	s.mu.Unlock()
	s.health.SetNotReady("closed")
	s.rebalancer.stop()
	s.vipWatch.stop()
	s.stopListening()
	s.engine.Close()
	s.gate.memory.wait()
	for _, p := range pools {
		p.close()
	}
}
