package gateway

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/authclient"
	"github.com/goshield/goshield/services/gateway/registry"
)

// rotatingDoc rotates with every heartbeat that may.
func rotatingDoc(grace time.Duration) dynamic.Document {
	doc := testDoc()
	doc.Token.RotateProbability = 1
	doc.Token.Grace = dynamic.Duration(grace)
	return doc
}

// rotated is a device that has been told a successor of its token.
func (r *rig) rotated(t *testing.T, id wire.ClientID) (d *device, next wire.Token) {
	t.Helper()
	d = r.enrolled(t, id)
	ack := d.beat()
	if ack.Token.IsZero() || ack.Token == d.token || !ack.ExpiresAt.After(time.Now()) {
		t.Fatalf("ack = %+v, want a new token and its expiry", ack)
	}
	return d, ack.Token
}

func TestTokenInUseNeedsNoCall(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		for i := range uint32(20) {
			d.roundTrip(i)
		}
		if n := r.auth.called("verify"); n != 0 {
			t.Errorf("calls of verify = %d, want 0", n)
		}
	})
}

func TestNewTokenIsPromotedWhenFirstUsed(t *testing.T) {
	bubble(t, rotatingDoc(10*time.Second), func(t *testing.T, r *rig) {
		d, next := r.rotated(t, clientID(1))
		old := d.token
		d.token = next
		d.roundTrip(1)
		d.roundTrip(2)
		if n := r.auth.called("verify"); n != 1 {
			t.Errorf("calls of verify = %d, want 1: the first use", n)
		}
		d.token = old // a frame that was under way
		d.roundTrip(3)
		if n := r.auth.called("verify"); n != 1 {
			t.Errorf("calls of verify after a frame within the grace = %d, want 1", n)
		}
		time.Sleep(11 * time.Second)
		d.request(4, `1`)
		d.wantClosed(wire.CodeTokenReused)
	})
}

// RELIABILITY row 40: every ack repeats the new token until it is used.
func TestLostAck(t *testing.T) {
	bubble(t, rotatingDoc(10*time.Second), func(t *testing.T, r *rig) {
		d, next := r.rotated(t, clientID(1))
		for i := range uint32(3) { // the device has seen nothing of it
			time.Sleep(20 * time.Second)
			d.roundTrip(i)
			if ack := d.beat(); ack.Token != next {
				t.Fatalf("ack %d brings another token than the first one, want the same", i)
			}
		}
		if n := r.auth.called("rotate"); n != 1 {
			t.Errorf("calls of rotate = %d, want 1", n)
		}
		d.token = next
		d.roundTrip(9)
		if ack := d.beat(); ack.Token.IsZero() || ack.Token == next {
			t.Errorf("ack after the promotion = %+v, want the next successor", ack)
		}
	})
}

// RELIABILITY row 41: a device restarts before it used the new token.
func TestRestartBeforeNewTokenIsUsed(t *testing.T) {
	bubble(t, rotatingDoc(10*time.Second), func(t *testing.T, r *rig) {
		d, next := r.rotated(t, clientID(1))
		_ = d.conn.Close()
		for name, token := range map[string]wire.Token{"old": d.token, "new": next} {
			again := r.connect(t)
			again.hello(clientID(1), token)
			again.roundTrip(1)
			if name == "new" {
				break
			}
			_ = again.conn.Close()
		}
	})
}

// RELIABILITY row 42: a replaced token that is replayed closes every connection.
func TestReplayClosesEveryConnection(t *testing.T) {
	bubble(t, rotatingDoc(time.Second), func(t *testing.T, r *rig) {
		d, next := r.rotated(t, clientID(1))
		stolen := d.token
		d.token = next
		d.roundTrip(1)
		time.Sleep(2 * time.Second)
		thief := r.connect(t)
		thief.send(&wire.Hello{ClientID: clientID(1), Token: stolen})
		thief.wantClosed(wire.CodeTokenReused)
		r.revoked(registry.Revocation{ClientID: clientID(1), Code: wire.CodeTokenReused, Announced: true}) // as the feed announces it
		d.wantClosed(wire.CodeTokenReused)
	})
}

