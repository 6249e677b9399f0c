package auth

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/token"
)

// maxOwner is the longest "node/session", in bytes. Up to 64 Redis stores a record at half the
// price; more is allowed for those whose host names are long.
const maxOwner = 256

func (s *Server) rules(doc *dynamic.Document) token.Rules {
	return token.Rules{TTL: doc.Token.TTL.D(), Grace: doc.Token.Grace.D(), MaxTakeovers: s.cfg.MaxTakeovers}
}

// issue enrols a device.
func (s *Server) issue(ctx context.Context, r request, e *entry) (answer, error) {
	var req authapi.IssueRequest
	if err := decode(r, &req); err != nil {
		return answer{}, err
	}
	ip, err := s.about(e, req.ClientID, req.Owner, req.RemoteIP)
	if err != nil {
		return answer{}, err
	}
	if req.Owner == "" {
		return answer{}, badRequest("owner is missing")
	}
	if err := s.allowed(ip, req.ClientID); err != nil {
		return answer{}, err
	}
	doc := s.document.Load()
	if err := s.prove(doc.Enrolment, &req); err != nil {
		return answer{}, s.refused(ctx, e, err, ip, req.ClientID)
	}
	g, err := s.store.Issue(ctx, token.Enrolment{
		ClientID: req.ClientID, Owner: req.Owner, RegisteredOnly: doc.Enrolment == dynamic.EnrolAllowlist,
	}, s.rules(doc))
	if err != nil {
		return answer{}, s.refused(ctx, e, err, ip, req.ClientID)
	}
	e.gen = g.Generation
	if !g.Confirmed {
		s.audit.countUnconfirmed(opIssue)
	}
	return answer{http.StatusCreated, authapi.IssueAnswer{
		Token: g.Token, ExpiresAt: g.ExpiresAt.UnixMilli(), ExpiresIn: g.ExpiresIn.Milliseconds(),
		Epoch: g.Epoch, PreviousOwner: g.PreviousOwner,
	}}, nil
}

// verify decides on a token, and with a claim makes the caller the owner.
func (s *Server) verify(ctx context.Context, r request, e *entry) (answer, error) {
	var req authapi.VerifyRequest
	if err := decode(r, &req); err != nil {
		return answer{}, err
	}
	owner, remoteIP := "", req.RemoteIP
	if req.Claim != nil {
		if owner, remoteIP = req.Claim.Owner, req.Claim.RemoteIP; owner == "" {
			return answer{}, badRequest("claim.owner is missing")
		}
	}
	ip, err := s.about(e, req.ClientID, owner, remoteIP)
	if err != nil {
		return answer{}, err
	}
	if req.Token.IsZero() {
		return answer{}, badRequest("token is missing")
	}
	if err := s.allowed(ip, req.ClientID); err != nil {
		return answer{}, err
	}
	v, err := s.store.Verify(ctx, req.ClientID, req.Token, owner, s.rules(s.document.Load()))
	if err != nil {
		return answer{}, s.refused(ctx, e, err, ip, req.ClientID)
	}
	e.gen, e.result = v.Generation, string(v.Result)
	a := authapi.VerifyAnswer{
		Result: v.Result, ExpiresAt: v.ExpiresAt.UnixMilli(), ExpiresIn: v.ExpiresIn.Milliseconds(),
		Epoch: v.Epoch, GraceMS: v.GraceLeft.Milliseconds(), PreviousOwner: v.PreviousOwner,
	}
	switch {
	case !v.Fresh.IsZero():
		a.Token = &v.Fresh
	case v.Result == authapi.ResultPrevious:
		a.ExpiresIn = a.GraceMS
	}
	return answer{http.StatusOK, a}, nil
}

