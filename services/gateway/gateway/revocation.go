package gateway

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

// revoked hears that a device's token was revoked (registry.Config.OnRevoked). An announcement ends
// its session at once, and so does the stream if it names the session's epoch or a later one. Else what it says may be about
// a token that the device has replaced since: then its record decides.
func (s *Server) revoked(r registry.Revocation) {
	s.table.noteRevoked(r.ClientID, s.now())
	ses := s.table.find(r.ClientID)
	switch {
	case ses == nil:
	case r.Announced || ses.epoch <= r.Epoch:
		ses.refuse(wire.Errorf(r.Code, "the token was revoked"))
	default:
		s.suspects.add(ses)
	}
}

// sessionsMayBeLost has every session compared with its record in Redis: revocations may have been missed, or
// devices may have gone elsewhere while this gateway was cut off or asleep
// (registry.Config.OnGap).
func (s *Server) sessionsMayBeLost(reason string) {
	s.log.Info("comparing sessions with Redis", zap.String("reason", reason))
	s.suspects.addAll()
}

const (
	comparedAtOnce = 200                   // sessions a round trip
	comparePause   = 20 * time.Millisecond // between two, so that 100 000 sessions take 10 s and Redis has room for others
)

// suspects are the sessions to be compared with their records in Redis: first those of which there is reason to think
// that they are over, then, after a gap, all. None is in it twice, so that it is never larger than there are sessions.
type suspects struct {
	wake chan struct{} // holds one value if there may be something to do

	mu    sync.Mutex
	first map[*session]struct{}
	all   bool       // all are to be compared, from now on
	rest  []*session // of those that are being compared after a gap
}

func newSuspects() *suspects {
	return &suspects{wake: make(chan struct{}, 1), first: make(map[*session]struct{})}
}

// add has sessions compared, soon.
func (q *suspects) add(list ...*session) {
	q.mu.Lock()
	for _, ses := range list {
		q.first[ses] = struct{}{}
	}
	q.mu.Unlock()
	q.wakeUp()
}

// addAll has every session compared that is open now.
func (q *suspects) addAll() {
	q.mu.Lock()
	q.all = true
	q.mu.Unlock()
	q.wakeUp()
}

func (q *suspects) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take takes out up to n. Who is suspected never waits for a comparison of all, which takes long.
func (q *suspects) take(n int, open func() []*session) []*session {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all && len(q.rest) == 0 {
		q.all, q.rest = false, open()
	}
	list := make([]*session, 0, min(n, len(q.first)+len(q.rest)))
	for ses := range q.first {
		if len(list) == n {
			return list
		}
		list = append(list, ses)
		delete(q.first, ses)
	}
	more := min(n-len(list), len(q.rest))
	list = append(list, q.rest[:more]...)
	clear(q.rest[:more]) // a session that ends is not kept by this
	if q.rest = q.rest[more:]; len(q.rest) == 0 {
		q.rest = nil
	}
	return list
}

// compareSessions compares suspects, some at a time. What cannot be read is tried again. It ends with the gateway.
func (s *Server) compareSessions() {
	for {
		list := s.suspects.take(comparedAtOnce, s.table.all)
		if len(list) == 0 {
			select {
			case <-s.suspects.wake:
				continue
			case <-s.ctx.Done():
				return
			}
		}
		pause := comparePause
		if err := s.compare(list); err != nil {
			s.log.Debug("sessions cannot be compared yet", zap.Error(err))
			s.suspects.add(list...)
			pause = time.Second
		}
		if !s.sleep(pause) {
			return
		}
	}
}

// compare ends those sessions that Redis says are revoked, or have a newer
// owner. A device of which Redis knows nothing is left alone: lost data is no verdict.
func (s *Server) compare(list []*session) error {
	ids := make([]wire.ClientID, len(list))
	for i, ses := range list {
		ids[i] = ses.client
	}
	records, err := s.registry.Records(s.ctx, ids)
	if err != nil {
		return err
	}
	for i, ses := range list {
		switch rec := records[i]; {
		case rec.Revoked != "":
			ses.refuse(wire.Errorf(rec.Revoked, "the token was revoked"))
		case rec.Owner.Epoch > ses.epoch:
			if old := s.table.evict(ses.client, rec.Owner.Epoch, s.now()); old != nil {
				old.takenOver()
			}
		}
	}
	return nil
}
