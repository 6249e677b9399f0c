package gateway

import (
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
)

// revoked hears that a device's token was revoked (registry.Config.OnRevoked). An announcement ends
// its session at once. What the stream repeats later may be about a token that the
// device has replaced since: then its record decides.
func (s *Server) revoked(id wire.ClientID, code wire.Code, announced bool) {
	s.table.noteRevoked(id, s.now())
	ses := s.table.find(id)
	switch {
	case ses == nil:
	case announced:
		ses.refuse(wire.Errorf(code, "the token was revoked"))
	default:
		s.suspect(ses)
	}
}

// suspect has a session compared with its record in Redis, soon.
func (s *Server) suspect(ses *session) {
	select {
	case s.suspects <- ses:
	default:
		s.sessionsMayBeLost("many revocations at once")
	}
}

// sessionsMayBeLost has every session compared with its record in Redis: revocations may have been missed, or
// devices may have gone elsewhere while this gateway was cut off or asleep
// (registry.Config.OnGap).
func (s *Server) sessionsMayBeLost(reason string) {
	select {
	case s.gaps <- struct{}{}:
		s.log.Info("comparing sessions with Redis", zap.String("reason", reason))
	default: // that is under way already
	}
}

const (
	suspectsMax    = 1024                  // that may wait
	comparedAtOnce = 200                   // sessions a round trip
	comparePause   = 20 * time.Millisecond // between two, so that 100 000 sessions take 10 s and Redis has room for others
)

// compareSessions waits for suspects and gaps. It ends with the gateway.
func (s *Server) compareSessions() {
	for {
		select {
		case ses := <-s.suspects:
			s.compareList(s.moreSuspects(ses))
		case <-s.gaps:
			s.compareList(s.table.all())
		case <-s.ctx.Done():
			return
		}
	}
}

// moreSuspects are those that wait, and the first.
func (s *Server) moreSuspects(first *session) []*session {
	list := []*session{first}
	for {
		select {
		case ses := <-s.suspects:
			list = append(list, ses)
		default:
			return list
		}
	}
}

// compareList compares sessions, some at a time. What cannot be read is tried again.
func (s *Server) compareList(list []*session) {
	for len(list) > 0 {
		n := min(len(list), comparedAtOnce)
		if err := s.compare(list[:n]); err != nil {
			s.log.Debug("sessions cannot be compared yet", zap.Error(err))
			if !s.sleep(time.Second) {
				return
			}
			continue
		}
		list = list[n:]
		if !s.sleep(comparePause) {
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
