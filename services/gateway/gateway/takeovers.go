package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

const (
	evictTries      = 3     // how often a gateway that answers is told that it lost a device
	takeoversAtOnce = 16    // calls to one gateway
	takeoversMax    = 16384 // that wait for one gateway
	// takeoverWait is how long one may wait: a gateway that has not answered for as long is taken for dead by others, too.
	takeoverWait = registry.NodeTTL
)

// takeover is a session on another gateway that a newer one, of that epoch, has replaced here.
type takeover struct {
	client   wire.ClientID
	epoch    int64
	deadline int64
}

// takeovers are those that other gateways are still to be told of, first come first served. Each gateway has a queue and
// workers of its own, so that one that does not answer holds up nothing but what is for it. Its zero value is ready.
type takeovers struct {
	mu     sync.Mutex
	queues map[string]*takeoverQueue // by node; those that have workers
}

type takeoverQueue struct {
	waiting []takeover
	workers int
}

// add queues one; false if there is no room. If more is true, the caller starts another worker,
// which takes from next until that has none.
func (t *takeovers) add(node string, o takeover) (queued, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[node]
	if q == nil {
		q = &takeoverQueue{}
		if t.queues == nil {
			t.queues = make(map[string]*takeoverQueue)
		}
		t.queues[node] = q
	}
	if len(q.waiting) >= takeoversMax {
		return false, false
	}
	q.waiting = append(q.waiting, o)
	more = q.workers < takeoversAtOnce
	if more {
		q.workers++
	}
	return true, more
}

// next takes out the one that has waited longest. If there is none, the worker has ended.
func (t *takeovers) next(node string) (o takeover, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[node]
	if len(q.waiting) > 0 {
		o, q.waiting = q.waiting[0], q.waiting[1:]
		return o, true
	}
	if q.workers--; q.workers == 0 {
		delete(t.queues, node)
	}
	return o, false
}

// evictElsewhere ends the session that a new one has replaced, if it is
// on another gateway, in the background. If it is one of this gateway's whose claim got no answer, those before it are looked for.
func (s *Server) evictElsewhere(previousOwner string, id wire.ClientID, epoch int64) {
	lost := s.unsure.take(id, s.now())
	owner, ok := registry.ParseOwner(previousOwner)
	switch {
	case !ok || s.peers == nil:
	case owner.Node != s.cfg.Node:
		s.startEvict(owner.Node, id, epoch)
	case lost:
		s.evictEverywhere(id, epoch)
	}
}

// startEvict queues a takeover for that gateway.
func (s *Server) startEvict(node string, id wire.ClientID, epoch int64) {
	queued, more := s.peers.takeovers.add(node, takeover{client: id, epoch: epoch, deadline: s.now() + int64(takeoverWait)})
	if !queued {
		s.metrics.takeoversLost.Inc()
	}
	if more && s.begin() {
		go s.evictFrom(node)
	}
}

// evictPause is how long to wait before another try.
func evictPause(try int) time.Duration { return jitter(100 * time.Millisecond << try) }

// evictFrom tells one gateway of the sessions that it lost. It ends when there are none left, or with this gateway.
func (s *Server) evictFrom(node string) {
	defer s.work.Done()
	for s.ctx.Err() == nil {
		o, ok := s.peers.takeovers.next(node)
		if !ok {
			return
		}
		s.evict(node, o)
	}
}

// evict ends after some tries. An old session that cannot be ended this way ends when its gateway
// compares its sessions with Redis, or it asks for a rotation.
func (s *Server) evict(node string, o takeover) {
	err := errTakeoverLate
	for tries := 0; tries < evictTries && s.now() < o.deadline; {
		if err = s.evictOnce(node, o); err == nil {
			return
		}
		if !errors.Is(err, errPeerSilent) { // then it was not tried: frozen, it is told when it wakes
			tries++
		}
		if !s.sleep(evictPause(max(tries, 1))) {
			return
		}
	}
	s.metrics.takeoversLost.Inc()
	level := zap.DebugLevel // as when that gateway has died
	if errors.Is(err, errTakeoverRefused) && !s.peers.warned.Swap(true) {
		level = zap.WarnLevel // gateways with different secrets, most likely: said once, counted always
	}
	s.log.Log(level, "an older session on another gateway could not be ended", zap.String("gateway", node), zap.Error(err))
}

var (
	// errTakeoverRefused: a gateway answered something else than that the session is gone.
	errTakeoverRefused = errors.New("the takeover was refused")
	errTakeoverLate    = errors.New("others before it took all of its time")
)

func (s *Server) evictOnce(name string, o takeover) error {
	node, err := s.lookup(s.ctx, name)
	if errors.Is(err, registry.ErrNotConnected) {
		return nil // that gateway is gone, and its sessions with it
	}
	if err != nil {
		return err
	}
	status, err := s.peers.endSession(s.ctx, node, o.client, o.epoch)
	if err == nil && status != http.StatusNoContent && status != http.StatusNotFound {
		err = fmt.Errorf("%w: status %d", errTakeoverRefused, status)
	}
	return err
}
