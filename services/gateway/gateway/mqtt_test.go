package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/internal/dynamic"
)

// Devices that speak MQTT, packet by packet. Real clients are in cmd/goshield/stack.

// mqttVersions are run as subtests.
var mqttVersions = map[string]byte{"3.1.1": 4, "5": 5}

func TestMQTTRequest(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		if got := d.subscribe(1, "res/+/+", "err/#"); got[0] != 1 || got[1] != 1 {
			t.Fatalf("granted %v, want QoS 1", got)
		}
		d.publish("req/echo/0", `{"n":0}`, 0)
		if got := d.wantPublish("res/echo/0"); got != `{"n":0}` {
			t.Errorf("answer %s, want the echo", got)
		}
		d.publish("req/echo/4294967295", ``, 9)
		if got := d.wantPublish("res/echo/4294967295"); got != `null` {
			t.Errorf("answer %s to an empty body, want null", got)
		}
		d.wantPuback(9, packets.CodeSuccess)

		r.router.holding(true)
		d.publish("req/echo/7", `[7]`, 10)
		d.publish("req/echo/8", `[8]`, 11)
		synctest.Wait()
		select {
		case pk := <-d.packets:
			t.Fatalf("got %s before the backend answered, want nothing", packets.PacketNames[pk.FixedHeader.Type])
		default:
		}
		r.router.answerAll()
		for i, want := range []string{"[7]", "[8]"} {
			if got := d.wantPublish(fmt.Sprintf("res/echo/%d", 7+i)); got != want {
				t.Errorf("answer %s, want %s", got, want)
			}
			d.wantPuback(uint16(10+i), packets.CodeSuccess)
		}
		r.router.holding(false)

		d.publish("req/nobody/9", `1`, 12)
		var e struct {
			Code string `json:"code"`
			ID   uint32 `json:"id"`
		}
		if err := json.Unmarshal([]byte(d.wantPublish("err/nobody/9")), &e); err != nil || e.Code != "no_such_service" || e.ID != 9 {
			t.Errorf("error %+v, %v, want no_such_service of 9", e, err)
		}
		d.wantPuback(12, packets.ErrTopicNameInvalid)
		d.send(packets.Disconnect, packets.Packet{})
		d.wantEnd()
		if n := r.closed(closedBye); n != 1 {
			t.Errorf("closed %v with %q, want 1", n, closedBye)
		}
	})
}

