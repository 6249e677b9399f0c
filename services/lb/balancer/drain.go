package balancer

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// lingerAtLeast is how long, at most, a draining balancer without connections
// still accepts: until whoever looks at its readiness has had time to send
// new ones elsewhere.
const lingerAtLeast = 3 * time.Second

// Shutdown implements service.Server. First it is no longer ready, and still accepts, so that new
// connections go elsewhere before any is turned away. A few seconds later, where
// rebalancing is on, gateways send its devices away, within the window. Then it closes its
// listeners, and waits for the connections that are left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	window, closed := s.cfg.Drain.Window, s.closed
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.health.SetNotReady("draining")
	s.rebalancer.stop()
	pause := min(lingerAtLeast, window)
	shedding, stop := context.WithCancel(ctx)
	var shed sync.WaitGroup
	if window > 0 { // else there is nowhere to send them yet
		shed.Go(func() {
			if sleep(shedding, pause) {
				s.shedAll(shedding, window-pause)
			}
		})
	}
	s.linger(ctx, pause, window)
	s.stopListening()
	return s.outlast(ctx, stop, &shed)
}

// outlast waits for the connections that are left, has stop end the shedding, and ends the
// server. The error says how many connections ctx did not leave the time to.
func (s *Server) outlast(ctx context.Context, stop context.CancelFunc, shed *sync.WaitGroup) error {
	err := s.engine.Wait(ctx)
	stop()
	shed.Wait()
	cut := s.engine.Connections()
	s.Kill()
	if err != nil {
		return fmt.Errorf("%d connections were cut: %w", cut, err)
	}
	return nil
}

// linger returns when it is time to close the listeners: when the window has passed, or
// the pause and the last connection.
func (s *Server) linger(ctx context.Context, pause, window time.Duration) {
	within, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	sleep(within, pause)
	_ = s.engine.Wait(within)
}
