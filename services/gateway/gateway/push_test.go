package gateway

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

func TestPushToADevice(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		results := make(chan link.PushResult, 1)
		r.pushFromBackend(clientID(1), "news", []byte(`{"a": 1}`), func(p link.PushResult) { results <- p })
		var p wire.Push
		d.want(&p)
		if p.Service != "news" || string(p.Body) != `{"a": 1}` {
			t.Errorf("push = %s %s, want news and the body byte for byte", p.Service, p.Body)
		}
		select {
		case got := <-results:
			t.Fatalf("result %v before the acknowledgement, want none", got)
		default:
		}
		d.send(&wire.PushAck{ID: p.ID})
		if got := <-results; got != link.PushAcknowledged {
			t.Errorf("result = %v, want acknowledged", got)
		}
	})
}

func TestPushOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name string
		body string
		with func(r *rig, d *device)
		want link.PushResult
		took time.Duration
	}{
		{"no ack", `1`, func(*rig, *device) {}, link.PushTimedOut, 5 * time.Second},
		{"closed before the ack", `1`, func(_ *rig, d *device) { go func() { time.Sleep(time.Second); _ = d.conn.Close() }() }, link.PushTimedOut, time.Second},
		{"gone", `1`, func(r *rig, d *device) { _ = d.conn.Close(); synctest.Wait() }, link.PushNotConnected, 0},
		{"no JSON", `{`, func(*rig, *device) {}, link.PushNotConnected, 0},
		{"too long", `"` + string(make4k()[1:4000]) + `"`, func(r *rig, _ *device) {
			set := *r.table.find(clientID(1)).told
			set.doc.Frame.MaxBytes = 1000
			r.table.find(clientID(1)).told = &set
		}, link.PushNotConnected, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				d := r.enrolled(t, clientID(1))
				tt.with(r, d)
				begun := time.Now()
				results := make(chan link.PushResult, 2)
				r.pushFromBackend(clientID(1), "news", []byte(tt.body), func(p link.PushResult) { results <- p })
				if got := <-results; got != tt.want {
					t.Errorf("result = %v, want %v", got, tt.want)
				}
				if tt.took > 0 {
					wantAfter(t, "result", begun, tt.took)
				}
				time.Sleep(time.Minute)
				if len(results) != 0 {
					t.Error("a second result came, want one")
				}
			})
		})
	}
}

// RELIABILITY row 53: never silently lost: what was queued and nobody waits for (202) is counted at its end.
func TestPushesAreCountedToTheirEnd(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		push := func() wire.Push {
			if o := r.pushAndWait(t.Context(), clientID(1), pushMessage{Service: "news", Body: []byte(`1`)}); o != pushQueued {
				t.Fatalf("push = %s, want queued", o)
			}
			var p wire.Push
			d.want(&p)
			return p
		}
		count := func(want map[pushOutcome]float64) {
			t.Helper()
			synctest.Wait()
			for _, o := range []pushOutcome{pushQueued, pushAcked, pushNoAck, pushLost} {
				if got := testutil.ToFloat64(r.Server.metrics.pushes.WithLabelValues(string(o))); got != want[o] {
					t.Errorf("pushes_total{%s} = %v, want %v", o, got, want[o])
				}
			}
		}
		p := push()
		d.send(&wire.PushAck{ID: p.ID})
		count(map[pushOutcome]float64{pushQueued: 1, pushAcked: 1})
		p = push()
		time.Sleep(r.timings.pushAck + time.Second)
		count(map[pushOutcome]float64{pushQueued: 2, pushAcked: 1, pushNoAck: 1})
		d.send(&wire.PushAck{ID: p.ID}) // too late: it was given up
		push()
		_ = d.conn.Close()
		count(map[pushOutcome]float64{pushQueued: 3, pushAcked: 1, pushNoAck: 1, pushLost: 1})
	})
}

// RELIABILITY row 53: never silently lost: a full queue refuses.
func TestPushQueueFull(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		r.stalled(t, clientID(1))
		queued := 0
		for range 1000 {
			o := r.pushLocal(clientID(1), "news", make4k(), time.Minute, nil)
			if o == pushQueueFull {
				break
			}
			if o != pushQueued {
				t.Fatalf("push = %s, want queued or queue_full", o)
			}
			queued++
		}
		if queued == 0 || queued > outboundLimit/4096+2 {
			t.Errorf("messages of 4 KiB queued for a device that does not read = %d, want up to %d", queued, outboundLimit/4096+2)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := r.closed(closedWriteStalled); got != 1 {
			t.Errorf("closed_total{write_stalled} = %v, want 1", got)
		}
	})
}

func TestUnacknowledgedPushesAreBounded(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		queued := 0
		for r.pushLocal(clientID(1), "news", []byte(`1`), 5*time.Second, nil) == pushQueued {
			queued++
		}
		if queued != pushesMax {
			t.Errorf("messages queued without an acknowledgement = %d, want %d", queued, pushesMax)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if o := r.pushLocal(clientID(1), "news", []byte(`1`), time.Second, nil); o != pushQueued {
			t.Errorf("push after the others were given up = %s, want queued", o)
		}
		d.send(&wire.Bye{})
	})
}
