package gateway

// Packets of MQTT that are wrong, long, or come in pieces.

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What a device must not send ends its connection, with the reason that MQTT 5 has for it.
func TestMQTTBadPackets(t *testing.T) {
	pub := func(pk packets.Packet) func(d *mqttDevice) []byte {
		return func(d *mqttDevice) []byte { return d.encode(packets.Publish, pk) }
	}
	raw := func(b string) func(d *mqttDevice) []byte { return func(*mqttDevice) []byte { return []byte(b) } }
	header := func(qos byte, retain, dup bool) packets.FixedHeader {
		return packets.FixedHeader{Qos: qos, Retain: retain, Dup: dup}
	}
	for _, tt := range []struct {
		name   string
		packet func(d *mqttDevice) []byte
		want   packets.Code
	}{
		{"QoS 2", pub(packets.Packet{FixedHeader: header(2, false, false), PacketID: 1, TopicName: "req/echo/1"}), packets.ErrQosNotSupported},
		{"retain", pub(packets.Packet{FixedHeader: header(0, true, false), TopicName: "req/echo/1"}), packets.ErrRetainNotSupported},
		{"QoS 0 sent again", pub(packets.Packet{FixedHeader: header(0, false, true), TopicName: "req/echo/1"}), packets.ErrProtocolViolation},
		{"another topic", pub(packets.Packet{TopicName: "sensors/temperature"}), packets.ErrTopicNameInvalid},
		{"an id that is no number", pub(packets.Packet{TopicName: "req/echo/one"}), packets.ErrTopicNameInvalid},
		{"an id in another way", pub(packets.Packet{TopicName: "req/echo/01"}), packets.ErrTopicNameInvalid},
		{"an id too large", pub(packets.Packet{TopicName: "req/echo/4294967296"}), packets.ErrTopicNameInvalid},
		{"a level too many", pub(packets.Packet{TopicName: "req/echo/1/2"}), packets.ErrTopicNameInvalid},
		{"no service", pub(packets.Packet{TopicName: "req//1"}), packets.ErrTopicNameInvalid},
		{"a service too long", pub(packets.Packet{TopicName: "req/" + strings.Repeat("s", 256) + "/1"}), packets.ErrTopicNameInvalid},
		{"a wildcard", pub(packets.Packet{TopicName: "req/+/1"}), packets.ErrProtocolViolation},
		{"a confirmation of nothing", pub(packets.Packet{TopicName: "goshield/token", Payload: []byte("{}")}), packets.ErrPayloadFormatInvalid},
		{"a second CONNECT", raw("\x10\x00"), packets.ErrProtocolViolation},
		{"a packet of the gateway's", raw("\x20\x02\x00\x00"), packets.ErrProtocolViolation},
		{"no packet", raw("\x00\x00"), packets.ErrMalformedPacket},
		{"QoS 3", raw("\x36\x00"), packets.ErrMalformedPacket},
		{"a length of five bytes", raw("\x30\x80\x80\x80\x80\x01"), packets.ErrMalformedPacket},
		{"a topic that goes on behind the packet", raw("\x30\x03\x00\x09r"), packets.ErrMalformedPacket},
		{"no filter", raw("\x82\x02\x00\x01"), packets.ErrMalformedPacket},
		{"a filter without options", raw("\x82\x06\x00\x01\x00\x00\x01a"), packets.ErrMalformedPacket},
		{"a packet that is too long", raw("\x30\xff\xff\x03"), packets.ErrPacketTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
				d := r.enrolledMQTT(t, version, clientID(1), nil)
				d.write(tt.packet(d))
				if version != 5 {
					d.wantEnd()
					return
				}
				pk := d.want(packets.Disconnect)
				malformed := pk.ReasonCode == packets.ErrMalformedPacket.Code || pk.ReasonCode == packets.ErrProtocolViolation.Code
				if pk.ReasonCode != tt.want.Code && !(malformed && (tt.want == packets.ErrMalformedPacket || tt.want == packets.ErrProtocolViolation)) {
					t.Errorf("DISCONNECT %#x %s, want %#x", pk.ReasonCode, pk.Properties.ReasonString, tt.want.Code)
				}
				d.wantEnd()
				if n := r.router.count(); n != 0 {
					t.Errorf("%d requests reached the router, want none", n)
				}
			})
		})
	}
}

// The longest packet that a device may send is the longest that fits a frame; its whole body arrives.
func TestMQTTLongestPacket(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.connectMQTT(t, version)
		d.connect(clientID(1), "", func(pk *packets.Packet) { pk.Connect.Username = append(pk.Connect.Username, "/bytes"...) })
		ack := d.want(packets.Connack)
		limit := testDoc().Frame.MaxBytes - 17
		if version == 5 && int(ack.Properties.MaximumPacketSize) != limit {
			t.Errorf("told a maximum packet size of %d, want %d", ack.Properties.MaximumPacketSize, limit)
		}
		d.subscribe(0, "res/#")
		overhead := len(d.encode(packets.Publish, packets.Packet{TopicName: "req/echo/1", Payload: make([]byte, 16000)})) - 16000
		body := strings.Repeat("x", limit-overhead)
		d.publish("req/echo/1", body, 0)
		if got := d.wantPublish("res/echo/1"); got != body {
			t.Errorf("got %d bytes back, want %d", len(got), len(body))
		}
		// The gateway does not read it, so writing may fail before it is all written.
		_, _ = d.conn.Write(d.encode(packets.Publish, packets.Packet{TopicName: "req/echo/2", Payload: []byte(body + "x")}))
		d.wantDisconnect(packets.ErrPacketTooLarge)
	})
}

// A device of MQTT 5 that takes short packets only is told of an answer that is longer, and gets no such push.
func TestMQTTDeviceThatTakesShortPackets(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolledMQTT(t, 5, clientID(1), func(pk *packets.Packet) { pk.Properties.MaximumPacketSize = 256 })
		d.subscribe(1, "#")
		_ = d.wantPublish("goshield/token")
		d.publish("req/echo/1", `"`+strings.Repeat("x", 300)+`"`, 3)
		if got := d.wantPublish("err/echo/1"); !strings.Contains(got, "backend_error") {
			t.Errorf("told %s, want backend_error", got)
		}
		d.wantPuback(3, packets.ErrImplementationSpecificError)
		ses := r.table.find(clientID(1))
		if got := ses.push("echo", []byte(`"`+strings.Repeat("x", 300)+`"`), time.Second, nil); got != pushRefused {
			t.Errorf("a long push: %s, want %s", got, pushRefused)
		}
	})
}

// Packets that arrive in pieces, and many in one piece.
func TestMQTTPieces(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "res/#")
		var all []byte
		for i := range 20 {
			all = append(all, d.encode(packets.Publish, packets.Packet{TopicName: fmt.Sprintf("req/echo/%d", i), Payload: []byte(`"` + strings.Repeat("x", 100*i) + `"`)})...)
		}
		d.write(all)
		for i := range 20 {
			d.wantPublish(fmt.Sprintf("res/echo/%d", i))
		}
		for _, b := range d.encode(packets.Publish, packets.Packet{TopicName: "req/echo/99", Payload: []byte(`{"in":"pieces"}`)}) {
			d.write([]byte{b})
		}
		if got := d.wantPublish("res/echo/99"); got != `{"in":"pieces"}` {
			t.Errorf("got %s", got)
		}
	})
}
