package gateway

// A device that speaks MQTT, for tests.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

func eachMQTT(t *testing.T, doc dynamic.Document, f func(t *testing.T, r *rig, version byte)) {
	for name, version := range mqttVersions {
		t.Run(name, func(t *testing.T) {
			bubble(t, doc, func(t *testing.T, r *rig) { f(t, r, version) })
		})
	}
}

// mqttDevice is a device as tests play it.
type mqttDevice struct {
	t       *testing.T
	conn    net.Conn
	version byte
	client  wire.ClientID
	packets chan packets.Packet // closed at the end of the stream
	ended   error
}

func (r *rig) connectMQTT(t *testing.T, version byte) *mqttDevice {
	t.Helper()
	here, there := net.Pipe()
	r.accepted(there, mqttKind)
	d := &mqttDevice{t: t, conn: here, version: version, packets: make(chan packets.Packet, 4096)}
	done := make(chan struct{})
	go d.read(done)
	t.Cleanup(func() { _ = here.Close(); <-done })
	return d
}

func (d *mqttDevice) read(done chan struct{}) {
	defer close(done)
	defer close(d.packets)
	for {
		pk, err := readPacket(d.conn, d.version)
		if err != nil {
			d.ended = err
			return
		}
		d.packets <- pk
	}
}

// readPacket reads one packet of the gateway's.
func readPacket(from io.Reader, version byte) (packets.Packet, error) {
	var one [1]byte
	if _, err := io.ReadFull(from, one[:]); err != nil {
		return packets.Packet{}, err
	}
	pk := packets.Packet{ProtocolVersion: version}
	if err := pk.FixedHeader.Decode(one[0]); err != nil {
		return pk, fmt.Errorf("header %x: %w", one[0], err)
	}
	length, shift := 0, 0
	for {
		if _, err := io.ReadFull(from, one[:]); err != nil {
			return pk, err
		}
		length |= int(one[0]&0x7f) << shift
		if shift += 7; one[0]&0x80 == 0 {
			break
		}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(from, body); err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining = length
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	case packets.Pingresp:
	default:
		err = fmt.Errorf("a packet of type %d", pk.FixedHeader.Type)
	}
	return pk, err
}

func (d *mqttDevice) write(b []byte) {
	d.t.Helper()
	_ = d.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := d.conn.Write(b); err != nil {
		d.t.Fatalf("write to the gateway: %v", err)
	}
	_ = d.conn.SetWriteDeadline(time.Time{})
}

func (d *mqttDevice) encode(kind byte, pk packets.Packet) []byte {
	d.t.Helper()
	pk.FixedHeader.Type, pk.ProtocolVersion = kind, d.version
	var out bytes.Buffer
	var err error
	switch kind {
	case packets.Connect:
		err = pk.ConnectEncode(&out)
	case packets.Publish:
		err = pk.PublishEncode(&out)
	case packets.Puback:
		err = pk.PubackEncode(&out)
	case packets.Subscribe:
		pk.FixedHeader.Qos = 1
		err = pk.SubscribeEncode(&out)
	case packets.Unsubscribe:
		pk.FixedHeader.Qos = 1
		err = pk.UnsubscribeEncode(&out)
	case packets.Pingreq:
		err = pk.PingreqEncode(&out)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&out)
	default:
		d.t.Fatalf("a packet of type %d", kind)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return out.Bytes()
}

func (d *mqttDevice) send(kind byte, pk packets.Packet) {
	d.t.Helper()
	d.write(d.encode(kind, pk))
}

// connect sends a CONNECT; change may be nil.
func (d *mqttDevice) connect(id wire.ClientID, token string, change func(*packets.Packet)) {
	d.t.Helper()
	d.client = id
	pk := packets.Packet{Connect: packets.ConnectParams{
		ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 60, ClientIdentifier: "meter",
		UsernameFlag: true, Username: []byte(id.String()), PasswordFlag: token != "", Password: []byte(token),
	}}
	if change != nil {
		change(&pk)
	}
	d.send(packets.Connect, pk)
}

