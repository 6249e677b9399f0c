package client_test

// Tokens: resuming, rotating, falling back, enrolling anew. RELIABILITY rows 40 and 41.

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// recordingStore counts what is saved, and fails when told to.
type recordingStore struct {
	mu     sync.Mutex
	tokens client.Tokens
	saves  int
	fail   error
}

func (s *recordingStore) Load(wire.ClientID) (client.Tokens, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens, nil
}

func (s *recordingStore) Save(_ wire.ClientID, t client.Tokens) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.tokens = t
	s.saves++
	return nil
}

func (s *recordingStore) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// expect compares what is stored now.
func (s *recordingStore) expect(t *testing.T, when string, current, previous wire.Token) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens.Current != current || s.tokens.Previous != previous {
		t.Errorf("%s: the store has not the tokens it should: current %v, previous %v (%v, none wanted %v)", when,
			s.tokens.Current == current, s.tokens.Previous == previous, !s.tokens.Previous.IsZero(), previous.IsZero())
	}
}

func expectToken(t *testing.T, when string, got, want wire.Token) {
	t.Helper()
	if got != want {
		t.Errorf("%s: not the token it should be (none: %v, none wanted: %v)", when, got.IsZero(), want.IsZero())
	}
}

var noToken wire.Token

func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		store := &recordingStore{tokens: client.Tokens{Current: token}}
		cfg := g.config()
		cfg.TokenStore = store
		d := dialInBackground(cfg)
		hello := g.accept().welcome(token)
		expectToken(t, "HELLO", hello.Token, token)
		defer d.wait(t).Close()
		if store.saves != 0 {
			t.Errorf("saves: got %d for a token that did not change", store.saves)
		}
	})
}

// WELCOME may bring a successor: from then on it is the one to send, and the one before
// is kept until it was answered.
func TestResumeBringsSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, old, successor := newFakeGateway(t), newToken(t), newToken(t)
		store := &recordingStore{tokens: client.Tokens{Current: old}}
		cfg := g.config()
		cfg.TokenStore = store
		c, p := g.connect(cfg, successor)
		defer c.Close()
		store.expect(t, "after WELCOME", successor, old)
		a := ask(t.Context(), c, `1`)
		req := p.expectRequest()
		expectToken(t, "REQUEST", req.Token, successor)
		store.expect(t, "before the answer", successor, old)
		p.send(&wire.Response{ID: req.ID, Body: req.Body})
		a.expectAnswer(t, `1`)
		store.expect(t, "after the answer", successor, noToken)
	})
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, first, second := newFakeGateway(t), newToken(t), newToken(t)
		store := &recordingStore{}
		cfg := g.config()
		cfg.TokenStore = store
		rotations := 0
		cfg.Hooks.OnRotate = func() { rotations++ }
		c, p := g.connect(cfg, first, withHeartbeat(time.Second))
		defer c.Close()
		store.expect(t, "after WELCOME", first, noToken)

		beat := expect[*wire.Heartbeat](p)
		expectToken(t, "first HEARTBEAT", beat.Token, first)
		inFlight := ask(t.Context(), c, `"old token"`)
		req := p.expectRequest()
		expectToken(t, "REQUEST before the ack", req.Token, first)

		p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		synctest.Wait()
		store.expect(t, "stored before it is sent", second, first)
		p.send(&wire.Response{ID: req.ID, Body: req.Body})
		inFlight.expectAnswer(t, `"old token"`)
		store.expect(t, "after an answer to the old token", second, first)

		// The gateway repeats it until it is used.
		beat = expect[*wire.Heartbeat](p)
		expectToken(t, "second HEARTBEAT", beat.Token, second)
		store.expect(t, "before the ack", second, first)
		p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		synctest.Wait()
		store.expect(t, "after an answer to the new token", second, noToken)
		if rotations != 1 || store.saves != 3 {
			t.Errorf("got %d rotations and %d saves, want 1 and 3", rotations, store.saves)
		}
	})
}

