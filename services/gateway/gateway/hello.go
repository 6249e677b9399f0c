package gateway

import (
	"crypto/rand"
	"errors"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// The opening of a session: HELLO, perhaps CHALLENGE and PROOF, then WELCOME.

// handleOpening deals with a frame that comes before WELCOME. It reports whether the session goes
// on.
func (s *session) handleOpening(f wire.Frame) bool {
	s.mu.Lock()
	s.version = f.Version
	s.json = f.Version == wire.Version1 || (s.other != nil && s.other.bodiesAreJSON())
	s.mu.Unlock()
	switch {
	case f.Type == wire.TypeBye:
		s.end(closedBye, nil)
		return false
	case s.stage == stageHello && f.Type == wire.TypeHello:
		return s.handleHello(f)
	case s.stage == stageHello:
		return s.refuse(wire.Errorf(wire.CodeAuthRequired, "%s before HELLO", f.Type))
	case f.Type == wire.TypeProof:
		return s.handleProof(f)
	}
	return s.refuse(wire.Errorf(wire.CodeBadFrame, "%s instead of PROOF", f.Type))
}

func (s *session) handleHello(f wire.Frame) bool {
	var hello wire.Hello
	if e := s.decode(f, &hello); e != nil {
		return s.refuse(e)
	}
	s.mu.Lock()
	s.client = hello.ClientID
	s.mu.Unlock()
	if !hello.Token.IsZero() {
		return s.resume(hello.Token)
	}
	switch s.srv.settings.Load().doc.Enrolment {
	case dynamic.EnrolKey:
		if s.other != nil {
			return s.refuse(wire.Errorf(wire.CodeBadProof, "enrolment asks for a proof of the device key, for which there is no room in this protocol"))
		}
		return s.challenge()
	case dynamic.EnrolMTLS:
		return s.enrol(authapi.IssueRequest{CertificateClientID: s.certificateClientID()})
	}
	return s.enrol(authapi.IssueRequest{})
}

// certificateClientID is the device's client_id if its certificate names it, any other name in
// it if not, and "" without a certificate.
func (s *session) certificateClientID() string {
	c, ok := s.conn.(certified)
	if !ok {
		return ""
	}
	other := ""
	for _, name := range c.certificateNames() {
		if name == s.client.String() {
			return name
		}
		other = name
	}
	return other
}

// challenge asks the device to prove that it knows its key.
func (s *session) challenge() bool {
	s.nonce = new([32]byte)
	_, _ = rand.Read(s.nonce[:]) // never fails
	s.stage = stageProof
	s.mu.Lock()
	defer s.mu.Unlock()
	s.helloBy = s.srv.now() + int64(s.srv.timings.hello)
	s.arm(s.helloBy)
	if s.state == stateOpening && s.send(&wire.Challenge{Nonce: *s.nonce}) {
		s.startFlush()
	}
	return true
}

func (s *session) handleProof(f wire.Frame) bool {
	var proof wire.Proof
	if e := s.decode(f, &proof); e != nil {
		return s.refuse(e)
	}
	var binding [32]byte // zero where a listener's clients cannot bind
	if b, ok := s.conn.(binder); ok && s.srv.cfg.TLS.ChannelBinding != bindingNone {
		var err error
		if binding, err = b.binding(); err != nil {
			return s.refuse(wire.Errorf(wire.CodeBadProof, "this TLS connection cannot be bound to: TLS 1.3, or 1.2 with extended master secret, is needed"))
		}
	}
	return s.enrol(authapi.IssueRequest{Proof: proof.Proof[:], Nonce: s.nonce[:], Binding: binding[:]})
}

// enrol has a new token issued. r holds what the device proved.
func (s *session) enrol(r authapi.IssueRequest) bool {
	r.ClientID, r.Owner, r.RemoteIP = s.client, s.owner(), s.remoteIP()
	s.helloCame()
	answer, err := s.srv.auth.Issue(s.srv.ctx, r)
	if err != nil {
		return s.notWelcome(err)
	}
	return s.welcome(granted{
		token: answer.Token, expiresAt: answer.ExpiresAt, expiresIn: answer.ExpiresIn,
		epoch: answer.Epoch, previousOwner: answer.PreviousOwner,
	})
}

// resume has the presented token verified, and the session claimed.
func (s *session) resume(token wire.Token) bool {
	s.helloCame()
	answer, err := s.srv.auth.Verify(s.srv.ctx, authapi.VerifyRequest{
		ClientID: s.client, Token: token, Claim: &authapi.Claim{Owner: s.owner(), RemoteIP: s.remoteIP()},
	})
	if err != nil {
		return s.notWelcome(err)
	}
	if answer.Token != nil {
		token = *answer.Token
	}
	return s.welcome(granted{
		token: token, expiresAt: answer.ExpiresAt, expiresIn: answer.ExpiresIn,
		epoch: answer.Epoch, previousOwner: answer.PreviousOwner,
	})
}

// helloCame ends the device's deadline: what follows takes the gateway's time.
func (s *session) helloCame() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.helloBy = 0
}