// A body that is no JSON is refused; the connection, and what else is in flight on it, goes on. No text in it can reach the
// envelope that other devices' frames are made of.
func TestMQTTBodyThatIsNoJSON(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "#")
		_ = d.wantPublish("goshield/token")
		for i, body := range []string{"hello", `1,"token":"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, `{"n":1}}`, "\xff"} {
			d.publish("req/echo/1", body, uint16(i+1))
			if got := d.wantPublish("err/echo/1"); !strings.Contains(got, `"code":"bad_frame"`) || !strings.Contains(got, `"close":false`) {
				t.Errorf("body %q: %s, want bad_frame that does not close", body, got)
			}
			d.wantPuback(uint16(i+1), packets.ErrPayloadFormatInvalid)
		}
		if n := r.router.count(); n != 0 {
			t.Errorf("%d requests reached the router, want none", n)
		}
		d.publish("req/echo/1", `"again"`, 0)
		d.wantPublish("res/echo/1")
	})
}

func TestMQTTBytes(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), func(pk *packets.Packet) { pk.Connect.Username = append(pk.Connect.Username, "/bytes"...) })
		d.subscribe(0, "res/#")
		d.publish("req/echo/1", "\xff\x00", 0)
		if got := d.wantPublish("res/echo/1"); got != "\xff\x00" {
			t.Errorf("answer %q, want the echo", got)
		}
	})
}

func TestMQTTTokens(t *testing.T) {
	doc := testDoc()
	doc.Token.RotateProbability = 1
	eachMQTT(t, doc, func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		type told struct {
			Token     string `json:"token"`
			ExpiresAt int64  `json:"expires_at"`
		}
		token := func() (m told) {
			t.Helper()
			if err := json.Unmarshal([]byte(d.wantPublish("goshield/token")), &m); err != nil || m.Token == "" || m.ExpiresAt == 0 {
				t.Fatalf("token %+v, %v", m, err)
			}
			return m
		}
		d.subscribe(0, "goshield/token")
		first := token()
		d.send(packets.Pingreq, packets.Packet{})
		second := token()
		d.want(packets.Pingresp)
		if first.Token == second.Token {
			t.Fatal("the heartbeat brought the same token, want its successor")
		}
		// Told once, and again to whoever subscribes.
		d.send(packets.Pingreq, packets.Packet{})
		d.want(packets.Pingresp)
		d.subscribe(0, "goshield/token")
		if again := token(); again != second {
			t.Errorf("told %v, want the same again", again)
		}
		// It is stored: from now on it counts, and the next heartbeat brings a third.
		d.publish("goshield/token", `{"token":"`+second.Token+`"}`, 5)
		d.wantPuback(5, packets.CodeSuccess)
		d.subscribe(0, "res/#")
		d.publish("req/echo/1", `1`, 0)
		d.wantPublish("res/echo/1")
		d.send(packets.Pingreq, packets.Packet{})
		third := token()
		d.want(packets.Pingresp)
		if third.Token == second.Token {
			t.Error("no successor of the token that was confirmed")
		}

		// A new connection resumes with the newest, and the older one is told.
		d.subscribe(0, "goshield/error")
		again := r.connectMQTT(t, version)
		again.connect(clientID(1), third.Token, nil)
		if ack := again.want(packets.Connack); ack.ReasonCode != 0 {
			t.Fatalf("CONNACK %#x, want success", ack.ReasonCode)
		}
		if got := d.wantPublish("goshield/error"); !strings.Contains(got, "taken_over") {
			t.Errorf("told %s, want taken_over", got)
		}
		d.wantDisconnect(packets.ErrSessionTakenOver)
		again.subscribe(0, "goshield/token")
		again.send(packets.Pingreq, packets.Packet{})
		again.wantPublish("goshield/token")
		again.want(packets.Pingresp)

		// One that was made up ends the connection.
		again.publish("goshield/token", `{"token":"6ba7b810-9dad-11d1-80b4-00c04fd430c8"}`, 6)
		again.wantDisconnect(packets.ErrNotAuthorized)
	})
}

func TestMQTTConnectRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(pk *packets.Packet)
		want   map[byte]byte // CONNACK by version; no entry: the end without one
	}{
		{"a user name that is no client_id", func(pk *packets.Packet) { pk.Connect.Username = []byte("root") }, map[byte]byte{4: 4, 5: 0x86}},
		{"no user name", func(pk *packets.Packet) { pk.Connect.UsernameFlag = false; pk.Connect.PasswordFlag = false }, map[byte]byte{4: 4, 5: 0x86}},
		{"a password that is no token", func(pk *packets.Packet) { pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte("secret") }, map[byte]byte{4: 4, 5: 0x86}},
		{"a token of nobody", func(pk *packets.Packet) {
			pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
		}, map[byte]byte{4: 4, 5: 0x86}},
		{"a will", func(pk *packets.Packet) {
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, "t", []byte("x")
		}, map[byte]byte{4: 5, 5: 0x83}},
		{"another protocol", func(pk *packets.Packet) { pk.Connect.ProtocolName = []byte("QTTM") }, nil},
		{"no client identifier for a session that stays", func(pk *packets.Packet) { pk.Connect.ClientIdentifier, pk.Connect.Clean = "", false }, map[byte]byte{4: 2, 5: 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
				d := r.connectMQTT(t, version)
				d.connect(clientID(1), "", tt.change)
				want, answered := tt.want[version]
				if answered {
					if ack := d.want(packets.Connack); ack.ReasonCode != want {
						t.Fatalf("CONNACK %#x %s, want %#x", ack.ReasonCode, ack.Properties.ReasonString, want)
					}
				}
				if !answered || want != 0 {
					d.wantEnd()
				}
			})
		})
	}
}

// Versions that nobody speaks are told so in a CONNACK that they understand.
func TestMQTTVersions(t *testing.T) {
	for name, tt := range map[string]struct {
		packet string
		want   string
	}{
		"3.1": {"\x10\x11\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x03abc", "\x20\x02\x00\x01"},
		"6":   {"\x10\x0f\x00\x04MQTT\x06\x02\x00\x3c\x00\x03abc", "\x20"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				here, there := net.Pipe()
				r.accepted(there, mqttKind)
				defer here.Close()
				if _, err := here.Write([]byte(tt.packet)); err != nil {
					t.Fatal(err)
				}
				got, _ := io.ReadAll(here) // until the gateway closes
				if !strings.HasPrefix(string(got), tt.want) {
					t.Errorf("got %x, want %x", got, tt.want)
				}
			})
		})
	}
}

func TestMQTTEnrolmentThatNeedsAProof(t *testing.T) {
	doc := testDoc()
	doc.Enrolment = dynamic.EnrolKey
	eachMQTT(t, doc, func(t *testing.T, r *rig, version byte) {
		d := r.connectMQTT(t, version)
		d.connect(clientID(1), "", nil)
		want := map[byte]byte{4: 5, 5: 0x87}[version]
		if ack := d.want(packets.Connack); ack.ReasonCode != want {
			t.Fatalf("CONNACK %#x, want %#x", ack.ReasonCode, want)
		}
		d.wantEnd()
	})
}

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

// PINGREQ puts off the deadline that the keep alive sets, and so does any packet.
func TestMQTTKeepAlive(t *testing.T) {
	doc := testDoc()
	doc.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(20 * time.Second), Missed: 3}
	eachMQTT(t, doc, func(t *testing.T, r *rig, version byte) {
		d := r.connectMQTT(t, version)
		d.connect(clientID(1), "", func(pk *packets.Packet) { pk.Connect.Keepalive = 40 })
		ack := d.want(packets.Connack)
		keep := 40 * time.Second
		if version == 5 { // the gateway says how long
			if keep = 20 * time.Second; ack.Properties.ServerKeepAlive != 20 {
				t.Errorf("server keep alive %d, want 20", ack.Properties.ServerKeepAlive)
			}
		}
		for range 5 {
			time.Sleep(keep)
			d.send(packets.Pingreq, packets.Packet{})
			d.want(packets.Pingresp)
		}
		for range 5 {
			time.Sleep(keep)
			d.publish("req/echo/1", `1`, 1)
			d.wantPuback(1, packets.CodeSuccess)
		}
		last := time.Now()
		d.wantDisconnect(packets.ErrKeepAliveTimeout)
		if silent := time.Since(last); silent < keep*3/2 || silent > keep*3/2+time.Second {
			t.Errorf("closed after %v of silence, want after %v", silent, keep*3/2)
		}
	})
}

// Without a keep alive it is the idle timeout that counts; part of a packet has to become whole.
func TestMQTTSilence(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.connectMQTT(t, 4)
		d.connect(clientID(1), "", func(pk *packets.Packet) { pk.Connect.Keepalive = 0 })
		d.want(packets.Connack)
		begun := time.Now()
		d.wantEnd()
		if silent := time.Since(begun); silent < 90*time.Second || silent > 93*time.Second {
			t.Errorf("closed after %v of silence, want 90s", silent)
		}
		half := r.enrolledMQTT(t, 4, clientID(2), nil)
		begun = time.Now()
		half.write([]byte{0x30, 0x20, 0})
		half.wantEnd()
		if silent := time.Since(begun); silent < 10*time.Second || silent > 13*time.Second {
			t.Errorf("closed after %v with half a packet, want 10s", silent)
		}
		if n := r.closed(closedFrameTimeout); n != 1 {
			t.Errorf("closed %v with %q, want 1", n, closedFrameTimeout)
		}
	})
}

// The device's limit holds for requests, and for packets that become no frames.
func TestMQTTLimit(t *testing.T) {
	doc := testDoc()
	doc.DeviceLimit.Bucket = dynamic.Bucket{Rate: 1, Burst: 4}
	eachMQTT(t, doc, func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "err/#")
		d.subscribe(0, "goshield/error")
		d.publish("req/echo/1", `1`, 1)
		d.wantPuback(1, packets.CodeSuccess)
		d.publish("req/echo/1", `1`, 2)
		d.wantPuback(2, packets.CodeSuccess)
		d.publish("req/echo/1", `1`, 3)
		if got := d.wantPublish("err/echo/1"); !strings.Contains(got, "rate_limited") || !strings.Contains(got, "retry_after_ms") {
			t.Errorf("told %s, want rate_limited", got)
		}
		d.wantPuback(3, packets.ErrQuotaExceeded)
		d.send(packets.Pingreq, packets.Packet{})
		if got := d.wantPublish("goshield/error"); !strings.Contains(got, "rate_limited") {
			t.Errorf("told %s, want rate_limited", got)
		}
		want := byte(0x80)
		if version == 5 {
			want = packets.ErrQuotaExceeded.Code
		}
		if got := d.subscribe(0, "res/#"); got[0] != want {
			t.Errorf("SUBSCRIBE over the limit: %#x, want %#x", got[0], want)
		}
	})
}

// A device that sends SUBSCRIBEs and does not read is stopped by what waits for it, as any other.
func TestMQTTDeviceThatDoesNotRead(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		here, there := net.Pipe()
		r.accepted(there, mqttKind)
		defer here.Close()
		d := &mqttDevice{t: t, conn: here, version: 4}
		d.connect(clientID(1), "", nil)
		if _, err := readPacket(here, 4); err != nil {
			t.Fatal(err)
		}
		pk := packets.Packet{PacketID: 1}
		for range 100 {
			pk.Filters = append(pk.Filters, packets.Subscription{Filter: "bad#filter"})
		}
		flood := d.encode(packets.Subscribe, pk)
		sent := 0
		for ; sent < 10_000; sent++ {
			_ = here.SetWriteDeadline(time.Now().Add(5 * time.Second))
			if _, err := here.Write(flood); err != nil {
				break
			}
		}
		ses := r.table.find(clientID(1))
		if ses == nil {
			t.Fatal("the session is gone already")
		}
		ses.mu.Lock()
		waiting := ses.out.bytes
		ses.mu.Unlock()
		if waiting > outboundLimit+1024 || sent == 10_000 {
			t.Errorf("%d bytes wait after %d packets, want at most %d", waiting, sent, outboundLimit)
		}
		time.Sleep(12 * time.Second)
		if n := r.closed(closedWriteStalled); n != 1 {
			t.Errorf("closed %v with %q, want 1", n, closedWriteStalled)
		}
	})
}

// A device that is sent away hears it on a topic, is served until then, and is told to connect again when it closes.
func TestMQTTDrain(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "goshield/goaway", "res/#")
		r.table.find(clientID(1)).goAway("draining", 2*time.Second, time.Second)
		if got := d.wantPublish("goshield/goaway"); got != `{"reason":"draining","after_ms":2000}` {
			t.Errorf("told %s", got)
		}
		d.publish("req/echo/1", `1`, 0)
		d.wantPublish("res/echo/1")
		d.wantDisconnect(packets.ErrServerShuttingDown)
		if n := r.closed(closedDrained); n != 1 {
			t.Errorf("closed %v with %q, want 1", n, closedDrained)
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
