package auth

import (
	"context"
	"errors"
	"sync"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/token"
)

// maxPending bounds the revocations that wait to be finished. The record of one that finds no
// place is revoked all the same; whoever presents a token of it next has it finished.
const maxPending = 10_000

// revocations are those that a replay caused and that not every gateway could be told of.
type revocations struct {
	mu  sync.Mutex
	ids map[wire.ClientID]struct{}
}

func newRevocations() *revocations { return &revocations{ids: map[wire.ClientID]struct{}{}} }

func (p *revocations) add(id wire.ClientID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ids) < maxPending {
		p.ids[id] = struct{}{}
	}
}

func (p *revocations) remove(id wire.ClientID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ids, id)
}

// some returns up to n of them.
func (p *revocations) some(n int) []wire.ClientID {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := make([]wire.ClientID, 0, min(n, len(p.ids)))
	for id := range p.ids {
		if len(ids) == n {
			break
		}
		ids = append(ids, id)
	}
	return ids
}

// finishRevocation has a replay's revocation confirmed and the gateways told.
func (s *Server) finishRevocation(ctx context.Context, id wire.ClientID) error {
	why, err := s.store.FinishRevocation(ctx, id)
	switch {
	case errors.Is(err, token.ErrNoRecord):
		return nil // it was replaced, or its time is over
	case errors.Is(err, token.ErrUnconfirmed):
		s.audit.countUnconfirmed(opRevoke)
		return err
	case err != nil:
		return err
	}
	s.log.Warn("token record revoked", zap.Stringer("client_id", id), zap.String("why", string(why)))
	return nil
}

// finishRevocations goes on with those that wait, until one fails.
func (s *Server) finishRevocations(ctx context.Context) {
	for _, id := range s.pending.some(100) {
		ctx, cancel := context.WithTimeout(ctx, s.budget)
		err := s.finishRevocation(ctx, id)
		cancel()
		if err != nil {
			s.log.Warn("a revocation is not finished yet", zap.Stringer("client_id", id), zap.Error(err))
			return
		}
		s.pending.remove(id)
	}
}
