package wire

import (
	"math"
	"time"
)

// Message is one of the structs below: what a frame's payload says. The set is
// closed; Append and Unmarshal take any of them by pointer.
type Message interface {
	// Type is the frame type that carries this message.
	Type() Type

	appendJSON(dst []byte) []byte
	// setJSON takes one member of the object. The raw value has been checked
	// to be JSON. ok is false for a name that this message does not know.
	setJSON(name, raw []byte) (field int, err error)

	appendProto(dst []byte) []byte
	// setProto takes one field whose number is that of a member.
	setProto(f protoField) error

	// reset makes the message empty before decoding.
	reset()
	// fields names the members as setJSON numbers them, protobuf's numbers less
	// one, and says which of them (a bit each) must have come for the message as
	// it now is.
	fields() (names []string, required uint)
}

// Hello is a device's first frame: who it is and, to resume, its token.
type Hello struct {
	ClientID ClientID
	Token    Token  // zero: enrol
	Agent    string // the device's software, for people; at most MaxAgent bytes are kept
}

// Welcome opens the session.
type Welcome struct {
	Token       Token     // the one presented, or its successor
	ExpiresAt   time.Time // whole milliseconds travel
	Heartbeat   time.Duration
	IdleTimeout time.Duration
	MaxFrame    int    // longest payload, bytes, that the gateway takes and sends
	Session     string // names the connection in logs on both sides
}

// Request asks a service. Body is a JSON value in version 1 and any bytes in
// version 2; after Unmarshal it aliases the payload.
type Request struct {
	ID      uint32 // the device's choice, not reused while in flight
	Token   Token
	Service string
	Body    []byte
}

// Response answers the request of that ID. Body as in Request.
type Response struct {
	ID   uint32
	Body []byte
}

// Heartbeat keeps the connection and may bring a new token in its ack.
type Heartbeat struct{ Token Token }

// HeartbeatAck answers a Heartbeat. A Token that is not zero replaces the
// device's own when first used.
type HeartbeatAck struct {
	Token     Token
	ExpiresAt time.Time // comes with a Token
}

// Push is a service's message to the device, which answers with PushAck. Body
// as in Request.
type Push struct {
	ID      uint32
	Service string
	Body    []byte
}

// PushAck acknowledges the Push of that ID.
type PushAck struct{ ID uint32 }

// Goaway asks the device to reconnect.
type Goaway struct {
	Reason string
	After  time.Duration // from now; the gateway answers requests until then
}

// Challenge asks an enrolling device to prove that it knows its key.
type Challenge struct{ Nonce [32]byte }

// Proof answers a Challenge; see ProofOf.
type Proof struct{ Proof [32]byte }

// Bye ends the session cleanly.
type Bye struct{}

// The frame type of each message.
func (*Hello) Type() Type        { return TypeHello }
func (*Welcome) Type() Type      { return TypeWelcome }
func (*Request) Type() Type      { return TypeRequest }
func (*Response) Type() Type     { return TypeResponse }
func (*Heartbeat) Type() Type    { return TypeHeartbeat }
func (*HeartbeatAck) Type() Type { return TypeHeartbeatAck }
func (*Push) Type() Type         { return TypePush }
func (*PushAck) Type() Type      { return TypePushAck }
func (*Error) Type() Type        { return TypeError }
func (*Goaway) Type() Type       { return TypeGoaway }
func (*Challenge) Type() Type    { return TypeChallenge }
func (*Proof) Type() Type        { return TypeProof }
func (*Bye) Type() Type          { return TypeBye }

// Append adds m's whole frame, header and payload, to dst. Bodies are copied as
// they are; in version 1 they must be JSON (see ValidJSON), and an empty one is
// written as null. Durations are rounded up to whole milliseconds. The only
// errors are a version that is not supported and a payload over MaxPayload; dst
// is then unchanged.
func Append(dst []byte, version byte, m Message) ([]byte, error) {
	start := len(dst)
	out := append(dst, version, byte(m.Type()), 0, 0)
	switch version {
	case Version1:
		out = m.appendJSON(out)
	case Version2:
		out = m.appendProto(out)
	default:
		return dst, unsupported(version)
	}
	n := len(out) - start - HeaderSize
	if n > MaxPayload {
		return dst, Errorf(CodeFrameTooLarge, "%s payload of %d bytes is over the limit of %d", m.Type(), n, MaxPayload)
	}
	out[start+2], out[start+3] = byte(n>>8), byte(n)
	return out, nil
}

// Unmarshal decodes a payload into m, replacing all it held. Unknown fields are
// ignored. Its error is a *Error, bad_frame or bad_token, that names the
// field. Byte slices in m alias payload.
func Unmarshal(version byte, payload []byte, m Message) error {
	switch version {
	case Version1:
		return unmarshalJSON(payload, m)
	case Version2:
		return unmarshalProto(payload, m)
	}
	return unsupported(version)
}

func unsupported(version byte) *Error {
	return Errorf(CodeBadVersion, "frame version %d is not supported", version)
}

// maxMillis is the longest time.Duration in milliseconds.
const maxMillis = math.MaxInt64 / int64(time.Millisecond)

// wholeMillis rounds up: a wait that is told too short would be in vain.
func wholeMillis(d time.Duration) uint64 {
	ms := d.Milliseconds()
	if d%time.Millisecond > 0 {
		ms++
	}
	return uint64(min(max(ms, 0), maxMillis))
}

// unixMillis takes times before 1970, such as the zero Time, as 0.
func unixMillis(t time.Time) uint64 {
	return uint64(min(max(t.UnixMilli(), 0), maxMillis))
}
