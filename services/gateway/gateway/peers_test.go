package gateway

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// A gateway that was killed still looks alive in Redis for some seconds. Its devices are welcome
// elsewhere at once, and messages for those that have not come back are refused, not lost.
func TestGatewayThatWasKilled(t *testing.T) {
	w := newWorld(t, testDoc())
	dead, b := w.gateway("gw-a", nil), w.gateway("gw-b", nil)
	awaitNodes(t, b, "gw-a")
	back, away := w.enrolled(dead, clientID(1)), w.enrolled(dead, clientID(2))
	ses := dead.table.find(clientID(2))
	w.setOwner(clientID(2), ses.owner(), ses.epoch)
	w.redis.SetTime(time.Now()) // its key does not lapse before that was looked at
	dead.Kill()
	awaitNodes(t, b, "gw-a")

	d := w.dial(b)
	d.hello(clientID(1), back.token)
	d.beat()
	eventually(t, "the takeover is given up", func() bool { return testutil.ToFloat64(b.metrics.takeoversLost) == 1 })
	d.beat()

	if status, _ := api(t, b, http.MethodPost, deviceOf(away.client, "/messages"), `{"service":"news","body":1,"wait_ms":1000}`); status != http.StatusNotFound {
		t.Errorf("push to a device of a killed gateway = %d, want 404", status)
	}
	results := make(chan link.PushResult, 1)
	b.pushFromBackend(away.client, "news", []byte(`1`), func(r link.PushResult) { results <- r })
	select {
	case r := <-results:
		if r != link.PushNotConnected {
			t.Errorf("result = %v, want not_connected", r)
		}
	case <-time.After(patience):
		t.Fatal("no result, want one")
	}
}

// A message that a backend hands to the wrong gateway arrives, and its result comes back.
func TestPushFromBackendCrossesGateways(t *testing.T) {
	w := newWorld(t, testDoc())
	a, _, d := w.deviceElsewhere()
	results := make(chan link.PushResult, 1)
	a.pushFromBackend(clientID(1), "news", []byte(`{"a":1}`), func(r link.PushResult) { results <- r })
	var p wire.Push
	d.want(&p)
	d.send(&wire.PushAck{ID: p.ID})
	if r := <-results; r != link.PushAcknowledged {
		t.Errorf("result = %v, want acknowledged", r)
	}
}

// RELIABILITY row 53: a message for a device of another gateway is acknowledged within 100 ms, by either way in.
func TestPushAcrossGatewaysInTime(t *testing.T) {
	const limit = 100 * time.Millisecond
	w := newWorld(t, testDoc())
	a, _, d := w.deviceElsewhere()
	acknowledge := func() {
		t.Helper()
		var p wire.Push
		d.want(&p)
		d.send(&wire.PushAck{ID: p.ID})
	}
	var fromBackend, fromAPI []time.Duration
	for range 11 {
		results := make(chan link.PushResult, 1)
		at := time.Now()
		a.pushFromBackend(clientID(1), "news", []byte(`{"a":1}`), func(r link.PushResult) { results <- r })
		acknowledge()
		if r := <-results; r != link.PushAcknowledged {
			t.Fatalf("result = %v, want acknowledged", r)
		}
		fromBackend = append(fromBackend, time.Since(at))

		status := make(chan int, 1)
		at = time.Now()
		go func() {
			code, _ := api(t, a, http.MethodPost, deviceOf(clientID(1), "/messages"), `{"service":"news","body":1,"wait_ms":20000}`)
			status <- code
		}()
		acknowledge()
		if code := <-status; code != http.StatusOK {
			t.Fatalf("push = %d, want 200", code)
		}
		fromAPI = append(fromAPI, time.Since(at))
	}
	wantMedian(t, "acknowledged, from a backend", limit, fromBackend)
	wantMedian(t, "acknowledged, from the push API", limit, fromAPI)
}

