package balancer

import (
	"context"
	"sync"

	"github.com/goshield/goshield/internal/handover"
)

// heritage is what a successor of this process is to know beside its configuration.
type heritage struct {
	Operator map[string]adminState `json:"operator"` // by upstream: what is not ready
}

// HandOver implements service.Restarter: the listening sockets, and what an operator wants of upstreams. They
// stay the server's.
func (s *Server) HandOver() (sockets []handover.Socket, state any) {
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		if l.fd >= 0 {
			sockets = append(sockets, handover.Socket{Address: l.address, FD: l.fd})
		}
	}
	h := heritage{Operator: map[string]adminState{}}
	for _, p := range s.allPools() {
		for _, u := range p.status() {
			if u.State != ready {
				h.Operator[u.Address] = u.State
			}
		}
	}
	return sockets, h
}

// Leave implements service.Restarter: it is Shutdown for a server whose successor accepts already. It
// accepts nothing more, and waits for its connections; where rebalancing is on, gateways are asked to
// send their devices away.
func (s *Server) Leave(ctx context.Context) error {
	s.mu.Lock()
	window := s.cfg.Drain.Window
	s.mu.Unlock()
	s.health.SetNotReady("replaced by a new process")
	s.rebalancer.stop()
	s.stopListening()
	shedding, stop := context.WithCancel(ctx)
	var shed sync.WaitGroup
	shed.Go(func() { s.shedAll(shedding, window) })
	return s.outlast(ctx, stop, &shed)
}

// stopListening closes every listener, with the copy for a successor first: the last to be closed is the
// engine's, which serves what waits in the queue.
func (s *Server) stopListening() {
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		l.closeCopy()
	}
	s.engine.StopListening()
}
