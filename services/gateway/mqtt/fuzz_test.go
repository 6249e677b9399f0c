package mqtt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/sdk/wire"
)

// FuzzConnection feeds a translator whatever a device could send, as a session would, and answers its frames as a gateway
// does. Nothing may crash it; each frame must be one, and no larger than the session takes; what it sends must be packets;
// what it remembers is bounded.
func FuzzConnection(f *testing.F) {
	id := bytes.Repeat([]byte("5a"), 32)
	connect := func(version byte, user string) []byte {
		pk := packets.Packet{ProtocolVersion: version, Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 60, ClientIdentifier: "m", UsernameFlag: true, Username: []byte(user),
		}}
		pk.FixedHeader.Type = packets.Connect
		var b bytes.Buffer
		if err := pk.ConnectEncode(&b); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	for _, version := range []byte{version311, version5} {
		for _, rest := range []string{
			"", "\xc0\x00", "\xe0\x00", "\x30\x0f\x00\x0areq/echo/1{}!", "\x32\x11\x00\x0areq/echo/1\x00\x07{}!", "\x82\x08\x00\x01\x00\x03#/a\x00",
			"\x82\x06\x00\x01\x00\x01#\x01", "\x82\x07\x00\x01\x00\x00\x01#\x01\xc0\x00", "\x82\x06\x00\x01\x00\x00\x01a", "\x40\x02\x00\x01",
			"\xa2\x05\x00\x01\x00\x01#", "\x30\x02\x00\x00", "\x34\x05\x00\x01a\x00\x01", "\xf0\x00", "\x30\xff\xff\xff\xff\x01",
			"\x30\x4a\x00\x0egoshield/token{\"token\":\"6ba7b810-9dad-11d1-80b4-00c04fd430c8\"}",
		} {
			f.Add(append(connect(version, string(id)), rest...), byte(0))
			f.Add(append(connect(version, string(id)+"/bytes"), rest...), byte(0xff))
		}
	}
	f.Add([]byte("\x10\x11\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x03abc"), byte(1))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), byte(2))
	f.Fuzz(func(t *testing.T, stream []byte, how byte) {
		tr := NewTranslator(func(int) bool { return how&1 == 0 })
		g := &fakeGateway{t: t, tr: tr, how: how}
		for len(stream) > 0 {
			size, err := tr.PacketSize(stream)
			if err != nil {
				g.refused(err)
				return
			}
			if size == 0 || size > len(stream) {
				return // more would have to come
			}
			in, err := tr.Receive(stream[:size])
			if err != nil {
				g.refused(err)
				return
			}
			g.wantPackets(in.Answer)
			if len(in.Frame) > 0 && !g.frame(in.Frame) {
				return
			}
			stream = stream[size:]
			if len(tr.subs) > maxFilters || len(tr.unacked) > 4 {
				t.Fatalf("%d subscriptions, %d unacknowledged", len(tr.subs), len(tr.unacked))
			}
		}
		g.wantPackets(tr.Goodbye())
	})
}

// fakeGateway answers frames.
type fakeGateway struct {
	t      *testing.T
	tr     *Translator
	how    byte
	pushes int
}

const fuzzMaxFrame = 4096

// frame takes a frame, and answers; false: the session is over.
func (g *fakeGateway) frame(frame []byte) bool {
	h, err := wire.ParseHeader(frame, fuzzMaxFrame)
	if err != nil || h.Version != wire.Version2 || wire.HeaderSize+int(h.Length) != len(frame) {
		g.t.Fatalf("frame %x: %+v, %v", frame, h, err)
	}
	payload := frame[wire.HeaderSize:]
	switch h.Type {
	case wire.TypeHello:
		g.take(payload, new(wire.Hello))
		w := &wire.Welcome{Token: wire.Token{1}, ExpiresAt: time.UnixMilli(1), Heartbeat: 20 * time.Second, IdleTimeout: 90 * time.Second, MaxFrame: fuzzMaxFrame, Session: "1"}
		g.tr.Welcomed(w, 32)
		g.answer(w)
	case wire.TypeRequest:
		var r wire.Request
		g.take(payload, &r)
		if g.how&2 == 0 {
			g.answer(&wire.Response{ID: r.ID, Body: r.Body})
		} else {
			g.answer(&wire.Error{Code: wire.CodeNoSuchService, Message: r.Service, ID: r.ID, HasID: true})
		}
	case wire.TypeHeartbeat:
		var b wire.Heartbeat
		g.take(payload, &b)
		g.answer(&wire.HeartbeatAck{Token: wire.Token{2}, ExpiresAt: time.UnixMilli(2)})
	case wire.TypePushAck:
		g.take(payload, new(wire.PushAck))
	case wire.TypeBye:
		return false
	default:
		g.t.Fatalf("a device sent %s", h.Type)
	}
	if g.pushes < 4 && g.tr.MayPush("echo", 2) == PushTaken {
		g.pushes++
		g.answer(&wire.Push{ID: uint32(g.pushes), Service: "echo", Body: []byte("{}")})
	}
	return true
}