// RELIABILITY row 40: the ack that carries the new token is lost. The device goes on with
// the old one, on the same connection, and takes the new one from a later ack.
func TestAckWithTokenIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, first, second := newFakeGateway(t), newToken(t), newToken(t)
		c, p := g.connect(g.config(), first, withHeartbeat(time.Second))
		defer c.Close()
		for range 3 {
			beat := expect[*wire.Heartbeat](p) // its ack is lost
			expectToken(t, "HEARTBEAT", beat.Token, first)
		}
		a := ask(t.Context(), c, `1`)
		req := expect[*wire.Request](p)
		expectToken(t, "REQUEST", req.Token, first)
		p.send(&wire.Response{ID: req.ID, Body: req.Body})
		a.expectAnswer(t, `1`)
		expect[*wire.Heartbeat](p)
		p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		beat := expect[*wire.Heartbeat](p)
		expectToken(t, "HEARTBEAT after an ack that came", beat.Token, second)
		if n := len(g.attempts()); n != 1 {
			t.Errorf("connections: got %d, want 1", n)
		}
	})
}

// RELIABILITY row 41: the device restarts before it used the new token, and the
// gateway has forgotten that one meanwhile. The old one works.
func TestRestartBeforeNewTokenIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, first, second := newFakeGateway(t), newToken(t), newToken(t)
		store := &recordingStore{}
		cfg := g.config()
		cfg.TokenStore = store
		c, p := g.connect(cfg, first, withHeartbeat(time.Second))
		expect[*wire.Heartbeat](p)
		p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		synctest.Wait()
		p.close() // power is lost: nothing more is said
		c.Close()
		store.expect(t, "while it is off", second, first)

		d := dialInBackground(cfg)
		p = g.acceptRefusing(t, second, wire.CodeBadToken)
		p.expectEnd()
		hello := g.accept().welcome(first)
		expectToken(t, "second HELLO", hello.Token, first)
		defer d.wait(t).Close()
	})
}

// A token that was never used is replaced by yet another: the gateway has
// forgotten it, and the one before it still counts.
func TestUnusedTokenIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, first, second, third := newFakeGateway(t), newToken(t), newToken(t), newToken(t)
		store := &recordingStore{}
		cfg := g.config()
		cfg.TokenStore = store
		c, p := g.connect(cfg, first, withHeartbeat(time.Second))
		defer c.Close()
		expect[*wire.Heartbeat](p)
		expect[*wire.Heartbeat](p)
		p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		p.send(&wire.HeartbeatAck{Token: third, ExpiresAt: time.Now().Add(time.Hour)}) // to the second one, which had the first token too
		synctest.Wait()
		store.expect(t, "after the second ack", third, first)
	})
}

// Only an ack to a heartbeat with the new token confirms it; those to earlier
// heartbeats may come late.
func TestLateAckDoesNotConfirmToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, first, second := newFakeGateway(t), newToken(t), newToken(t)
		store := &recordingStore{}
		cfg := g.config()
		cfg.TokenStore = store
		c, p := g.connect(cfg, first, withHeartbeat(time.Second))
		defer c.Close()
		expect[*wire.Heartbeat](p)
		expect[*wire.Heartbeat](p)
		p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		beat := expect[*wire.Heartbeat](p)
		expectToken(t, "third HEARTBEAT", beat.Token, second)
		p.send(&wire.HeartbeatAck{}) // to the second
		synctest.Wait()
		store.expect(t, "after the second ack", second, first)
		p.send(&wire.HeartbeatAck{}) // to the third
		synctest.Wait()
		store.expect(t, "after the third ack", second, noToken)
	})
}

// A HELLO that was accepted is an answer to its token: the one before is forgotten.
func TestResumeConfirmsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, first, second := newFakeGateway(t), newToken(t), newToken(t)
		store := &recordingStore{tokens: client.Tokens{Current: second, Previous: first}}
		cfg := g.config()
		cfg.TokenStore = store
		c, _ := g.connect(cfg, second)
		defer c.Close()
		store.expect(t, "after WELCOME", second, noToken)
	})
}

// acceptRefusing answers the next HELLO, which must come with token, with an
// ERROR that closes.
func (g *fakeGateway) acceptRefusing(t *testing.T, token wire.Token, code wire.Code) *peer {
	t.Helper()
	// Dials of clients that are being closed may leave connections that nobody uses.
	p := g.accept()
	hello := expect[*wire.Hello](p)
	expectToken(t, "HELLO", hello.Token, token)
	p.send(wire.Errorf(code, "refused"))
	return p
}

