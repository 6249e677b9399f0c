package gateway

import (
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

// A device that goes on to a third gateway before the one in the middle is done with it: the first one has to hear of it all the same.

// The eviction by the third session comes before the second has its place in the table: the second loses, and yet it is the one that took the
// device from the first.
func TestLoserEndsItsPredecessor(t *testing.T) {
	w := newWorld(t, testDoc())
	a, b := w.gateway("gw-a", nil), w.gateway("gw-b", nil)
	awaitNodes(t, b, "gw-a")
	first := w.enrolled(a, clientID(1))
	later := a.table.find(clientID(1)).epoch + time.Hour.Microseconds() // of the third session
	if b.endLocal(clientID(1), later) {
		t.Fatal("the eviction ended a session, want none to be there yet")
	}
	second := w.dial(b)
	second.hello(clientID(1), first.token)
	second.wantClosed(wire.CodeTakenOver)
	first.wantClosed(wire.CodeTakenOver)
}

// A session that closed while auth-service let it in has taken the device from the one before it, and is itself released.
func TestClosedSessionEndsItsPredecessor(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		older := r.enrolled(t, clientID(1))
		_ = r.enrolled(t, clientID(2)).conn.Close()
		gone := r.table.find(clientID(2))
		r.closed(closedEOF) // waits for it
		gone.client = clientID(1)
		epoch := r.table.find(clientID(1)).epoch + 1
		if gone.welcome(granted{token: older.token, epoch: epoch}) {
			t.Error("a closed session goes on, want it not to")
		}
		older.wantClosed(wire.CodeTakenOver)
		time.Sleep(2 * releaseEvery)
		r.auth.mu.Lock()
		defer r.auth.mu.Unlock()
		if !slices.Contains(r.auth.released, authapi.Release{ClientID: clientID(1), Epoch: epoch}) {
			t.Errorf("released = %v, want epoch %d among them", r.auth.released, epoch)
		}
	})
}

// RELIABILITY row 44. The claim at the gateway in the middle was made, and the answer got lost: the next one, wherever the
// device makes it, names a session that never opened.
func TestLostClaim(t *testing.T) {
	promise := patience / 2 // on a machine that is short of time
	if long {
		promise = time.Second
	}
	w := newWorld(t, testDoc())
	a, b, c := w.gateway("gw-a", nil), w.gateway("gw-b", nil), w.gateway("gw-c", nil)
	awaitNodes(t, c, "gw-a", "gw-b", "gw-c")
	eventually(t, "gw-b knows all", func() bool {
		nodes, err := b.registry.Nodes(t.Context())
		return err == nil && len(nodes) == 3
	})
	for i, tt := range []struct {
		name   string
		next   *Server // where the device goes then
		enrols bool
	}{
		{"resumed at a third gateway", c, false},
		{"resumed at the same gateway", b, false},
		{"enrolled at a third gateway", c, true},
		{"enrolled at the same gateway", b, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := clientID(byte(1 + i))
			first := w.enrolled(a, id)
			token := first.token
			if tt.enrols {
				token = wire.Token{}
			}
			w.auth.set(func() { w.auth.lost = true })
			middle := w.dial(b)
			middle.send(&wire.Hello{ClientID: id, Token: token})
			middle.wantClosed(wire.CodeAuthUnavailable)
			w.auth.set(func() { w.auth.lost = false })
			last := w.dial(tt.next)
			last.hello(id, token)
			wantTakenOver(t, first, promise, "takeover_after_a_lost_claim")
			last.beat()
		})
	}
}

// What is remembered of lost claims is bounded in number and in time.
func TestLostClaimsAreForgotten(t *testing.T) {
	u := newUnsure()
	var id wire.ClientID
	for i := range uint32(unsureMax + 10) {
		binary.BigEndian.PutUint32(id[:], i)
		u.note(id, 1)
	}
	if n := len(u.since); n != unsureMax {
		t.Errorf("remembered = %d, want %d", n, unsureMax)
	}
	if !u.take(id, 1+unsureMemory) {
		t.Error("the last one is not remembered, want it to be")
	}
	if u.take(id, 1+unsureMemory) {
		t.Error("one that was taken is remembered, want it forgotten")
	}
	u.note(clientID(9), 3)
	if u.take(clientID(9), 4+unsureMemory) {
		t.Error("one from long ago is remembered, want it forgotten")
	}
	u.note(clientID(9), 3+unsureMemory)
	if n := len(u.since); n != 1 {
		t.Errorf("remembered after a while = %d, want the new one only", n)
	}
}

// A session whose token cannot be rotated because another has the device is compared with its record: the last resort, where
// nobody could tell this gateway.
func TestNotCurrentIsCompared(t *testing.T) {
	doc := testDoc()
	doc.Token.RotateProbability = 1
	bubble(t, doc, func(t *testing.T, r *rig) {
		lost, mine := r.enrolled(t, clientID(1)), r.enrolled(t, clientID(2))
		elsewhere := registry.Owner{Node: "gw-2", Session: "a", Epoch: r.table.find(clientID(1)).epoch + 1}
		r.nodes.setRecord(clientID(1), registry.Record{Known: true, Owner: elsewhere})
		r.nodes.setRecord(clientID(2), registry.Record{Known: true, Owner: registry.Owner{Node: "gw-1", Session: "b", Epoch: r.table.find(clientID(2)).epoch}})
		r.auth.set(func() {
			for _, d := range r.auth.devices {
				d.owner = elsewhere.String()
			}
		})
		lost.send(&wire.Heartbeat{Token: lost.token})
		mine.send(&wire.Heartbeat{Token: mine.token})
		synctest.Wait()
		if n := r.auth.called("rotate"); n != 2 {
			t.Errorf("rotations asked for = %d, want 2", n)
		}
		if n := r.closed(string(wire.CodeTakenOver)); n != 1 || r.table.find(clientID(1)) != nil {
			t.Errorf("sessions taken over = %v, want 1: the one with a newer owner", n)
		}
		var ack wire.HeartbeatAck
		mine.want(&ack)
		mine.roundTrip(1)
	})
}
