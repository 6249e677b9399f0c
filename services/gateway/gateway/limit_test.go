package gateway

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/lease"
	"github.com/goshield/goshield/services/gateway/registry"
)

func limitedDoc(mode dynamic.OnLimit) dynamic.Document {
	doc := testDoc()
	doc.DeviceLimit = dynamic.DeviceLimit{Bucket: dynamic.Bucket{Rate: 10, Burst: 5}, OnLimit: mode}
	return doc
}

func TestRejectOverTheLimit(t *testing.T) {
	bubble(t, limitedDoc(dynamic.LimitReject), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		for i := range uint32(5) {
			d.roundTrip(i)
		}
		d.request(5, `1`)
		e := d.wantError(wire.CodeRateLimited)
		if !e.HasID || e.ID != 5 || e.Close || e.RetryAfter <= 0 || e.RetryAfter > 150*time.Millisecond {
			t.Errorf("error = %+v, want id 5, close false, retry_after up to 150ms", e)
		}
		d.send(&wire.Heartbeat{Token: d.token})
		if e := d.wantError(wire.CodeRateLimited); e.HasID {
			t.Errorf("error for a HEARTBEAT = %+v, want none with an id", e)
		}
		time.Sleep(e.RetryAfter + 50*time.Millisecond)
		d.roundTrip(6)
		other := r.enrolled(t, clientID(2))
		other.roundTrip(1) // each device has its own bucket
		if n := testutil.ToFloat64(r.Server.metrics.deviceRejected); n != 2 {
			t.Errorf(`ratelimit_decisions_total{scope="device",result="reject"} = %v, want 2`, n)
		}
	})
}

// Who comes again when he is told to is served: the time covers the price of the refusals, and the pauses that a flood
// is read with.
func TestServedWhenTold(t *testing.T) {
	doc := limitedDoc(dynamic.LimitReject)
	doc.DeviceLimit.Rate = 49 // a token in 20.4 ms
	bubble(t, doc, func(t *testing.T, r *rig) {
		for frames := range uint32(35) {
			d := r.enrolled(t, clientID(byte(frames)+1))
			var told time.Duration
			for i := range frames + 6 { // the burst, and one more at least
				d.request(i, `1`)
				f, ok := d.next()
				if !ok {
					t.Fatalf("closed at request %d", i)
				}
				if f.Type == wire.TypeError {
					var e wire.Error
					if err := wire.Unmarshal(f.Version, f.Payload, &e); err != nil || e.Code != wire.CodeRateLimited {
						t.Fatalf("request %d: %v, %v, want rate_limited", i, &e, err)
					}
					told = e.RetryAfter
				}
				time.Sleep(time.Millisecond)
			}
			if told == 0 {
				t.Fatalf("%d requests at once were all answered", frames+6)
			}
			time.Sleep(told - time.Millisecond) // one has passed
			d.roundTrip(100)
		}
	})
}

// A device somewhat over its rate keeps most of it and is not closed.
func TestRejectLeavesTheRateToThoseSomewhatOverIt(t *testing.T) {
	bubble(t, limitedDoc(dynamic.LimitReject), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		answered := 0
		for i := range uint32(12 * 30) { // 12 a second for 30 s
			d.request(i, `1`)
			if f, ok := d.next(); ok && f.Type == wire.TypeResponse {
				answered++
			} else if !ok {
				t.Fatalf("closed after %d requests, want to be served", i)
			}
			if i%5 == 4 {
				d.beat2()
			}
			time.Sleep(time.Second / 12)
		}
		if answered < 200 {
			t.Errorf("answered %d of 360 requests at 1.2 times the rate of 10, want at least 200", answered)
		}
	})
}

// beat2 sends a HEARTBEAT and takes whatever is the answer.
func (d *device) beat2() {
	d.send(&wire.Heartbeat{Token: d.token})
	d.next()
}

