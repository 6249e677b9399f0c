package gateway

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

func TestSecondConnectionWins(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		first := r.enrolled(t, clientID(1))
		first.roundTrip(1)
		second := r.connect(t)
		second.hello(clientID(1), first.token)
		first.wantClosed(wire.CodeTakenOver)
		second.roundTrip(1)
		if r.table.find(clientID(1)).name() != second.welcome.Session {
			t.Error("the table has another session, want the second")
		}
		time.Sleep(2 * releaseEvery)
		if n := r.auth.releasedCount(); n != 0 {
			t.Errorf("sessions released = %d, want 0: the device has a newer one", n)
		}
	})
}

// Whose claim came first has lost, even if its WELCOME comes last.
func TestClaimsThatOvertakeEachOther(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		newer, older := r.enrolled(t, clientID(1)), r.enrolled(t, clientID(2))
		loser := r.table.find(clientID(2))
		loser.mu.Lock()
		loser.client = clientID(1) // a claim of the same device, of a lower epoch
		loser.epoch = r.table.find(clientID(1)).epoch - 1
		loser.mu.Unlock()
		if _, newest := r.table.claim(loser); newest {
			t.Fatal("the lower epoch won, want it to lose")
		}
		loser.takenOver()
		older.wantClosed(wire.CodeTakenOver)
		newer.roundTrip(1)
	})
}

// After GOAWAY the old connection answers what is in flight and closes without an ERROR.
func TestTakeoverAfterGoaway(t *testing.T) {
	for _, inFlight := range []bool{true, false} {
		bubble(t, testDoc(), func(t *testing.T, r *rig) {
			first := r.enrolled(t, clientID(1))
			r.table.find(clientID(1)).goAway(reasonRebalance, 0, time.Minute)
			var goaway wire.Goaway
			r.router.holding(inFlight)
			if inFlight {
				// Sent before GOAWAY was read.
				r.table.find(clientID(1)).goneAt = r.now() + int64(time.Hour)
				first.request(1, `1`)
				synctest.Wait()
			}
			first.want(&goaway)
			second := r.connect(t)
			second.hello(clientID(1), first.token)
			if inFlight {
				first.quiet(time.Second)
				if n := r.router.answerAll(); n != 1 {
					t.Fatalf("requests in flight = %d, want 1", n)
				}
				var resp wire.Response
				first.want(&resp)
			}
			first.wantEnd()
			r.router.holding(false)
			second.roundTrip(1)
		})
	}
}

// A backend that never answers does not hold the old connection for ever.
func TestTakeoverAfterGoawayIsBounded(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		r.router.holding(true)
		first := r.enrolled(t, clientID(1))
		first.request(1, `1`)
		synctest.Wait()
		r.table.find(clientID(1)).goAway(reasonRebalance, 0, time.Hour)
		var goaway wire.Goaway
		first.want(&goaway)
		begun := time.Now()
		second := r.connect(t)
		second.hello(clientID(1), first.token)
		first.wantEnd()
		wantAfter(t, "closed", begun, r.timings.finish)
	})
}

func TestManyTakeoversAtOnce(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		first := r.enrolled(t, clientID(1))
		devices := []*device{first}
		for range 50 {
			d := r.connect(t)
			d.token = first.token
			devices = append(devices, d)
		}
		for _, d := range devices[1:] {
			d.send(&wire.Hello{ClientID: clientID(1), Token: first.token})
		}
		synctest.Wait()
		time.Sleep(5 * time.Second)
		alive := 0
		for _, d := range devices {
			last := wire.TypeWelcome
			ended := false
			for len(d.frames) > 0 {
				f, ok := <-d.frames
				if !ok {
					ended = true
					break
				}
				last = f.Type
			}
			if !ended && last == wire.TypeWelcome {
				alive++
				d.t = t
				d.roundTrip(1)
			}
		}
		if alive != 1 {
			t.Errorf("connections that are still served = %d, want 1", alive)
		}
		if n := len(r.table.all()); n != 1 {
			t.Errorf("sessions = %d, want 1", n)
		}
	})
}

