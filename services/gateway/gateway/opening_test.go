package gateway

import (
	"context"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

// Takeovers that come while a session is just opening.

// slowAnswers is an auth-service that has let the device in a while before the gateway hears of it.
type slowAnswers struct {
	*fakeAuth
	by time.Duration
}

func (a *slowAnswers) Issue(ctx context.Context, r authapi.IssueRequest) (authapi.IssueAnswer, error) {
	answer, err := a.fakeAuth.Issue(ctx, r)
	time.Sleep(a.by)
	return answer, err
}

// The device has gone on to another gateway, which says so before this one has heard that its own, older session
// was let in.
func TestTakeoverBeforeWelcome(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ahead int64 // of the other session's epoch
		wins  bool
	}{
		{"by a newer session", 1, false},
		{"by an older one", -1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				r.Server.auth = &slowAnswers{r.auth, time.Second}
				d := r.connect(t)
				d.client = clientID(1)
				d.send(&wire.Hello{ClientID: clientID(1)})
				synctest.Wait()
				var claimed int64
				r.auth.set(func() { claimed = r.auth.devices[clientID(1)].epoch })
				if r.endLocal(clientID(1), claimed+tt.ahead) {
					t.Fatal("the takeover ended a session, want none to be open yet")
				}
				d.want(&d.welcome)
				d.token = d.welcome.Token
				if tt.wins {
					d.roundTrip(1)
					return
				}
				d.wantClosed(wire.CodeTakenOver)
				if r.table.find(clientID(1)) != nil {
					t.Error("the older session can be found, want none")
				}
				time.Sleep(2 * releaseEvery)
				if n := r.auth.releasedCount(); n != 0 {
					t.Errorf("sessions released = %d, want 0: the device has a newer one", n)
				}
				back := r.connect(t) // and its next session is the newest
				back.hello(clientID(1), d.token)
				back.roundTrip(1)
			})
		})
	}
}

// What is remembered of takeovers is bounded in number and in time.
func TestTakeoversAreForgotten(t *testing.T) {
	table := newTable()
	part := &table.parts[1]
	id := clientID(1)
	for i := range uint32(3 * evictedMax) {
		binary.BigEndian.PutUint32(id[4:], i)
		table.evict(id, 1, 1)
	}
	if n := len(part.evicted); n != evictedMax {
		t.Errorf("remembered = %d, want %d", n, evictedMax)
	}
	if part.evicted[id].epoch != 1 {
		t.Error("the last one is not among them, want it remembered")
	}
	table.evict(id, 7, 2)
	table.evict(id, 5, 3)
	if got := part.evicted[id].epoch; got != 7 {
		t.Errorf("epoch remembered = %d, want 7: the highest", got)
	}
	other := clientID(1)
	table.evict(other, 1, evictedMemory+3)
	if _, known := part.evicted[other]; !known || len(part.evicted) != 1 {
		t.Errorf("remembered after a while = %d, want the new one only", len(part.evicted))
	}
}