// What a device tries, one connection after the other, when its tokens are refused.
func TestTokenRefusedOnResume(t *testing.T) {
	current, previous := newToken(t), newToken(t)
	for _, test := range []struct {
		name   string
		stored client.Tokens
		code   wire.Code
		tries  []wire.Token // before the HELLO without a token
	}{
		{"bad_token, with the one before", client.Tokens{Current: current, Previous: previous}, wire.CodeBadToken, []wire.Token{current, previous}},
		{"bad_token", client.Tokens{Current: current}, wire.CodeBadToken, []wire.Token{current}},
		{"token_expired", client.Tokens{Current: current, Previous: previous}, wire.CodeTokenExpired, []wire.Token{current}},
		{"token_reused", client.Tokens{Current: current, Previous: previous}, wire.CodeTokenReused, []wire.Token{current}},
		{"revoked", client.Tokens{Current: current, Previous: previous}, wire.CodeRevoked, []wire.Token{current}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, fresh := newFakeGateway(t), newToken(t)
				store := &recordingStore{tokens: test.stored}
				cfg := g.config()
				cfg.TokenStore = store
				d := dialInBackground(cfg)
				for _, want := range test.tries {
					g.acceptRefusing(t, want, test.code)
				}
				hello := g.accept().welcome(fresh)
				expectToken(t, "last HELLO", hello.Token, noToken)
				defer d.wait(t).Close()
				store.expect(t, "at last", fresh, noToken)
				if got := time.Since(g.attempts()[0]); got != 0 {
					t.Errorf("it took %v, want it without a pause", got)
				}
			})
		})
	}
}

// Refused on a live connection: the same rules at the next one.
func TestTokenRefusedOnLiveConnection(t *testing.T) {
	for _, test := range []struct {
		code      wire.Code
		resumeOld bool // with the token before
	}{
		{wire.CodeBadToken, true},
		{wire.CodeTokenExpired, false},
		{wire.CodeTokenReused, false},
		{wire.CodeRevoked, false},
	} {
		t.Run(string(test.code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, first, second := newFakeGateway(t), newToken(t), newToken(t)
				c, p := g.connect(g.config(), first, withHeartbeat(time.Second))
				defer c.Close()
				expect[*wire.Heartbeat](p)
				p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
				a := ask(t.Context(), c, `1`)
				req := p.expectRequest()
				e := wire.Errorf(test.code, "refused")
				e.ID, e.HasID = req.ID, true
				p.send(e)
				if _, err := a.wait(); code(err) != test.code {
					t.Errorf("the request: got %v, want %s", err, test.code)
				}
				want := noToken
				if test.resumeOld {
					want = first
				}
				hello := g.accept().welcome(first)
				expectToken(t, "next HELLO", hello.Token, want)
			})
		})
	}
}

// A gateway that refuses whatever it is told is not hammered.
func TestEnrollingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		cfg := g.config()
		cfg.BackoffBase, cfg.BackoffCap = 500*time.Millisecond, 30*time.Second
		c, p := g.connect(cfg, newToken(t))
		refuseAll := make(chan struct{})
		go func() {
			defer close(refuseAll)
			p.send(wire.Errorf(wire.CodeRevoked, "refused"))
			for p := range g.peers {
				if hello, err := p.next(); err == nil && hello.(*wire.Hello).Token.IsZero() {
					p.send(&wire.Welcome{Token: newToken(t), ExpiresAt: time.Now()})
					p.send(wire.Errorf(wire.CodeRevoked, "refused"))
				} else {
					p.send(wire.Errorf(wire.CodeRevoked, "refused"))
				}
			}
		}()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// On average a wait is half of 30 s at last.
		if n := len(g.attempts()); n < 10 || n > 120 {
			t.Errorf("attempts in ten minutes: got %d, want some tens", n)
		}
		c.Close()
		close(g.peers)
		<-refuseAll
	})
}

// A token that cannot be stored is not used.
func TestStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, first, second := newFakeGateway(t), newToken(t), newToken(t)
		store := &recordingStore{fail: errors.New("disk is full")}
		cfg := g.config()
		cfg.TokenStore = store
		d := dialInBackground(cfg)
		p := g.accept()
		p.welcome(first)
		p.expectEnd()
		<-d.done
		if d.err == nil || !strings.Contains(d.err.Error(), "disk is full") {
			t.Fatalf("enrolling: got %v, want the store's error", d.err)
		}

		store.setFail(nil)
		c, p := g.connect(cfg, first, withHeartbeat(time.Second))
		defer c.Close()
		store.setFail(errors.New("disk is full"))
		expect[*wire.Heartbeat](p)
		p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		beat := expect[*wire.Heartbeat](p)
		expectToken(t, "while the disk is full", beat.Token, first)
		store.setFail(nil)
		p.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		beat = expect[*wire.Heartbeat](p)
		expectToken(t, "when it has room again", beat.Token, second)
	})
}