// enrolledMQTT is a device that was let in with a new token.
func (r *rig) enrolledMQTT(t *testing.T, version byte, id wire.ClientID, change func(*packets.Packet)) *mqttDevice {
	t.Helper()
	d := r.connectMQTT(t, version)
	d.connect(id, "", change)
	if ack := d.want(packets.Connack); ack.ReasonCode != 0 {
		t.Fatalf("CONNACK %#x %s, want success", ack.ReasonCode, ack.Properties.ReasonString)
	}
	return d
}

func (d *mqttDevice) next() (packets.Packet, bool) {
	d.t.Helper()
	select {
	case pk, ok := <-d.packets:
		return pk, ok
	case <-time.After(patience):
		d.t.Fatal("the gateway sent nothing, want a packet or the end")
		return packets.Packet{}, false
	}
}

func (d *mqttDevice) want(kind byte) packets.Packet {
	d.t.Helper()
	pk, ok := d.next()
	if !ok {
		d.t.Fatalf("connection ended (%v), want %s", d.ended, packets.PacketNames[kind])
	}
	if pk.FixedHeader.Type != kind {
		d.t.Fatalf("got %s %#x %q %q, want %s", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, pk.TopicName, pk.Payload, packets.PacketNames[kind])
	}
	return pk
}

// wantPublish wants a message, and returns its payload.
func (d *mqttDevice) wantPublish(topic string) string {
	d.t.Helper()
	pk := d.want(packets.Publish)
	if pk.TopicName != topic {
		d.t.Fatalf("got a message %q %q, want one of %q", pk.TopicName, pk.Payload, topic)
	}
	return string(pk.Payload)
}

func (d *mqttDevice) wantEnd() {
	d.t.Helper()
	if pk, ok := d.next(); ok {
		d.t.Fatalf("got %s %#x %q %q, want the end of the connection", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, pk.TopicName, pk.Payload)
	}
	if !errors.Is(d.ended, io.EOF) && !errors.Is(d.ended, io.ErrClosedPipe) {
		d.t.Fatalf("connection ended with %v, want a clean end", d.ended)
	}
}

// wantDisconnect wants the end of the connection, with a reason where the version has one.
func (d *mqttDevice) wantDisconnect(reason packets.Code) {
	d.t.Helper()
	if d.version == 5 {
		if pk := d.want(packets.Disconnect); pk.ReasonCode != reason.Code {
			d.t.Fatalf("DISCONNECT %#x %s, want %#x", pk.ReasonCode, pk.Properties.ReasonString, reason.Code)
		}
	}
	d.wantEnd()
}

func (d *mqttDevice) subscribe(qos byte, filters ...string) []byte {
	d.t.Helper()
	pk := packets.Packet{PacketID: 77}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: qos})
	}
	d.send(packets.Subscribe, pk)
	ack := d.want(packets.Suback)
	if ack.PacketID != 77 || len(ack.ReasonCodes) != len(filters) {
		d.t.Fatalf("SUBACK of %d with %d codes, want of 77 with %d", ack.PacketID, len(ack.ReasonCodes), len(filters))
	}
	return ack.ReasonCodes
}

// publish sends a message; packet 0: of QoS 0.
func (d *mqttDevice) publish(topic, payload string, packet uint16) {
	d.t.Helper()
	pk := packets.Packet{TopicName: topic, Payload: []byte(payload), PacketID: packet}
	if packet != 0 {
		pk.FixedHeader.Qos = 1
	}
	d.send(packets.Publish, pk)
}

// wantPuback wants the acknowledgement of a packet; reason counts in MQTT 5.
func (d *mqttDevice) wantPuback(packet uint16, reason packets.Code) {
	d.t.Helper()
	pk := d.want(packets.Puback)
	if pk.PacketID != packet || (d.version == 5 && pk.ReasonCode != reason.Code) {
		d.t.Fatalf("PUBACK of %d, %#x; want of %d, %#x", pk.PacketID, pk.ReasonCode, packet, reason.Code)
	}
}