// RELIABILITY row 9: a flood is limited, then closed.
func TestFloodIsClosed(t *testing.T) {
	for _, tt := range []struct {
		name string
		send func(d *device, i uint32) wire.Message
	}{
		{"requests", func(d *device, i uint32) wire.Message {
			return &wire.Request{ID: i, Token: d.token, Service: "echo", Body: []byte(`1`)}
		}},
		{"heartbeats", func(d *device, _ uint32) wire.Message { return &wire.Heartbeat{Token: d.token} }},
		{"acknowledgements of nothing", func(_ *device, i uint32) wire.Message { return &wire.PushAck{ID: i} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, limitedDoc(dynamic.LimitReject), func(t *testing.T, r *rig) {
				d := r.enrolled(t, clientID(1))
				begun := time.Now()
				var flood sync.WaitGroup
				defer flood.Wait()
				flood.Go(func() { // until the gateway closes
					for i := uint32(0); ; i++ {
						b, _ := wire.Append(nil, wire.Version1, tt.send(d, i))
						if _, err := d.conn.Write(b); err != nil {
							return
						}
						time.Sleep(time.Millisecond)
					}
				})
				for {
					f, ok := d.next()
					if !ok {
						t.Fatal("connection ended without a last word, want rate_limited")
					}
					var e wire.Error
					if f.Type == wire.TypeError && wire.Unmarshal(f.Version, f.Payload, &e) == nil && e.Close {
						if e.Code != wire.CodeRateLimited {
							t.Errorf("last word = %v, want rate_limited", &e)
						}
						break
					}
				}
				d.wantEnd()
				if took := time.Since(begun); took < 10*time.Second || took > 11*time.Second {
					t.Errorf("closed after %v, want 10 s", took)
				}
			})
		})
	}
}

// A flood is read slowly, however fast it is, and closed all the same: what is read is too much for any rate.
func TestFloodIsReadSlowly(t *testing.T) {
	for _, tt := range []struct {
		rate float64
		most float64 // frames a second
	}{{10, 5000}, {500, 10_000}} {
		doc := limitedDoc(dynamic.LimitReject)
		doc.DeviceLimit.Rate, doc.DeviceLimit.Burst = tt.rate, tt.rate
		bubble(t, doc, func(t *testing.T, r *rig) {
			d := r.enrolled(t, clientID(1))
			go func() { // it reads what it gets, until the connection ends
				for range d.frames {
				}
			}()
			beat, err := wire.Append(nil, wire.Version1, &wire.Heartbeat{Token: d.token})
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			for {
				if _, err := d.conn.Write(beat); err != nil {
					break
				}
			}
			took := time.Since(begun)
			if took < 10*time.Second || took > 12*time.Second {
				t.Errorf("rate %v: closed after %v, want 10 s, and a second for the last words", tt.rate, took)
			}
			if n := testutil.ToFloat64(r.Server.metrics.deviceRejected); n < tt.most*5 || n > tt.most*11 {
				t.Errorf("rate %v: %v frames were read and rejected in 10 s, want about %v", tt.rate, n, tt.most*10)
			}
			if n := r.closed(string(wire.CodeRateLimited)); n != 1 {
				t.Errorf("rate %v: closed for the limit = %v, want 1", tt.rate, n)
			}
		})
	}
}

func TestWaitOverTheLimit(t *testing.T) {
	bubble(t, limitedDoc(dynamic.LimitWait), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		begun := time.Now()
		go func() {
			for i := range uint32(25) {
				b, _ := wire.Append(nil, wire.Version1, &wire.Request{ID: i, Token: d.token, Service: "echo", Body: []byte(`1`)})
				if _, err := d.conn.Write(b); err != nil {
					return
				}
			}
		}()
		var resp wire.Response
		for i := range uint32(25) {
			d.want(&resp)
			if resp.ID != i {
				t.Fatalf("response id = %d, want %d: waiting keeps the order", resp.ID, i)
			}
		}
		wantAfter(t, "25 requests at 10 a second, 5 at once: the last answer came", begun, 2*time.Second)
	})
}

func TestWaitingDeviceCanBeClosed(t *testing.T) {
	doc := limitedDoc(dynamic.LimitWait)
	doc.DeviceLimit.Rate, doc.DeviceLimit.Burst = 0.001, 1
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		d.roundTrip(1)
		d.request(2, `1`) // waits a quarter of an hour
		synctest.Wait()
		r.revoked(registry.Revocation{ClientID: clientID(1), Code: wire.CodeRevoked, Announced: true})
		d.wantClosed(wire.CodeRevoked)
	})
}

