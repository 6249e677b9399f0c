package gateway

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
)

// Leaving (docs/PROTOCOL.md, GOAWAY): a device is told to reconnect after some time. Until then it is served as
// ever; then its requests are refused with shutting_down, what is in flight is
// answered, and a little later the gateway closes.

const (
	reasonDraining  = "draining"
	reasonRebalance = "rebalance"

	// leaveGrace is how long after the time it was told a device has to come
	// back elsewhere before the gateway closes.
	leaveGrace = 5 * time.Second
	// lateWindow spreads the GOAWAYs of devices that connect while the gateway drains.
	lateWindow = time.Second
	// leaveLead is how long nobody leaves a gateway that drains, so that load balancers notice first that it is not
	// ready: who leaves earlier may be sent to it again, or to another one that drains. It is longer than
	// lb takes as it is configured by default.
	leaveLead = 5 * time.Second
)

// goAway asks the device to reconnect after so long. The first time counts. It reports
// whether the device was asked.
func (s *session) goAway(reason string, after, grace time.Duration) bool {
	defer s.recoverFault()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen || s.goneAt != 0 {
		return false
	}
	s.goneAt = s.srv.now() + int64(after)
	s.leaveBy = s.goneAt + int64(grace)
	s.arm(s.leaveBy)
	if s.send(&wire.Goaway{Reason: reason, After: after}) {
		s.startFlush()
	}
	return true
}

// leaveGrace is shorter where the drain leaves less time after its window.
func (s *Server) leaveGrace() time.Duration {
	return min(leaveGrace, (s.cfg.Drain.Timeout-s.cfg.Drain.Window)/2)
}

// leaveLead is at most half of the window.
func (s *Server) leaveLead() time.Duration { return min(leaveLead, s.cfg.Drain.Window/2) }

// sendAway asks every device to go, spread over the window without its lead.
func (s *Server) sendAway() {
	lead := s.leaveLead()
	for _, ses := range s.table.all() {
		ses.goAway(reasonDraining, lead+spread(s.cfg.Drain.Window-lead), s.leaveGrace())
	}
}

// sendAwayIfDraining asks a device that has just connected to a gateway that drains.
func (s *Server) sendAwayIfDraining(ses *session) {
	if s.draining.Load() {
		lead := max(time.Duration(s.leaveFrom.Load()-s.now()), 0)
		ses.goAway(reasonDraining, lead+spread(min(lateWindow, s.cfg.Drain.Window)), s.leaveGrace())
	}
}

// spread is a random time within a window.
func spread(window time.Duration) time.Duration {
	return time.Duration(rand.Int64N(int64(window) + 1)).Truncate(time.Millisecond)
}

// drain asks every device to go and waits until all have gone, or ctx ends.
func (s *Server) drain(ctx context.Context) error {
	s.health.SetNotReady("draining")
	s.leaveFrom.Store(s.now() + int64(s.leaveLead()))
	s.draining.Store(true)
	s.sendAway()
	return s.sockets.waitEmpty(ctx)
}

// shedRequest is the body of POST /api/shed.
type shedRequest struct {
	Connections int          `json:"connections"`
	OverMS      int64        `json:"over_ms"`
	From        []netip.Addr `json:"from"` // load balancers; none: any
}

type shedAnswer struct {
	Shed int `json:"shed"`
}

const (
	maxShedOver = 10 * time.Minute
	shedsMax    = 8 // that may run at once
)

// serveShed asks some devices to reconnect: what a load balancer calls to rebalance.
func (s *Server) serveShed(w http.ResponseWriter, r *http.Request) {
	var req shedRequest
	if !readJSON(w, r, 64<<10, &req) {
		return
	}
	over := time.Duration(req.OverMS) * time.Millisecond
	if req.Connections < 0 || req.OverMS < 0 || req.OverMS > maxShedOver.Milliseconds() {
		writeProblem(w, http.StatusBadRequest, codeBadRequest, "connections must not be negative, over_ms be from 0 to 600000")
		return
	}
	select {
	case s.sheds <- struct{}{}:
	default:
		writeProblem(w, http.StatusTooManyRequests, codeUnavailable, "too many calls like this are under way")
		return
	}
	var chosen []*session
	if s.letsIn(r.Context()) {
		chosen = s.chooseToShed(req.Connections, req.From)
	}
	if !s.begin() {
		<-s.sheds
		writeProblem(w, http.StatusServiceUnavailable, codeUnavailable, "the gateway is ending")
		return
	}
	go s.shed(chosen, over)
	writeJSON(w, http.StatusAccepted, shedAnswer{Shed: len(chosen)})
}

// letsIn reports whether a device that is sent away could come back: for that, auth-service and Redis are needed. It asks
// auth-service, which may have gone a moment ago.
func (s *Server) letsIn(ctx context.Context) bool {
	if s.authHTTP != nil && s.authHTTP.Ping(ctx) != nil {
		return false
	}
	return !s.cutOff()
}

// cutOff reports whether it is known that auth-service or Redis is away.
func (s *Server) cutOff() bool {
	return s.health.Degraded(dependencyAuth) != "" || s.health.Degraded(dependencyRedis) != ""
}

// chooseToShed picks up to n devices at random that were not asked to go yet and
// came through one of the given load balancers.
func (s *Server) chooseToShed(n int, from []netip.Addr) []*session {
	var list []*session
	for _, ses := range s.table.all() {
		if ses.maySend() && cameThrough(ses.sock.peer, from) {
			list = append(list, ses)
		}
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:min(n, len(list))]
}

// maySend reports whether the device is still to be asked to go.
func (s *session) maySend() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stateOpen && s.goneAt == 0
}

func cameThrough(peer netip.Addr, from []netip.Addr) bool {
	for _, a := range from {
		if a.Unmap() == peer {
			return true
		}
	}
	return len(from) == 0
}

// shed asks the devices one after the other, evenly over the time. It ends then, or with the gateway, or when those who
// go could not come back.
func (s *Server) shed(list []*session, over time.Duration) {
	defer s.work.Done()
	defer func() { <-s.sheds }()
	begun := time.Now()
	asked := 0
	for i, ses := range list {
		at := over * time.Duration(i) / time.Duration(len(list))
		if wait := at - time.Since(begun); wait > 0 && !s.sleep(wait) {
			return
		}
		if s.cutOff() {
			break
		}
		if ses.goAway(reasonRebalance, 0, leaveGrace) {
			asked++
		}
	}
	s.log.Info("devices were asked to reconnect", zap.Int("devices", asked), zap.Duration("over", over))
}
