package gateway

// How devices that speak MQTT connect: tokens, refusals, versions.

import (
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/internal/dynamic"
)

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