func (g *fakeGateway) take(payload []byte, m wire.Message) {
	if err := wire.Unmarshal(wire.Version2, payload, m); err != nil {
		// A body or a name that is no UTF-8 is checked by the session; all else is the translator's.
		g.t.Fatalf("%s %x: %v", m.Type(), payload, err)
	}
}

func (g *fakeGateway) answer(m wire.Message) {
	frame, err := wire.Append(nil, wire.Version2, m)
	if err != nil {
		g.t.Fatal(err)
	}
	out, err := g.tr.Send(nil, wire.Frame{
		Header:  wire.Header{Version: frame[0], Type: wire.Type(frame[1]), Length: binary.BigEndian.Uint16(frame[2:])},
		Payload: frame[wire.HeaderSize:],
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.wantPackets(out)
}

func (g *fakeGateway) refused(err error) {
	var e *wire.Error
	if !errors.As(err, &e) || !e.Close {
		g.t.Fatalf("refused with %v, want an error that closes", err)
	}
	g.answer(e)
}

// wantPackets wants whole packets, of types that a gateway sends.
func (g *fakeGateway) wantPackets(b []byte) {
	for len(b) > 0 {
		kind, length, at := b[0]>>4, 0, 1
		for shift := 0; ; shift += 7 {
			if at >= len(b) || shift > 21 {
				g.t.Fatalf("sent %x, which is no packet", b)
			}
			length |= int(b[at]&0x7f) << shift
			at++
			if b[at-1]&0x80 == 0 {
				break
			}
		}
		switch kind {
		case packets.Connack, packets.Publish, packets.Puback, packets.Suback, packets.Unsuback, packets.Pingresp, packets.Disconnect:
		default:
			g.t.Fatalf("sent a packet of type %d", kind)
		}
		if at+length > len(b) {
			g.t.Fatalf("sent %x, which is cut short", b)
		}
		b = b[at+length:]
	}
}

func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		filter, topic string
		want          bool
	}{
		{"#", "res/echo/1", true},
		{"res/#", "res/echo/1", true},
		{"res/echo/1/#", "res/echo/1", true},
		{"res/+/1", "res/echo/1", true},
		{"+/+/+", "res/echo/1", true},
		{"+", "res/echo/1", false},
		{"res/+", "res/echo/1", false},
		{"res/echo/1/+", "res/echo/1", false},
		{"res/echo/1", "res/echo/12", false},
		{"goshield/token", "goshield/token", true},
	} {
		levels, ok := parseFilter(tt.filter)
		if got := matches(levels, tt.topic); !ok || got != tt.want {
			t.Errorf("%s, %s: got %v (%v), want %v", tt.filter, tt.topic, got, ok, tt.want)
		}
	}
}

// The library hands out strings that are the packet's own bytes; what is kept has to be a copy.
func TestNothingKeptAliasesThePacket(t *testing.T) {
	tr := NewTranslator(func(int) bool { return true })
	tr.version = version311
	packet := []byte("\x82\x0a\x00\x01\x00\x05res/#\x00")
	if _, err := tr.Receive(packet); err != nil {
		t.Fatal(err)
	}
	publish := []byte("\x30\x0d\x00\x0areq/echo/1x")
	if _, err := tr.Receive(publish); err != nil {
		t.Fatal(err)
	}
	clear(packet)
	clear(publish)
	if tr.subs[0].filter != "res/#" || tr.subs[0].levels[0] != "res" || tr.requests[1].service != "echo" {
		t.Errorf("kept %+v, %+v after the packets were gone", tr.subs, tr.requests)
	}
}