func TestBytesAreLimited(t *testing.T) {
	doc := testDoc()
	doc.DeviceLimit.Bytes = dynamic.Bucket{Rate: 1000, Burst: 20000}
	doc.Heartbeat.Interval = 0 // the test lasts longer than a device may miss them
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		served := 0
		for i := range uint32(6) {
			d.request(i, string(make4k()))
			if f, _ := d.next(); f.Type == wire.TypeResponse {
				served++
			}
		}
		if served != 4 {
			t.Errorf("requests of 4 KiB served within a burst of 20000 bytes = %d, want 4", served)
		}
		served = 0
		for i := range uint32(60) { // 4 KiB a second, of which 1000 bytes are allowed
			time.Sleep(time.Second)
			d.request(i, string(make4k()))
			if f, _ := d.next(); f.Type == wire.TypeResponse {
				served++
			}
		}
		if served < 12 || served > 16 {
			t.Errorf("requests of 4 KiB served within 60 s at 1000 bytes a second = %d, want about 14", served)
		}
		time.Sleep(time.Second)
		d.roundTrip(99)
	})
}

// What a PUSH asks for is not held against the device.
func TestPushAcksAreFree(t *testing.T) {
	doc := limitedDoc(dynamic.LimitReject)
	doc.DeviceLimit.Rate, doc.DeviceLimit.Burst = 0.01, 1
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		for range 20 {
			acked := make(chan pushOutcome, 1)
			if o := r.pushLocal(clientID(1), "news", []byte(`1`), time.Second, func(o pushOutcome) { acked <- o }); o != pushQueued {
				t.Fatalf("push = %s, want queued", o)
			}
			var p wire.Push
			d.want(&p)
			d.send(&wire.PushAck{ID: p.ID})
			if o := <-acked; o != pushAcked {
				t.Fatalf("push became %s, want acknowledged", o)
			}
		}
		d.roundTrip(1)
	})
}

// usedUp leases nothing: others have used the limit up.
type usedUp struct{}

func (usedUp) Lease(context.Context, lease.Ask) (leased int64, nodes int, err error) {
	return 0, 2, nil
}

// Over its service's limit a request is answered so; the connection, and other services, are served.
func TestServiceLimit(t *testing.T) {
	doc := testDoc()
	doc.Heartbeat.Interval = 0
	limited := doc.Services["echo"]
	limited.Limit = dynamic.Bucket{Rate: 100, Burst: 100}
	free := doc.Services["echo"]
	doc.Services = map[string]dynamic.Service{"echo": limited, "free": free}
	bubble(t, doc, func(t *testing.T, r *rig) {
		r.leases = lease.New(lease.Config{Node: "gw-1", Source: usedUp{}}) // Kill closes it
		if err := r.apply(doc, 1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		d := r.enrolled(t, clientID(1))
		for i := range uint32(5) { // a twentieth of the rate, in advance
			d.roundTrip(i)
		}
		for i := uint32(10); i < 20; i++ {
			d.request(i, `1`)
			var e wire.Error
			d.want(&e)
			if e.Code != wire.CodeRateLimited || e.ID != i || !e.HasID || e.Close || e.RetryAfter <= 0 {
				t.Errorf("request over the limit: %+v, want rate_limited of %d with a time to wait", e, i)
			}
		}
		d.send(&wire.Request{ID: 30, Token: d.token, Service: "free", Body: []byte(`1`)})
		d.wantError(wire.CodeNoSuchService) // it got through to the router, which knows echo only
		if n := testutil.ToFloat64(r.Server.metrics.serviceRejected); n != 10 {
			t.Errorf("rejections counted = %v, want 10", n)
		}
		without := doc
		without.Services = map[string]dynamic.Service{"echo": free}
		if err := r.apply(without, 2); err != nil {
			t.Fatal(err)
		}
		d.roundTrip(40)
	})
}
