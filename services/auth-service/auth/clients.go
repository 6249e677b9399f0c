package auth

import (
	"context"
	"errors"
	"net/http"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/token"
)

// pageSize is about how many devices one page of a list has.
const pageSize = 200

// showClient answers with a record's state.
func (s *Server) showClient(ctx context.Context, r request, e *entry) (answer, error) {
	id, err := pathClientID(r, e)
	if err != nil {
		return answer{}, err
	}
	st, err := s.store.Get(ctx, id)
	if err != nil {
		return answer{}, err
	}
	e.gen = st.Generation
	state := authapi.ClientState{
		ClientID: id, Generation: st.Generation, ExpiresAt: st.ExpiresAt.UnixMilli(),
		Owner: st.Owner, Epoch: st.Epoch, Revoked: st.Revoked != "",
	}
	if !st.LastRotated.IsZero() {
		state.LastRotated = st.LastRotated.UnixMilli()
	}
	return answer{http.StatusOK, state}, nil
}

// revoke revokes a device's tokens.
func (s *Server) revoke(ctx context.Context, r request, e *entry) (answer, error) {
	id, err := pathClientID(r, e)
	if err != nil {
		return answer{}, err
	}
	if _, err := s.store.Revoke(ctx, id); err != nil {
		if errors.Is(err, token.ErrUnconfirmed) {
			s.audit.countUnconfirmed(opRevoke)
		}
		return answer{}, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// listDevices answers with a page of the registered devices.
func (s *Server) listDevices(ctx context.Context, r request, _ *entry) (answer, error) {
	list, err := s.devices.List(ctx, r.cursor, pageSize)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, list}, nil
}

// putDevice registers, blocks and unblocks. A device that is blocked loses its token, too.
func (s *Server) putDevice(ctx context.Context, r request, e *entry) (answer, error) {
	id, err := pathClientID(r, e)
	if err != nil {
		return answer{}, err
	}
	var change authapi.DeviceChange
	if len(r.body) > 0 {
		if err := decode(r, &change); err != nil {
			return answer{}, err
		}
	}
	state, err := s.devices.Put(ctx, id, change.Blocked)
	if err != nil {
		return answer{}, err
	}
	if state.Blocked {
		if err := s.bar(ctx, id); err != nil {
			return answer{}, err
		}
	}
	return answer{http.StatusOK, state}, nil
}

// removeDevice forgets a registration, and the token that was enrolled under it.
func (s *Server) removeDevice(ctx context.Context, r request, e *entry) (answer, error) {
	id, err := pathClientID(r, e)
	if err != nil {
		return answer{}, err
	}
	if err := s.devices.Remove(ctx, id); err != nil {
		return answer{}, err
	}
	if err := s.bar(ctx, id); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// bar ends what a device has now: without it, a token that lives would go on being rotated. The
// registration changed before, so nothing new is issued by the old one.
func (s *Server) bar(ctx context.Context, id wire.ClientID) error {
	_, err := s.store.Revoke(ctx, id)
	switch {
	case errors.Is(err, token.ErrNoRecord):
		return nil
	case errors.Is(err, token.ErrUnconfirmed):
		s.audit.countUnconfirmed(opRevoke)
	}
	return err
}