// notWelcome ends a session that auth-service refused, or could not judge.
func (s *session) notWelcome(err error) bool {
	var refused *wire.Error
	if errors.As(err, &refused) {
		return s.refuse(refused)
	}
	s.srv.unsure.note(s.client, s.srv.now()) // it may have let the session in, and its answer was lost
	return s.refuse(unavailable(err))
}

// granted is what auth-service gave.
type granted struct {
	token         wire.Token
	expiresAt     int64 // Unix ms
	expiresIn     int64 // ms
	epoch         int64
	previousOwner string
}

// welcome opens the session. WELCOME is queued before anybody else can find the
// session, so that it is the first frame after the opening, and leaves when everybody can. Whatever becomes of
// the session, it has taken the device from those before it, and nobody else is told of them.
func (s *session) welcome(g granted) bool {
	s.srv.evictElsewhere(g.previousOwner, s.client, g.epoch)
	if !s.openState(g) {
		s.srv.endLocal(s.client, g.epoch)
		s.srv.releases.add(s.client, g.epoch) // closed meanwhile: nobody will use what was claimed
		return false
	}
	older, newest := s.srv.table.claim(s)
	if !newest {
		s.takenOver()
		return true
	}
	if older != nil {
		older.takenOver()
	}
	if s.srv.table.revokedLately(s.client, s.srv.now()) {
		// Did the device enrol after that? Its record tells. While auth-service was asked, either may have come first; and a
		// primary of Redis that was cut off before the revocation knows nothing of it (ADR 0007).
		s.srv.suspects.add(s)
	}
	s.mu.Lock()
	open := s.state == stateOpen
	if open {
		s.startFlush()
	}
	s.mu.Unlock()
	if !open {
		s.srv.table.remove(s.client, s) // it closed before it was found there
		return false
	}
	s.srv.sendAwayIfDraining(s)
	return true
}

// openState makes the session open and queues WELCOME, which startFlush has yet to send; false
// if it closed meanwhile.
func (s *session) openState(g granted) bool {
	set := s.srv.settings.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpening {
		return false
	}
	now := s.srv.now()
	s.state, s.stage, s.nonce = stateOpen, stageOpen, nil
	s.epoch, s.told = g.epoch, set
	s.tokens.cur, s.tokens.curExpiry = hashToken(g.token), now+g.expiresIn*int64(time.Millisecond)
	s.in.SetLimit(set.doc.Frame.MaxBytes)
	s.lastFrame.Store(now)
	s.lastBeat.Store(now)
	s.armSilence()
	s.arm(s.tokens.expiry())
	s.armParking()
	s.srv.metrics.handshaking.Dec()
	s.srv.metrics.active.Inc()
	welcome := wire.Welcome{
		Token: g.token, ExpiresAt: time.UnixMilli(g.expiresAt),
		Heartbeat: set.doc.Heartbeat.Interval.D(), IdleTimeout: set.doc.IdleTimeout.D(),
		MaxFrame: set.doc.Frame.MaxBytes, Session: s.name(),
	}
	if s.other != nil {
		s.other.welcomed(&welcome, set.doc.MaxInFlight)
		s.armSilence()
	}
	return s.send(&welcome)
}
