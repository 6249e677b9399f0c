package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/authclient"
)

// tokens is what a connection knows of its device's tokens: their hashes, so that frames need no
// call. Guarded by the session's mu. Times are the wheel's: the gateway's calendar
// has no say.
type tokens struct {
	cur       [sha256.Size]byte
	curExpiry int64
	prev      [sha256.Size]byte // zero: none
	prevUntil int64
	next      *nextToken // nil: none was handed out, or it was used
	rotating  bool       // a rotation is under way
}

// nextToken is a token that the device was told, or will be told with the next ack, and has not used yet.
// It has to be kept as it is: every ack repeats it.
type nextToken struct {
	token     wire.Token
	hash      [sha256.Size]byte
	expiresAt int64 // Unix ms, for the device
	expiry    int64
	// The device has used it while auth-service was away: it counts as good, and
	// the call is repeated.
	used       bool
	confirming bool
	confirmAt  int64
}

func hashToken(t wire.Token) [sha256.Size]byte { return sha256.Sum256(t[:]) }

// expiry is when the connection has no good token any more; 0: never.
func (t *tokens) expiry() int64 {
	if t.next != nil {
		return max(t.curExpiry, t.next.expiry)
	}
	return t.curExpiry
}

// kind says which of a connection's tokens was presented.
type kind uint8

const (
	kindNone kind = iota
	kindCur
	kindPrev
	kindNext
)

// match finds the token of that hash, in a time that does not tell how much of
// it was right.
func (t *tokens) match(hash *[sha256.Size]byte, now int64) kind {
	cur := subtle.ConstantTimeCompare(hash[:], t.cur[:])
	prev := subtle.ConstantTimeCompare(hash[:], t.prev[:])
	next := 0
	if t.next != nil {
		next = subtle.ConstantTimeCompare(hash[:], t.next.hash[:])
	}
	switch {
	case cur == 1:
		return kindCur
	case prev == 1 && now < t.prevUntil:
		return kindPrev
	case next == 1 && now < t.next.expiry:
		return kindNext
	}
	return kindNone
}

// promote makes next the current token, as auth-service has just done; the one it replaces goes on for
// grace.
func (t *tokens) promote(now int64, grace time.Duration) {
	t.prev, t.prevUntil = t.cur, now+int64(grace)
	t.cur, t.curExpiry = t.next.hash, t.next.expiry
	t.next = nil
}

// checkToken decides whether a frame may pass. The reader calls it; a call to auth-service is made only
// for a token that this connection does not know to be good.
func (s *session) checkToken(token wire.Token) (kind, *wire.Error) {
	if token.IsZero() {
		return kindNone, wire.Errorf(wire.CodeAuthRequired, "a token is needed")
	}
	hash := hashToken(token)
	which, known, refused := s.knownToken(&hash)
	if !known {
		refused = s.askAuth(token, hash, which)
	}
	return which, refused
}

// knownToken decides what this connection can decide by itself.
func (s *session) knownToken(hash *[sha256.Size]byte) (which kind, known bool, refused *wire.Error) {
	now := s.srv.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch which = s.tokens.match(hash, now); which {
	case kindCur:
		if now >= s.tokens.curExpiry {
			refused = wire.Errorf(wire.CodeTokenExpired, "the token has expired")
		}
		return which, true, refused
	case kindPrev:
		return which, true, nil
	case kindNext:
		if next := s.tokens.next; next.used {
			s.confirmAgain(next, now)
			return which, true, nil
		}
	}
	return which, false, nil
}