func TestGraceOfZero(t *testing.T) {
	bubble(t, rotatingDoc(0), func(t *testing.T, r *rig) {
		d, next := r.rotated(t, clientID(1))
		old := d.token
		d.token = next
		d.roundTrip(1)
		d.token = old
		d.request(2, `1`)
		d.wantClosed(wire.CodeTokenReused)
	})
}

// A HELLO with the previous token, within its grace, brings a fresh one.
func TestResumeWithPreviousToken(t *testing.T) {
	bubble(t, rotatingDoc(10*time.Second), func(t *testing.T, r *rig) {
		d, next := r.rotated(t, clientID(1))
		old := d.token
		d.token = next
		d.roundTrip(1)
		again := r.connect(t)
		again.hello(clientID(1), old)
		if again.token == old || again.token == next {
			t.Error("WELCOME brings a token that was known, want a fresh one")
		}
		again.roundTrip(1)
	})
}

func TestExpiredTokenOnHello(t *testing.T) {
	doc := testDoc()
	doc.Token.TTL = dynamic.Duration(30 * time.Second)
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		_ = d.conn.Close()
		time.Sleep(31 * time.Second)
		again := r.connect(t)
		again.send(&wire.Hello{ClientID: clientID(1), Token: d.token})
		again.wantClosed(wire.CodeTokenExpired)
	})
}

// RELIABILITY row 47: who is connected stays, who comes is told when to come back.
func TestAuthServiceAway(t *testing.T) {
	bubble(t, rotatingDoc(10*time.Second), func(t *testing.T, r *rig) {
		d, next := r.rotated(t, clientID(1))
		old := d.token
		other := r.enrolled(t, clientID(2))
		r.auth.set(func() { r.auth.down = true })
		d.roundTrip(1)
		if ack := other.beat(); !ack.Token.IsZero() {
			t.Errorf("ack = %+v, want one without a token: nothing rotates", ack)
		}
		other.roundTrip(1)
		for _, token := range []wire.Token{{}, d.token} {
			late := r.connect(t)
			late.send(&wire.Hello{ClientID: clientID(3), Token: token})
			if e := late.wantClosed(wire.CodeAuthUnavailable); e.RetryAfter <= 0 {
				t.Errorf("error = %+v, want retry_after_ms", e)
			}
		}
		// The new token counts although it cannot be confirmed; so does the old one.
		d.token = next
		d.roundTrip(2)
		d.token = old
		d.roundTrip(3)
		d.token = next
		before := r.auth.called("verify")
		time.Sleep(3 * time.Second)
		d.roundTrip(4) // the call is repeated behind it
		synctest.Wait()
		if n := r.auth.called("verify"); n != before+1 {
			t.Errorf("calls of verify after the pause = %d, want %d", n, before+1)
		}
		r.auth.set(func() { r.auth.down = false })
		time.Sleep(3 * time.Second)
		d.roundTrip(5)
		synctest.Wait()
		r.auth.set(func() {
			if dev := r.auth.devices[clientID(1)]; dev.cur != next {
				t.Error("the new token was not promoted after auth-service came back, want it to be")
			}
		})
		if ack := d.beat(); ack.Token.IsZero() {
			t.Error("nothing rotates after auth-service came back, want a new token")
		}
	})
}

// A token that the connection does not know cannot be judged while auth-service is away.
func TestUnknownTokenWhileAuthServiceIsAway(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		r.auth.set(func() { r.auth.down = true })
		d.token = newToken()
		d.request(1, `1`)
		d.wantClosed(wire.CodeAuthUnavailable)
	})
}

// A slow auth-service delays the ack of the heartbeat that wants a rotation, and nothing else.
func TestSlowRotationDoesNotStall(t *testing.T) {
	bubble(t, rotatingDoc(10*time.Second), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		r.auth.delay = 2 * time.Second
		d.send(&wire.Heartbeat{Token: d.token})
		begun := time.Now()
		d.roundTrip(1)
		if took := time.Since(begun); took != 0 {
			t.Errorf("a request behind the heartbeat took %v, want no time", took)
		}
		var ack wire.HeartbeatAck
		d.want(&ack)
		if ack.Token.IsZero() {
			t.Error("ack without a token, want the new one")
		}
	})
}