// What a backend pushes is any bytes to a device of version 2, on another gateway, too.
func TestAnyBytesCrossGateways(t *testing.T) {
	doc := testDoc()
	doc.Frame.MaxBytes = wire.MaxPayload
	w := newWorld(t, doc)
	a, b := w.gateway("gw-a", nil), w.gateway("gw-b", nil)
	awaitNodes(t, a, "gw-b")
	d := w.dial(b)
	d.version = wire.Version2
	d.hello(clientID(1), wire.Token{})
	ses := b.table.find(clientID(1))
	w.setOwner(clientID(1), ses.owner(), ses.epoch)
	longest := bytes.Repeat([]byte{0xfe, 0, '"'}, wire.MaxPayload/3)
	for _, tt := range []struct {
		name string
		body []byte
	}{
		{"protobuf", []byte{0x08, 0x96, 0x01}},
		{"nothing", nil},
		{"JSON, as it happens", []byte(`{"a":1}`)},
		{"a field of 32 digits, which looks like JSON and white space", []byte("\n " + strings.Repeat("1", 32))},
		{"JSON and a line's end", []byte("{}\n")},
		{"the longest", longest[:wire.MaxPayload-100]},
	} {
		results := make(chan link.PushResult, 1)
		a.pushFromBackend(clientID(1), "news", tt.body, func(r link.PushResult) {
			results <- r
			if r != link.PushAcknowledged {
				_ = d.conn.Close() // nothing comes
			}
		})
		var p wire.Push
		if d.want(&p); p.Service != "news" || !bytes.Equal(p.Body, tt.body) {
			t.Errorf("%s: push = %s, %d bytes, want news and the body byte for byte", tt.name, p.Service, len(p.Body))
		}
		d.send(&wire.PushAck{ID: p.ID})
		if r := <-results; r != link.PushAcknowledged {
			t.Errorf("%s: result = %v, want acknowledged", tt.name, r)
		}
	}
}

// A message is counted once, by the gateway at which it ended.
func TestForwardedPushesAreCountedWhereTheyEnd(t *testing.T) {
	w := newWorld(t, testDoc())
	a, b, d := w.deviceElsewhere()
	w.setOwner(clientID(2), "gw-b/1", 7) // it has left meanwhile
	pushBoth := func(id wire.ClientID, acknowledge func()) {
		results := make(chan link.PushResult, 1)
		a.pushFromBackend(id, "news", []byte(`1`), func(r link.PushResult) { results <- r })
		acknowledge()
		<-results
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			api(t, a, http.MethodPost, deviceOf(id, "/messages"), `{"service":"news","body":1,"wait_ms":20000}`)
		}()
		acknowledge()
		<-answered
	}
	pushBoth(clientID(1), func() {
		var p wire.Push
		d.want(&p)
		d.send(&wire.PushAck{ID: p.ID})
	})
	pushBoth(clientID(2), func() {})
	pushBoth(clientID(3), func() {}) // nobody has it
	for _, tt := range []struct {
		s    *Server
		want map[pushOutcome]float64
	}{
		{a, map[pushOutcome]float64{pushNotConnected: 2}},
		{b, map[pushOutcome]float64{pushQueued: 2, pushAcked: 2, pushNotConnected: 2}},
	} {
		for o := range outcomeStatus {
			if got := testutil.ToFloat64(tt.s.metrics.pushes.WithLabelValues(string(o))); got != tt.want[o] {
				t.Errorf("%s: pushes_total{%s} = %v, want %v", tt.s.cfg.Node, o, got, tt.want[o])
			}
		}
	}
}

// deviceElsewhere is two gateways that know of each other, and device 1, which is at the second one.
func (w *world) deviceElsewhere() (a, b *Server, d *device) {
	w.t.Helper()
	a, b = w.gateway("gw-a", nil), w.gateway("gw-b", nil)
	awaitNodes(w.t, a, "gw-b")
	d = w.enrolled(b, clientID(1))
	ses := b.table.find(clientID(1))
	w.setOwner(clientID(1), ses.owner(), ses.epoch)
	return a, b, d
}