// askAuth lets auth-service decide, while the frame waits.
func (s *session) askAuth(token wire.Token, hash [sha256.Size]byte, which kind) *wire.Error {
	var answer authapi.VerifyAnswer
	var err error
	s.pausing(func() { answer, err = s.verify(token) })
	if err == nil {
		s.adopt(answer, hash)
		return nil
	}
	var refused *wire.Error
	if errors.As(err, &refused) {
		return refused
	}
	if which != kindNext {
		return unavailable(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if next := s.tokens.next; next != nil && next.hash == hash {
		next.used = true
		next.confirmAt = s.srv.now() + int64(s.srv.timings.confirm)
	}
	return nil
}

func (s *session) verify(token wire.Token) (authapi.VerifyAnswer, error) {
	return s.srv.auth.Verify(s.srv.ctx, authapi.VerifyRequest{ClientID: s.client, Token: token, RemoteIP: s.remoteIP()})
}

// adopt takes over what auth-service said of a token that is good.
func (s *session) adopt(answer authapi.VerifyAnswer, hash [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.srv.now()
	expiry := now + answer.ExpiresIn*int64(time.Millisecond)
	t := &s.tokens
	switch {
	case answer.Result == authapi.ResultPrevious:
		t.prev, t.prevUntil = hash, expiry
	case t.next != nil && t.next.hash == hash:
		t.promote(now, time.Duration(answer.GraceMS)*time.Millisecond)
		t.curExpiry = expiry
	case t.cur != hash: // rotated by another connection of this device
		t.prev, t.prevUntil = t.cur, now+answer.GraceMS*int64(time.Millisecond)
		t.cur, t.curExpiry, t.next = hash, expiry, nil
	default:
		t.curExpiry = expiry
	}
	if s.state == stateOpen {
		s.arm(t.expiry())
	}
}

// confirmAgain repeats the verify of a token that was accepted while
// auth-service was away, behind the device's back. mu is held.
func (s *session) confirmAgain(next *nextToken, now int64) {
	if next.confirming || now < next.confirmAt || s.state != stateOpen {
		return
	}
	next.confirming = true
	s.srv.work.Add(1)
	go s.confirm(next.token, next.hash)
}

// confirm ends with the call that it makes.
func (s *session) confirm(token wire.Token, hash [sha256.Size]byte) {
	defer s.srv.work.Done()
	defer s.recoverFault()
	answer, err := s.verify(token)
	var refused *wire.Error
	switch {
	case err == nil:
		s.adopt(answer, hash)
	case errors.As(err, &refused):
		s.refuse(refused)
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		if next := s.tokens.next; next != nil && next.hash == hash {
			next.confirming = false
			next.confirmAt = s.srv.now() + int64(s.srv.timings.confirm)
		}
	}
}

// handleHeartbeat acknowledges, and now and then has the token rotated first: the
// ack then brings the new one, as every ack does until the device uses it.
func (s *session) handleHeartbeat(f wire.Frame) bool {
	s.lastBeat.Store(s.srv.now())
	var beat wire.Heartbeat
	if e := s.decode(f, &beat); e != nil {
		return s.refuse(e)
	}
	if ok, goOn := s.admit(len(f.Payload), nil); !ok {
		return goOn
	}
	which, refused := s.checkToken(beat.Token)
	if refused != nil {
		return s.refuse(refused)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen {
		return false
	}
	if which == kindCur && s.wantsRotation() {
		s.tokens.rotating = true
		s.srv.work.Add(1)
		go s.rotate(beat.Token, s.tokens.cur)
		return true
	}
	s.acknowledge()
	return true
}

// wantsRotation decides by chance, and in the last tenth of the token's life
// always. mu is held.
func (s *session) wantsRotation() bool {
	now := s.srv.now()
	t := &s.tokens
	if t.next != nil && now >= t.next.expiry {
		t.next = nil
	}
	if t.next != nil || t.rotating {
		return false
	}
	rules := &s.srv.settings.Load().doc.Token
	return t.curExpiry-now < int64(rules.TTL)/10 || rand.Float64() < rules.RotateProbability
}

// acknowledge answers a HEARTBEAT. mu is held.
func (s *session) acknowledge() {
	var ack wire.HeartbeatAck
	if next := s.tokens.next; next != nil && !next.used {
		ack = wire.HeartbeatAck{Token: next.token, ExpiresAt: time.UnixMilli(next.expiresAt)}
	}
	if s.send(&ack) {
		s.startFlush()
	}
}

// rotate asks for a successor of the current token and acknowledges the HEARTBEAT that brought
// it, with the successor or without. It ends with the call, within the client's timeout, which is well below the
// time that devices wait for an ack.
func (s *session) rotate(token wire.Token, cur [sha256.Size]byte) {
	defer s.srv.work.Done()
	defer s.recoverFault()
	answer, err := s.srv.auth.Rotate(s.srv.ctx, authapi.RotateRequest{ClientID: s.client, Token: token, Owner: s.owner()})
	var refused *wire.Error
	switch {
	case !errors.As(err, &refused):
	case closesSession(refused.Code):
		s.refuse(refused)
		return
	case refused.Code == authapi.CodeNotCurrent:
		s.srv.suspects.add(s) // another session may have the device
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.tokens
	t.rotating = false
	if s.state != stateOpen {
		return
	}
	if err == nil && t.cur == cur && t.next == nil {
		t.next = &nextToken{
			token: answer.Token, hash: hashToken(answer.Token), expiresAt: answer.ExpiresAt,
			expiry: s.srv.now() + answer.ExpiresIn*int64(time.Millisecond),
		}
	}
	s.acknowledge()
}

// closesSession reports whether a verdict on the token in use means the end of the session.
func closesSession(c wire.Code) bool {
	switch c {
	case wire.CodeBadToken, wire.CodeTokenExpired, wire.CodeTokenReused, wire.CodeRevoked, wire.CodeUnknownClient:
		return true
	}
	return false
}

// authRetry is how long a device is told to wait where auth-service did not say.
const authRetry = 2 * time.Second

// unavailable is what a device is told when its credentials cannot be judged now.
func unavailable(err error) *wire.Error {
	e := wire.Errorf(wire.CodeAuthUnavailable, "this cannot be decided just now")
	e.RetryAfter = authRetry
	var u *authclient.Unavailable
	if errors.As(err, &u) && u.RetryAfter > 0 {
		e.RetryAfter = u.RetryAfter
	}
	e.RetryAfter = jitter(e.RetryAfter)
	return e
}

// jitter spreads d to between once and twice its length, so that those who are
// told to come back do not come together.
func jitter(d time.Duration) time.Duration { return d + time.Duration(rand.Int64N(int64(d)+1)) }

// remoteIP is the device's address for auth-service.
func (s *session) remoteIP() string {
	if !s.sock.remote.IsValid() {
		return ""
	}
	return s.sock.remote.String()
}

// authority is auth-service as sessions need it; see package authclient.
type authority interface {
	Issue(ctx context.Context, r authapi.IssueRequest) (authapi.IssueAnswer, error)
	Verify(ctx context.Context, r authapi.VerifyRequest) (authapi.VerifyAnswer, error)
	Rotate(ctx context.Context, r authapi.RotateRequest) (authapi.RotateAnswer, error)
	Release(ctx context.Context, r []authapi.Release) (authapi.ReleaseAnswer, error)
}