func TestRotationRefusedForGood(t *testing.T) {
	bubble(t, rotatingDoc(10*time.Second), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		r.auth.set(func() { r.auth.devices[clientID(1)].revoked = true })
		d.send(&wire.Heartbeat{Token: d.token})
		d.wantClosed(wire.CodeRevoked)
	})
}

// Another connection of the device has rotated: the token is not the current one any
// more, but it is no fault either.
func TestRotationOfAnotherTokenIsNoFault(t *testing.T) {
	bubble(t, rotatingDoc(10*time.Second), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		r.auth.set(func() {
			dev := r.auth.devices[clientID(1)]
			dev.prev, dev.prevUntil, dev.cur = dev.cur, time.Now().Add(time.Minute), newToken()
		})
		if ack := d.beat(); !ack.Token.IsZero() {
			t.Errorf("ack = %+v, want one without a token", ack)
		}
		d.roundTrip(1)
	})
}

func TestRotationByChance(t *testing.T) {
	doc := testDoc()
	doc.Token.RotateProbability = 0.25
	doc.Heartbeat.Interval = dynamic.Duration(time.Second)
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		rotations := 0
		for range 400 {
			if ack := d.beat(); !ack.Token.IsZero() {
				d.token = ack.Token
				rotations++
			}
		}
		if rotations < 50 || rotations > 160 { // 100 expected; ±50 is more than five sigma
			t.Errorf("rotations in 400 heartbeats at 0.25 = %d, want about 100", rotations)
		}
	})
}

func TestMatchKnowsEveryToken(t *testing.T) {
	cur, prev, next, none := newToken(), newToken(), newToken(), newToken()
	tk := tokens{cur: hashToken(cur), curExpiry: 1000, prev: hashToken(prev), prevUntil: 100,
		next: &nextToken{hash: hashToken(next), expiry: 2000}}
	for _, tt := range []struct {
		name  string
		token wire.Token
		now   int64
		want  kind
	}{
		{"current", cur, 50, kindCur},
		{"current, expired: still known", cur, 1500, kindCur},
		{"previous within grace", prev, 99, kindPrev},
		{"previous after grace", prev, 100, kindNone},
		{"next", next, 50, kindNext},
		{"next, expired", next, 2000, kindNone},
		{"unknown", none, 50, kindNone},
		{"zero", wire.Token{}, 50, kindNone},
	} {
		hash := hashToken(tt.token)
		if got := tk.match(&hash, tt.now); got != tt.want {
			t.Errorf("%s: match = %d, want %d", tt.name, got, tt.want)
		}
	}
	if got := tk.expiry(); got != 2000 {
		t.Errorf("expiry with a successor = %d, want 2000", got)
	}
}

// What auth-service says of a time is a span: the gateway's calendar may be wrong (RELIABILITY row 46).
func TestExpiryGoesByTheSpan(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		ses := r.table.find(clientID(1))
		ses.adopt(authapi.VerifyAnswer{Result: authapi.ResultOK, ExpiresAt: time.Now().Add(-10 * time.Minute).UnixMilli(), ExpiresIn: 60000}, hashToken(d.token))
		time.Sleep(50 * time.Second)
		d.roundTrip(1)
		begun := time.Now()
		d.wantClosed(wire.CodeTokenExpired)
		wantAfter(t, "closed", begun, 10*time.Second)
	})
}

func TestUnavailableSaysWhenToComeBack(t *testing.T) {
	for _, tt := range []struct {
		name     string
		err      error
		min, max time.Duration
	}{
		{"auth-service says so", &authclient.Unavailable{RetryAfter: 10 * time.Second, Err: errors.New("x")}, 10 * time.Second, 20 * time.Second},
		{"it does not", &authclient.Unavailable{Err: errors.New("x")}, authRetry, 2 * authRetry},
	} {
		if e := unavailable(tt.err); e.RetryAfter < tt.min || e.RetryAfter > tt.max || !e.Close {
			t.Errorf("%s: error = %+v, want close and retry_after from %v to %v", tt.name, e, tt.min, tt.max)
		}
	}
}
