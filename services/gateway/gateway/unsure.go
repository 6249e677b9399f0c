package gateway

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
)

const (
	// unsureMemory is how long a claim whose answer was lost is remembered: longer than a device that was told auth_unavailable
	// takes to come again, in any but a long outage.
	unsureMemory = int64(10 * time.Minute)
	// unsureMax is how many are. One that is forgotten too early leaves an older session open until it asks for a new token.
	unsureMax = 1 << 16
)

// unsure are the devices whose claim got no answer here. auth-service may have made a session the owner that never opened:
// whoever claims the device next is told of that one, and of nobody before it. So this gateway, asked to end it, has
// every other one asked. It is safe for concurrent use.
type unsure struct {
	mu    sync.Mutex
	since map[wire.ClientID]int64
	swept int64
}

func newUnsure() *unsure { return &unsure{since: make(map[wire.ClientID]int64)} }

// note remembers a device.
func (u *unsure) note(id wire.ClientID, now int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now-u.swept > unsureMemory {
		for id, at := range u.since {
			if now-at > unsureMemory {
				delete(u.since, id)
			}
		}
		u.swept = now
	}
	for other := range u.since {
		if len(u.since) < unsureMax {
			break
		}
		delete(u.since, other) // any one: there are too many
	}
	u.since[id] = now
}

// take reports whether a device is remembered, and forgets it.
func (u *unsure) take(id wire.ClientID, now int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	at, known := u.since[id]
	delete(u.since, id)
	return known && now-at <= unsureMemory
}

// evictEverywhere ends every older session of a device on other gateways, in the background.
func (s *Server) evictEverywhere(id wire.ClientID, epoch int64) {
	if s.peers != nil && s.begin() {
		go s.askEverybody(id, epoch)
	}
}

// askEverybody ends after some tries to learn who there is.
func (s *Server) askEverybody(id wire.ClientID, epoch int64) {
	defer s.work.Done()
	for try := range evictTries {
		if try > 0 && !s.sleep(evictPause(try)) {
			return
		}
		nodes, err := s.registry.Nodes(s.ctx)
		if err != nil {
			s.log.Debug("the other gateways cannot be read", zap.Error(err))
			continue
		}
		for _, n := range nodes {
			if n.Name != s.cfg.Node {
				s.startEvict(n.Name, id, epoch)
			}
		}
		return
	}
	s.metrics.takeoversLost.Inc()
}
