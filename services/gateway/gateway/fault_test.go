package gateway

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// Faults of ours, wherever they are met, cost one device its connection: no other session, not the timer wheel, not the
// process.

// faultyCounter stands where frames of one type are counted: under the session's lock.
type faultyCounter struct {
	prometheus.Counter
	faulty atomic.Bool
}

func (c *faultyCounter) Inc() {
	if c.faulty.Load() {
		panic("a fault")
	}
}

// faultyAuth faults when it is asked about a token in use.
type faultyAuth struct{ *fakeAuth }

func (faultyAuth) Verify(context.Context, authapi.VerifyRequest) (authapi.VerifyAnswer, error) {
	panic("a fault")
}

func (faultyAuth) Rotate(context.Context, authapi.RotateRequest) (authapi.RotateAnswer, error) {
	panic("a fault")
}

// faultyConn faults when it is written to, from the second write on.
type faultyConn struct {
	net.Conn
	writes int
}

func (c *faultyConn) Write(p []byte) (int, error) {
	if c.writes++; c.writes > 1 {
		panic("a fault")
	}
	return c.Conn.Write(p)
}

func TestFaultsCostOneSession(t *testing.T) {
	rotating := testDoc()
	rotating.Token.RotateProbability = 1
	for _, tt := range []struct {
		name string
		doc  dynamic.Document
		do   func(t *testing.T, r *rig, d *device)
		// mute: the connection ends without an ERROR.
		mute bool
	}{
		{"in an answer, on the backend's link", testDoc(), func(_ *testing.T, r *rig, d *device) {
			r.router.holding(true)
			d.request(1, `1`)
			synctest.Wait()
			r.faultOn(wire.TypeResponse, true)
			r.router.answerAll()
		}, false},
		{"in an answer, on the reader", testDoc(), func(_ *testing.T, r *rig, d *device) {
			r.faultOn(wire.TypeResponse, true)
			d.request(1, `1`)
		}, false},
		{"in an ack, on the reader", testDoc(), func(_ *testing.T, r *rig, d *device) {
			r.faultOn(wire.TypeHeartbeatAck, true)
			d.send(&wire.Heartbeat{Token: d.token})
		}, false},
		{"in a rotation", rotating, func(_ *testing.T, r *rig, d *device) {
			r.Server.auth = faultyAuth{r.auth}
			d.send(&wire.Heartbeat{Token: d.token})
		}, false},
		{"in the ack of a rotation", rotating, func(_ *testing.T, r *rig, d *device) {
			r.faultOn(wire.TypeHeartbeatAck, true)
			d.send(&wire.Heartbeat{Token: d.token})
		}, false},
		{"in a confirmation", testDoc(), func(_ *testing.T, r *rig, d *device) {
			r.Server.auth = faultyAuth{r.auth}
			next := newToken()
			ses := r.table.find(d.client)
			ses.mu.Lock()
			ses.tokens.next = &nextToken{token: next, hash: hashToken(next), expiry: r.now() + int64(time.Hour), used: true}
			ses.mu.Unlock()
			d.send(&wire.Heartbeat{Token: next})
			var ack wire.HeartbeatAck
			d.want(&ack)
		}, false},
		{"in a verdict, on the reader", testDoc(), func(_ *testing.T, r *rig, d *device) {
			r.Server.auth = faultyAuth{r.auth}
			d.send(&wire.Heartbeat{Token: newToken()})
		}, false},
		{"on the timer wheel", testDoc(), func(_ *testing.T, r *rig, d *device) {
			ses := r.table.find(d.client)
			ses.mu.Lock()
			ses.told = nil
			ses.mu.Unlock()
		}, false},
		{"in a push", testDoc(), func(t *testing.T, r *rig, d *device) {
			r.faultOn(wire.TypePush, true)
			if o := r.pushLocal(d.client, "news", []byte(`1`), time.Second, nil); o != pushNoAck {
				t.Errorf("push = %s, want no_ack: nobody knows", o)
			}
		}, false},
		{"in a GOAWAY", testDoc(), func(_ *testing.T, r *rig, d *device) {
			r.faultOn(wire.TypeGoaway, true)
			r.table.find(d.client).goAway(reasonRebalance, 0, time.Hour)
		}, false},
		{"in the last words", testDoc(), func(_ *testing.T, r *rig, d *device) {
			r.faultOn(wire.TypeError, true)
			r.endLocal(d.client, 0)
		}, true},
		{"in the last words, on the timer wheel", testDoc(), func(_ *testing.T, r *rig, _ *device) {
			r.faultOn(wire.TypeError, true)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, tt.doc, func(t *testing.T, r *rig) {
				r.preparesFaults()
				d := r.enrolled(t, clientID(1))
				tt.do(t, r, d)
				wantFaulted(t, d, tt.mute)
				r.wantSound(t)
			})
		})
	}
}

// A fault in the flusher, which may have written half a frame.
func TestFaultInTheFlusher(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		r.preparesFaults()
		here, there := net.Pipe()
		r.accepted(&faultyConn{Conn: there}, deviceKind)
		d := newDevice(t, here)
		d.hello(clientID(1), wire.Token{})
		d.send(&wire.Heartbeat{Token: d.token})
		wantFaulted(t, d, true)
		r.wantSound(t)
	})
}

// preparesFaults is called before devices come.
func (r *rig) preparesFaults() {
	r.Server.log = zapNop()
	for f := range r.Server.metrics.framesOut {
		r.Server.metrics.framesOut[f] = new(faultyCounter)
	}
}

// faultOn makes every further frame of that type a fault, or not any more.
func (r *rig) faultOn(f wire.Type, on bool) {
	r.Server.metrics.framesOut[f].(*faultyCounter).faulty.Store(on)
}

// wantFaulted wants the end, after an ERROR unless mute; what was written before the fault may come, too.
func wantFaulted(t *testing.T, d *device, mute bool) {
	t.Helper()
	var last wire.Frame
	for {
		f, ok := d.next()
		if !ok {
			break
		}
		last = f
	}
	if told := last.Type == wire.TypeError && strings.Contains(string(last.Payload), `"`+string(wire.CodeInternal)+`"`); told == mute {
		t.Errorf("last frame = %s %s, want an ERROR internal: %v", last.Type, last.Payload, !mute)
	}
}

// wantSound wants nothing to be left of the session of client 1, and another to be served, up to its deadlines.
func (r *rig) wantSound(t *testing.T) {
	t.Helper()
	if got := r.closed(string(wire.CodeInternal)); got != 1 {
		t.Errorf("closed_total{internal} = %v, want 1", got)
	}
	if r.table.find(clientID(1)) != nil {
		t.Error("the session can be found, want none")
	}
	for f := range r.Server.metrics.framesOut {
		r.faultOn(wire.Type(f), false)
	}
	r.router.holding(false)
	r.Server.auth = r.auth
	other := r.enrolled(t, clientID(2))
	other.roundTrip(1)
	other.wantClosed(wire.CodeHeartbeatTimeout)
}