// A revocation that arrives while auth-service is asked counts.
func TestRevokedWhileOpening(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		_ = d.conn.Close()
		r.auth.delay = time.Second
		again := r.connect(t)
		again.send(&wire.Hello{ClientID: clientID(1), Token: d.token})
		synctest.Wait()
		r.nodes.setRecord(clientID(1), registry.Record{Known: true, Revoked: wire.CodeRevoked})
		r.revoked(registry.Revocation{ClientID: clientID(1), Code: wire.CodeRevoked, Announced: true})
		var w wire.Welcome
		again.want(&w)
		again.wantClosed(wire.CodeRevoked)
		// Enrolling after that is another matter, although the stream repeats the revocation.
		r.auth.set(func() { r.auth.delay = 0 })
		r.nodes.setRecord(clientID(1), registry.Record{Known: true})
		anew := r.enrolled(t, clientID(1))
		r.revoked(registry.Revocation{ClientID: clientID(1), Code: wire.CodeRevoked})
		synctest.Wait()
		anew.roundTrip(1)
		r.nodes.setRecord(clientID(1), registry.Record{Known: true, Revoked: wire.CodeRevoked})
		r.revoked(registry.Revocation{ClientID: clientID(1), Code: wire.CodeRevoked})
		anew.wantClosed(wire.CodeRevoked)
	})
}

// A verdict from a primary of Redis that was cut off before a revocation, on a token presented after it, is not believed for long.
func TestResumedAfterTheRevocation(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		r.nodes.setRecord(clientID(1), registry.Record{Known: true, Revoked: wire.CodeRevoked})
		r.revoked(registry.Revocation{ClientID: clientID(1), Code: wire.CodeRevoked, Announced: true})
		d.wantClosed(wire.CodeRevoked)
		time.Sleep(time.Duration(revokedMemory) / 2)
		again := r.connect(t)
		again.send(&wire.Hello{ClientID: clientID(1), Token: d.token}) // the fake auth-service has not heard of it
		var w wire.Welcome
		again.want(&w)
		again.wantClosed(wire.CodeRevoked)
	})
}

// RELIABILITY row 22: after a sleep, sessions that Redis gives to others end; those of which it knows
// nothing stay.
func TestSessionsAreComparedAfterAGap(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		gone, revoked, mine, unknown := r.enrolled(t, clientID(1)), r.enrolled(t, clientID(2)), r.enrolled(t, clientID(3)), r.enrolled(t, clientID(4))
		r.nodes.setRecord(clientID(1), registry.Record{Known: true, Owner: registry.Owner{Node: "gw-2", Session: "a", Epoch: r.table.find(clientID(1)).epoch + 1}})
		r.nodes.setRecord(clientID(2), registry.Record{Known: true, Revoked: wire.CodeTokenReused})
		r.nodes.setRecord(clientID(3), registry.Record{Known: true, Owner: registry.Owner{Node: "gw-1", Session: mine.welcome.Session, Epoch: r.table.find(clientID(3)).epoch}})
		r.sessionsMayBeLost("a test")
		gone.wantClosed(wire.CodeTakenOver)
		revoked.wantClosed(wire.CodeTokenReused)
		mine.roundTrip(1)
		unknown.roundTrip(1)
	})
}

func TestEvictComparesEpochs(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		epoch := r.table.find(clientID(1)).epoch
		if r.endLocal(clientID(1), epoch) || r.endLocal(clientID(1), epoch-1) {
			t.Error("a takeover of an epoch that is not higher ended the session, want it to stay")
		}
		d.roundTrip(1)
		if !r.endLocal(clientID(1), epoch+1) {
			t.Error("a takeover of a higher epoch found no session, want it ended")
		}
		d.wantClosed(wire.CodeTakenOver)
	})
}
