package wire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/goshield/goshield/sdk/wire/devicepb"
)

// generated is m as the generated code of device.proto has it.
func generated(m Message) proto.Message {
	token := func(t Token) []byte {
		if t.IsZero() {
			return nil
		}
		return t[:]
	}
	switch m := m.(type) {
	case *Hello:
		return &devicepb.Hello{ClientId: m.ClientID[:], Token: token(m.Token), Agent: m.Agent}
	case *Welcome:
		return &devicepb.Welcome{
			Token: m.Token[:], ExpiresAt: unixMillis(m.ExpiresAt), HeartbeatMs: wholeMillis(m.Heartbeat),
			IdleTimeoutMs: wholeMillis(m.IdleTimeout), MaxFrame: uint32(m.MaxFrame), Session: m.Session,
		}
	case *Request:
		return &devicepb.Request{Id: m.ID, Token: token(m.Token), Service: m.Service, Body: m.Body}
	case *Response:
		return &devicepb.Response{Id: m.ID, Body: m.Body}
	case *Heartbeat:
		return &devicepb.Heartbeat{Token: token(m.Token)}
	case *HeartbeatAck:
		return &devicepb.HeartbeatAck{Token: token(m.Token), ExpiresAt: unixMillis(m.ExpiresAt)}
	case *Push:
		return &devicepb.Push{Id: m.ID, Service: m.Service, Body: m.Body}
	case *PushAck:
		return &devicepb.PushAck{Id: m.ID}
	case *Error:
		e := &devicepb.Error{Code: string(m.Code), Message: m.Message, RetryAfterMs: wholeMillis(m.RetryAfter), Close: m.Close}
		if m.HasID {
			e.Id = &m.ID
		}
		return e
	case *Goaway:
		return &devicepb.Goaway{Reason: m.Reason, AfterMs: wholeMillis(m.After)}
	case *Challenge:
		return &devicepb.Challenge{Nonce: m.Nonce[:]}
	case *Proof:
		return &devicepb.Proof{Proof: m.Proof[:]}
	case *Bye:
		return &devicepb.Bye{}
	}
	panic("a message without generated code")
}

// What this codec writes, the generated one reads as the same, and the other
// way round.
func TestProtoAgreesWithGeneratedCode(t *testing.T) {
	for name, m := range goldenMessages(t) {
		t.Run(name, func(t *testing.T) {
			want := generated(m)
			frame, err := Append(nil, Version2, m)
			if err != nil {
				t.Fatal(err)
			}
			got := want.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(frame[HeaderSize:], got); err != nil || !proto.Equal(got, want) {
				t.Errorf("generated code reads %v, %v\nwant %v", got, err, want)
			}
			payload, err := proto.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			again := newMessage(m.Type())
			if err := Unmarshal(Version2, payload, again); err != nil || !reflect.DeepEqual(again, m) {
				t.Errorf("Unmarshal of what generated code writes: got %+v, %v\nwant %+v", again, err, m)
			}
		})
	}
}

// The field numbers of device.proto are what the error messages and the
// required fields rest on.
func TestProtoFieldsAreNumberedAsInJSON(t *testing.T) {
	for _, m := range newMessages() {
		names, _ := m.fields()
		fields := generated(m).ProtoReflect().Descriptor().Fields()
		if fields.Len() != len(names) {
			t.Errorf("%s: device.proto has %d fields, version 1 has %d", m.Type(), fields.Len(), len(names))
			continue
		}
		for i, name := range names {
			if f := fields.ByNumber(protowire.Number(i + 1)); f == nil || string(f.Name()) != name {
				t.Errorf("%s: field %d of device.proto is %v, want %s", m.Type(), i+1, f, name)
			}
		}
	}
}

