package gateway

// Pushes to devices that speak MQTT, and what they subscribe to.

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestMQTTPush(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = 2 })
		ses := r.table.find(clientID(1))
		outcomes := make(chan pushOutcome, 16)
		push := func(service, body string) pushOutcome {
			return ses.push(service, []byte(body), 5*time.Second, func(o pushOutcome) { outcomes <- o })
		}
		if got := push("alerts", `1`); got != pushRefused {
			t.Errorf("a push without a subscription: %s, want %s", got, pushRefused)
		}
		d.subscribe(1, "push/+/+")
		if got := push("a/b", `1`); got != pushRefused {
			t.Errorf("a service that is no level of a topic: %s, want %s", got, pushRefused)
		}
		if got := push("alerts", `no JSON`); got != pushRefused {
			t.Errorf("a body that is no JSON: %s, want %s", got, pushRefused)
		}
		if got := push("alerts", `{"n":1}`); got != pushQueued {
			t.Fatalf("push: %s, want %s", got, pushQueued)
		}
		pk := d.want(packets.Publish)
		if pk.FixedHeader.Qos != 1 || !strings.HasPrefix(pk.TopicName, "push/alerts/") || string(pk.Payload) != `{"n":1}` {
			t.Fatalf("got %q %q of QoS %d", pk.TopicName, pk.Payload, pk.FixedHeader.Qos)
		}
		d.send(packets.Puback, packets.Packet{PacketID: pk.PacketID})
		if got := <-outcomes; got != pushAcked {
			t.Errorf("acknowledged: %s, want %s", got, pushAcked)
		}
		// A device of MQTT 5 says how many it takes unacknowledged.
		if push("alerts", `2`) != pushQueued || push("alerts", `3`) != pushQueued {
			t.Fatal("two pushes are not taken")
		}
		want := map[byte]pushOutcome{4: pushQueued, 5: pushQueueFull}[version]
		if got := push("alerts", `4`); got != want {
			t.Errorf("a third: %s, want %s", got, want)
		}
		for range 2 {
			if got := <-outcomes; got != pushNoAck {
				t.Errorf("not acknowledged: %s, want %s", got, pushNoAck)
			}
		}
	})
}

// QoS 0 has no acknowledgement, so there is none to pass on.
func TestMQTTPushOfQoS0(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "push/#")
		outcome := make(chan pushOutcome, 1)
		r.table.find(clientID(1)).push("alerts", []byte(`1`), time.Second, func(o pushOutcome) { outcome <- o })
		if pk := d.want(packets.Publish); pk.FixedHeader.Qos != 0 {
			t.Errorf("QoS %d, want 0", pk.FixedHeader.Qos)
		}
		if got := <-outcome; got != pushNoAck {
			t.Errorf("outcome %s, want %s", got, pushNoAck)
		}
	})
}

func TestMQTTSubscriptions(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		failed := func(five byte) byte {
			if version == 5 {
				return five
			}
			return 0x80
		}
		got := d.subscribe(2, "res/#", "a#", "+/echo/+", "#/a", strings.Repeat("x", 300), "$share/g/res/#")
		invalid := packets.ErrTopicFilterInvalid.Code
		want := []byte{1, failed(invalid), 1, failed(invalid), failed(invalid), failed(packets.ErrSharedSubscriptionsNotSupported.Code)}
		if !bytes.Equal(got, want) {
			t.Errorf("granted %x, want %x", got, want)
		}
		d.send(packets.Unsubscribe, packets.Packet{PacketID: 8, Filters: packets.Subscriptions{{Filter: "res/#"}, {Filter: "none"}}})
		if ack := d.want(packets.Unsuback); ack.PacketID != 8 || (version == 5 && !bytes.Equal(ack.ReasonCodes, []byte{0, 0x11})) {
			t.Errorf("UNSUBACK %d %x, want 8 0011", ack.PacketID, ack.ReasonCodes)
		}
		d.publish("req/echo/1", `1`, 0)
		d.wantPublish("res/echo/1") // by the other one
		for i := range 31 {
			if got := d.subscribe(0, fmt.Sprintf("x/%d", i)); got[0] != 0 {
				t.Fatalf("subscription %d: %#x, want success", i, got[0])
			}
		}
		if got := d.subscribe(0, "one/too/many"); got[0] != failed(packets.ErrQuotaExceeded.Code) {
			t.Errorf("one too many: %#x, want %#x", got[0], failed(packets.ErrQuotaExceeded.Code))
		}
	})
}
