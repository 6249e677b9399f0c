package balancer

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
)

// errEnded is what Reload says of a server that has ended.
var errEnded = errors.New("the balancer has ended")

// Reload implements service.Reloader: it takes a configuration in place of the present one. An
// error says which key cannot be used; then the present one stays in force. Accepted connections
// are not touched: those of a listener that is no longer there, or of an upstream that is
// no longer named, go on until they end. What is known of upstreams that stay is kept: their
// health, their connections, and what an operator wants of them.
func (s *Server) Reload(cfg Config) error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return errEnded
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.Admin != s.cfg.Admin {
		return config.Errorf("admin", "cannot change while the process runs (it is %s): restart it", s.cfg.Admin)
	}
	file, err := openSecret(cfg.AdminSecretFile)
	if err != nil {
		return err
	}
	if err := s.apply(cfg); err != nil {
		return err
	}
	s.mu.Lock()
	s.secret = file
	s.mu.Unlock()
	return nil
}

// apply brings a configuration that has been validated into force, the first one or another.
// s.life is held.
func (s *Server) apply(cfg Config) error {
	listeners, sockets, err := s.bindAll(cfg)
	if err != nil {
		return err
	}
	if s.cfg.MaxConnections != cfg.MaxConnections || s.listeners == nil {
		warnOfDescriptors(s.log, cfg.MaxConnections)
	}
	s.engine.Set(cfg.relaySettings())
	s.gate.set(cfg.MaxConnections, cfg.PerIP)
	s.metrics.vip.set(cfg.VIP)
	used := s.setPools(cfg)
	for i, l := range cfg.Listeners {
		s.setFront(listeners[i], cfg.frontSpec(l), s.pool(l.poolName()))
	}
	s.mu.Lock()
	before := s.listeners
	s.cfg, s.listeners = cfg, listeners
	s.mu.Unlock()
	for _, l := range before {
		if !slices.Contains(listeners, l) {
			s.close(l)
		}
	}
	for _, p := range s.pools {
		if !slices.Contains(used, p) && !p.retired {
			p.retire()
		}
	}
	return s.serve(listeners, sockets)
}

// serve accepts from the sockets that are new, by their place among the listeners.
func (s *Server) serve(listeners []*listener, sockets map[int]*net.TCPListener) error {
	var failed error
	for i, ln := range sockets {
		l := listeners[i]
		if err := s.engine.Serve(ln, l); err != nil {
			failed = config.Errorf(fmt.Sprintf("listeners[%d].address", i), "%w", err)
			s.mu.Lock() // the next Reload may try again
			s.listeners = slices.DeleteFunc(slices.Clone(s.listeners), func(other *listener) bool { return other == l })
			s.mu.Unlock()
			l.closeCopy()
			l.front.Load().pool.leave(l.front.Load())
			continue
		}
		s.log.Info("listening", zap.String("listener", l.front.Load().name), zap.Stringer("address", l.bound))
	}
	return failed
}

// bindAll returns the listeners of a configuration, in its order: those of now whose address
// stays, and others with the sockets that were opened for them, by their place.
func (s *Server) bindAll(cfg Config) (listeners []*listener, sockets map[int]*net.TCPListener, err error) {
	sockets = map[int]*net.TCPListener{}
	free := slices.Clone(s.listeners)
	for i, l := range cfg.Listeners {
		kept := indexOf(free, l)
		if kept >= 0 {
			listeners = append(listeners, free[kept])
			free = slices.Delete(free, kept, kept+1)
			continue
		}
		ln, err := s.bind(l.Address)
		if err != nil {
			for i, opened := range sockets {
				listeners[i].closeCopy()
				_ = opened.Close()
			}
			return nil, nil, config.Errorf(fmt.Sprintf("listeners[%d].address", i), "%w", err)
		}
		sockets[i] = ln
		listeners = append(listeners, newListener(l.Address, ln))
	}
	return listeners, sockets, nil
}

// indexOf is which of the listeners has the address that is configured, the one of the same name
// if there are several (of port 0); -1 if none has.
func indexOf(listeners []*listener, want Listener) int {
	found := -1
	for i, l := range listeners {
		if l.address != want.Address {
			continue
		}
		if l.front.Load().name == want.Name {
			return i
		}
		if found < 0 {
			found = i
		}
	}
	return found
}

// close stops listening. The connections that were accepted go on.
func (s *Server) close(l *listener) {
	l.closeCopy()
	s.engine.StopServing(l)
	f := l.front.Load()
	f.pool.leave(f)
	s.log.Info("no longer listening", zap.String("listener", f.name), zap.Stringer("address", l.bound), zap.Int64("connections", f.open.Load()))
}

// setPools makes the pools that a configuration needs, or brings those of now up to date, and
// returns them.
func (s *Server) setPools(cfg Config) (used []*pool) {
	for _, l := range cfg.Listeners {
		p := s.pool(l.poolName())
		if slices.Contains(used, p) && p != nil {
			continue
		}
		spec := cfg.poolSpec(cfg.upstreamsOf(l))
		if p == nil {
			p = s.newPool(l.poolName())
			p.start(spec)
			s.mu.Lock()
			s.pools = append(s.pools, p)
			s.mu.Unlock()
		} else {
			p.set(spec)
		}
		used = append(used, p)
	}
	return used
}

// poolName is the name of the pool that the listener uses: its own, or "" for the shared one.
func (l Listener) poolName() string {
	if l.Upstreams == nil {
		return ""
	}
	return l.Name
}

// pool is that of a listener, or "" for the shared one; nil if there is none.
func (s *Server) pool(listener string) *pool {
	for _, p := range s.pools {
		if p.name == poolDependency(listener) {
			return p
		}
	}
	return nil
}

// allPools are also those that no listener uses any more.
func (s *Server) allPools() []*pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pools[:len(s.pools):len(s.pools)]
}

func (c Config) frontSpec(l Listener) frontSpec {
	return frontSpec{
		name:           l.Name,
		port:           uint16(l.Port),
		algorithm:      c.Algorithm,
		ejectAfter:     c.Health.EjectAfter,
		connectTimeout: c.ConnectTimeout,
	}
}

// setFront gives a listener the front that it should have, unless it has it already.
func (s *Server) setFront(l *listener, spec frontSpec, p *pool) {
	old := l.front.Load()
	if old != nil && old.frontSpec == spec && old.pool == p {
		return
	}
	f := s.newFront(spec, p)
	p.join(f)
	l.front.Store(f)
	if old != nil {
		old.pool.leave(old)
	}
}
