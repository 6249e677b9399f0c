package gateway

import (
	"net/http"
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
	a, b := w.gateway("gw-a", nil), w.gateway("gw-b", nil)
	awaitNodes(t, a, "gw-b")
	d := w.enrolled(b, clientID(1))
	ses := b.table.find(clientID(1))
	w.setOwner(clientID(1), ses.owner(), ses.epoch)
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
	a, b := w.gateway("gw-a", nil), w.gateway("gw-b", nil)
	awaitNodes(t, a, "gw-b")
	d := w.enrolled(b, clientID(1))
	ses := b.table.find(clientID(1))
	w.setOwner(clientID(1), ses.owner(), ses.epoch)
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

// As many messages as there are slots may be on their way to other gateways; more are refused at once.
func TestForwardedPushesAreBounded(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	for range peerSlots {
		s.peers.slots <- struct{}{}
	}
	results := make(chan link.PushResult, 1)
	s.pushFromBackend(clientID(1), "news", []byte(`1`), func(r link.PushResult) { results <- r })
	if r := <-results; r != link.PushQueueFull {
		t.Errorf("result = %v, want queue_full", r)
	}
	for range peerSlots {
		<-s.peers.slots
	}
}