func TestProtoRefuses(t *testing.T) {
	id := testClientID(t)
	hello := protoBytes(nil, 1, id[:])
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	fixed := func(num protowire.Number) []byte {
		return protowire.AppendFixed32(protowire.AppendTag(nil, num, protowire.Fixed32Type), 7)
	}
	for _, test := range []struct {
		name    string
		typ     Type
		payload []byte
		want    string // how the error begins; "" for none
	}{
		{"unknown fields", TypeHello, cat(fixed(9), hello, protoBytes(nil, 300, []byte("x"))), ""},
		{"an unknown group", TypeHello, cat(hello, []byte{9<<3 | 3, 9<<3 | 4}), ""},
		{"last of two counts", TypePushAck, cat(protoUint(nil, 1, 1), protoUint(nil, 1, 2)), ""},
		{"nothing", TypeHello, nil, "bad_frame: HELLO.client_id is missing"},
		{"field number 0", TypeHello, []byte{0, 0}, "bad_frame: HELLO payload is not Protocol Buffers at byte 0"},
		{"cut in a field", TypeHello, hello[:20], "bad_frame: HELLO payload is not Protocol Buffers at byte 0"},
		{"cut after a field", TypeHello, append(hello[:34:34], 2<<3), "bad_frame: HELLO payload is not Protocol Buffers at byte 34"},
		{"a group without end", TypeHello, cat(hello, []byte{9<<3 | 3}), "bad_frame: HELLO payload is not Protocol Buffers at byte 34"},
		{"a varint of eleven bytes", TypePushAck, append([]byte{1 << 3}, bytes.Repeat([]byte{0xff}, 11)...), "bad_frame: PUSH_ACK payload is not"},
		{"client_id of 31 bytes", TypeHello, protoBytes(nil, 1, id[:31]), "bad_frame: HELLO.client_id must be 32 bytes"},
		{"client_id of 33 bytes", TypeHello, protoBytes(nil, 1, append(id[:], 0)), "bad_frame: HELLO.client_id must be 32 bytes"},
		{"client_id a number", TypeHello, protoUint(nil, 1, 5), "bad_frame: HELLO.client_id must be 32 bytes"},
		{"client_id fixed", TypeHello, fixed(1), "bad_frame: HELLO.client_id must be 32 bytes"},
		{"token of 15 bytes", TypeHeartbeat, protoBytes(nil, 1, make([]byte, 15)), "bad_token: HEARTBEAT.token is not a token"},
		{"token of zeros", TypeHeartbeat, protoBytes(nil, 1, make([]byte, 16)), "bad_token: HEARTBEAT.token is not a token"},
		{"token a number", TypeHeartbeat, protoUint(nil, 1, 1), "bad_frame: HEARTBEAT.token must be bytes"},
		{"no token", TypeHeartbeat, protoBytes(nil, 1, nil), ""},
		{"id over 32 bits", TypePushAck, protoUint(nil, 1, 1<<32), "bad_frame: PUSH_ACK.id must be a whole number from 0 to 4294967295"},
		{"id a string", TypePushAck, protoBytes(nil, 1, []byte("7")), "bad_frame: PUSH_ACK.id must be a whole number"},
		{"service not UTF-8", TypeRequest, protoBytes(nil, 3, []byte{0xff}), "bad_frame: REQUEST.service must be a string of UTF-8"},
		{"service empty", TypeRequest, protoBytes(nil, 3, nil), "bad_frame: REQUEST.service must be a name"},
		{"service too long", TypeRequest, protoBytes(nil, 3, bytes.Repeat([]byte("x"), 256)), "bad_frame: REQUEST.service must be at most 255 bytes long"},
		{"service missing", TypeRequest, protoUint(nil, 1, 1), "bad_frame: REQUEST.service is missing"},
		{"id 0 and no body", TypeRequest, protoBytes(nil, 3, []byte("echo")), ""},
		{"body a number", TypeRequest, cat(protoBytes(nil, 3, []byte("echo")), protoUint(nil, 4, 1)), "bad_frame: REQUEST.body must be bytes"},
		{"close neither", TypeError, cat(protoString(nil, 1, "x"), protoUint(nil, 5, 2)), "bad_frame: ERROR.close must be true or false"},
		{"half a rotation", TypeHeartbeatAck, protoUint(nil, 2, 5), "bad_frame: HEARTBEAT_ACK.token is missing"},
		{"a rotation with an empty token", TypeHeartbeatAck, cat(protoBytes(nil, 1, nil), protoUint(nil, 2, 5)), "bad_frame: HEARTBEAT_ACK.token is missing"},
		{"a rotation whose last token is empty", TypeHeartbeatAck, cat(protoBytes(nil, 1, bytes.Repeat([]byte{1}, 16)), protoUint(nil, 2, 5), protoBytes(nil, 1, nil)), "bad_frame: HEARTBEAT_ACK.token is missing"},
		{"a welcome with an empty token", TypeWelcome, cat(protoBytes(nil, 1, nil), protoUint(nil, 2, 5), protoUint(nil, 3, 5), protoUint(nil, 4, 5), protoUint(nil, 5, 5), protoString(nil, 6, "s")), "bad_frame: WELCOME.token is missing"},
		{"nonce short", TypeChallenge, protoBytes(nil, 1, make([]byte, 8)), "bad_frame: CHALLENGE.nonce must be 32 bytes"},
		{"time too far", TypeGoaway, protoUint(nil, 2, 1<<63), "bad_frame: GOAWAY.after_ms must be a whole number of milliseconds"},
		{"anything in BYE", TypeBye, protoUint(nil, 1, 1), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Unmarshal(Version2, test.payload, newMessage(test.typ))
			got := ""
			if err != nil {
				got = err.Error()
			}
			if test.want == "" && got != "" || !strings.HasPrefix(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestProtoStringsAreUTF8(t *testing.T) {
	frame, err := Append(nil, Version2, &Goaway{Reason: "a\xffb"})
	if err != nil {
		t.Fatal(err)
	}
	var m Goaway
	if err := Unmarshal(Version2, frame[HeaderSize:], &m); err != nil || m.Reason != "a\uFFFDb" {
		t.Errorf("got %q, %v", m.Reason, err)
	}
}

// FuzzUnmarshalProto: what version 2 accepts, the generated code reads as the
// same.
func FuzzUnmarshalProto(f *testing.F) {
	for _, frame := range goldenFrames(f, Version2) {
		f.Add(frame[1], frame[HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, typ byte, payload []byte) {
		m := decodeTwice(t, Version2, typ, payload)
		if m == nil {
			return
		}
		oracle := generated(m).ProtoReflect().New().Interface()
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(payload, oracle); err != nil {
			t.Errorf("generated code refuses what was accepted: %v", err)
		}
		if hello, ok := oracle.(*devicepb.Hello); ok {
			hello.Agent = cut(hello.Agent, MaxAgent)
		}
		if want := generated(m); !proto.Equal(oracle, want) {
			t.Errorf("generated code reads %v\nwant %v", oracle, want)
		}
	})
}
