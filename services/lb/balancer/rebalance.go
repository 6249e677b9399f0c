package balancer

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// rebalancer levels the connections of every pool, while the configuration wants it, by asking gateways to
// send devices away. New connections are meanwhile placed by least connections.
type rebalancer struct {
	server *Server
	levels map[*pool]*level // owned by run
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// start begins; stop must follow.
func (r *rebalancer) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.ended.Go(func() { r.run(ctx) })
}

// stop ends it, and waits until it has ended. It may be called again, and without start.
func (r *rebalancer) stop() {
	if r.cancel != nil {
		r.cancel()
	}
	r.ended.Wait()
}

// roundLength is a second, up to a tenth more or less: several balancers must not march in step.
func roundLength() time.Duration { return 900*time.Millisecond + rand.N(200*time.Millisecond) }

// run ends when ctx does.
func (r *rebalancer) run(ctx context.Context) {
	for sleep(ctx, roundLength()) {
		cfg, order := r.server.shedOrder(time.Second)
		for _, p := range r.server.allPools() {
			if cfg.Rebalance.Enabled {
				r.round(ctx, p, cfg.Rebalance.Pace, order)
			} else if r.levels[p] != nil {
				p.levelling.Store(false)
				delete(r.levels, p)
			}
		}
	}
}

// sleep reports whether so long has passed; false: ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// shedOrder is the configuration of now, and what calls by it have in common.
func (s *Server) shedOrder(over time.Duration) (Config, shedOrder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg, shedOrder{template: s.cfg.Health.HTTP, secret: s.secret, over: over}
}

// round looks at one pool, once.
func (r *rebalancer) round(ctx context.Context, p *pool, pace int, order shedOrder) {
	l := r.levels[p]
	if l == nil {
		l = &level{}
		r.levels[p] = l
	}
	loads := p.loads()
	was := l.active
	asks := l.round(loads, pace)
	l.forget(loads)
	p.levelling.Store(l.active)
	if l.active != was {
		r.note(p, l, loads)
	}
	if asks == nil {
		return
	}
	if moved := r.ask(ctx, l, loads, asks, order); l.done(moved) && ctx.Err() == nil {
		p.levelling.Store(false)
		p.log.Warn("rebalancing rests: no gateway sends devices away", zap.String("pool", p.name), zap.Int("rounds", restRounds))
	}
}

// note says that levelling began or ended.
func (r *rebalancer) note(p *pool, l *level, loads []upstreamLoad) {
	connections, _ := totals(loads)
	fields := []zap.Field{zap.String("pool", p.name), zap.Int("upstreams", len(loads)), zap.Int64("connections", connections)}
	if l.active {
		p.log.Info("rebalancing begins", append(fields, zap.Float64("most_above_mean", excess(loads)))...)
	} else {
		p.log.Info("rebalancing ends", append(fields, zap.Int("moved", l.moved))...)
	}
}

// ask makes the calls of a round, all at the same time, and returns how many devices will move.
func (r *rebalancer) ask(ctx context.Context, l *level, loads []upstreamLoad, asks []int, order shedOrder) (moved int) {
	answers := make([]int, len(loads))
	var calls sync.WaitGroup
	for i, n := range asks {
		if n > 0 {
			calls.Go(func() { answers[i] = r.server.shed(ctx, order, loads[i].upstream, n) })
		}
	}
	calls.Wait()
	for i, n := range answers {
		l.tell(loads[i].upstream, n)
		moved += n
	}
	r.server.metrics.moved.Add(float64(moved))
	return moved
}

// shed asks the gateway of one upstream to send n devices away and returns how many it will. A failure
// is logged once, until a call succeeds.
func (s *Server) shed(ctx context.Context, order shedOrder, u *upstream, n int) int {
	moved, err := s.shedder.ask(ctx, order, u.addr, n)
	if err != nil {
		if ctx.Err() == nil && !u.unwilling.Swap(true) {
			s.log.Warn("cannot ask the gateway to send devices away", zap.String("upstream", u.name), zap.Error(err))
		}
		return 0
	}
	if u.unwilling.Swap(false) {
		s.log.Info("the gateway sends devices away again", zap.String("upstream", u.name))
	}
	return moved
}

// shedAll has the gateways send away every device that came through this balancer: within the
// window, and then whoever is left or came late. It ends with ctx.
func (s *Server) shedAll(ctx context.Context, window time.Duration) {
	for over := max(window, time.Second); ctx.Err() == nil; over = time.Second {
		cfg, order := s.shedOrder(over)
		if !cfg.Rebalance.Enabled {
			return
		}
		var moved atomic.Int64
		var calls sync.WaitGroup
		for _, p := range s.allPools() {
			for _, u := range p.known() {
				if n := int(u.target.InFlight()); n > 0 {
					calls.Go(func() { moved.Add(int64(s.shed(ctx, order, u, n))) })
				}
			}
		}
		calls.Wait()
		if n := moved.Load(); n > 0 {
			s.log.Info("devices are asked to reconnect", zap.Int64("devices", n), zap.Duration("over", over))
		}
		sleep(ctx, over+time.Second)
	}
}