// rotate writes the token to follow.
func (s *Server) rotate(ctx context.Context, r request, e *entry) (answer, error) {
	var req authapi.RotateRequest
	if err := decode(r, &req); err != nil {
		return answer{}, err
	}
	if _, err := s.about(e, req.ClientID, req.Owner, ""); err != nil {
		return answer{}, err
	}
	switch {
	case req.Owner == "":
		return answer{}, badRequest("owner is missing")
	case req.Token.IsZero():
		return answer{}, badRequest("token is missing")
	}
	g, err := s.store.Rotate(ctx, req.ClientID, req.Token, req.Owner, s.rules(s.document.Load()))
	if err != nil {
		return answer{}, s.refused(ctx, e, err, netip.Addr{}, req.ClientID)
	}
	e.gen = g.Generation
	return answer{http.StatusOK, authapi.RotateAnswer{
		Token: g.Token, ExpiresAt: g.ExpiresAt.UnixMilli(), ExpiresIn: g.ExpiresIn.Milliseconds(),
	}}, nil
}

// redisDependency is what Redis is called in health and metrics.
const redisDependency = "redis"

var errRedisAway = errors.New("redis does not answer")

// release gives sessions up.
func (s *Server) release(ctx context.Context, r request, e *entry) (answer, error) {
	var sessions []authapi.Release
	e.batch = &batch{}
	if err := decode(r, &sessions); err != nil {
		return answer{}, err
	}
	for _, x := range sessions {
		if x.ClientID == (wire.ClientID{}) {
			return answer{}, badRequest("client_id is missing")
		}
	}
	e.batch.sessions = len(sessions)
	if len(sessions) == 0 { // a gateway that asks whether calls are of use
		if s.health.Degraded(redisDependency) != "" {
			return answer{}, errRedisAway
		}
		return answer{http.StatusOK, authapi.ReleaseAnswer{}}, nil
	}
	n, err := s.store.Release(ctx, sessions)
	e.batch.released = n
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, authapi.ReleaseAnswer{Released: n}}, nil
}

// about checks who a request is about and notes it for the audit. An empty remoteIP gives an
// invalid address, which no limit applies to.
func (s *Server) about(e *entry, id wire.ClientID, owner, remoteIP string) (ip netip.Addr, err error) {
	if id == (wire.ClientID{}) {
		return ip, badRequest("client_id is missing")
	}
	e.clientID = id
	if owner != "" {
		node, session, ok := strings.Cut(owner, "/")
		if !ok || len(owner) > maxOwner || !printable(node) || !printable(session) {
			return ip, badRequest("owner must be node/session")
		}
		e.by(owner)
	}
	if remoteIP != "" {
		if ip, err = netip.ParseAddr(remoteIP); err != nil {
			return ip, badRequest("remote_ip is not an address")
		}
		e.remoteIP = ip.String()
	}
	return ip, nil
}

// printable reports whether a name has characters, and none that a log line could trip over.
func printable(name string) bool {
	for i := range len(name) {
		if name[i] <= ' ' || name[i] >= 0x7f {
			return false
		}
	}
	return name != ""
}

func limited(retry time.Duration) error {
	return &apiError{status: http.StatusTooManyRequests, code: wire.CodeRateLimited,
		detail: "too many wrong tokens or proofs from this address", retryAfter: retry}
}

// allowed refuses those who guessed too often, before anything of theirs is looked at.
func (s *Server) allowed(ip netip.Addr, id wire.ClientID) error {
	if retry := s.guesses.Limited(ip, id); retry > 0 {
		return limited(retry)
	}
	return nil
}

// refused is what an operation's error leads to: a wrong guess, a quarantine and an unconfirmed write
// are counted, a revocation is finished. It returns the error to answer with.
func (s *Server) refused(ctx context.Context, e *entry, err error, ip netip.Addr, id wire.ClientID) error {
	var refusal *token.Refusal
	switch {
	case errors.As(err, &refusal) && refusal.Code == wire.CodeRateLimited:
		s.audit.quarantined.Inc()
	case refusal != nil && refusal.Unfinished:
		if s.finishRevocation(ctx, id) != nil {
			s.pending.add(id)
		}
	case errors.Is(err, errProof), refusal != nil && refusal.Code == wire.CodeBadToken:
		retry, countErr := s.guesses.Wrong(ctx, ip, id)
		if countErr != nil {
			s.log.Warn("a wrong guess was not counted", zap.Error(countErr))
		} else if retry > 0 {
			return limited(retry)
		}
	case errors.Is(err, token.ErrUnconfirmed):
		s.audit.countUnconfirmed(e.operation)
	}
	return err
}
