// Package wire is GoShield's device protocol: what a device and a gateway say
// to each other over one long-lived connection.
//
//	r := wire.NewReader(conn, wire.DefaultMaxPayload)
//	for {
//		f, err := r.Next() // io.EOF, io.ErrUnexpectedEOF, a *wire.Error, or the connection's own error
//		if err != nil {
//			return err
//		}
//		var req wire.Request
//		if f.Type == wire.TypeRequest {
//			err = wire.Unmarshal(f.Version, f.Payload, &req)
//		}
//		...
//		out, err = wire.Append(out[:0], f.Version, &wire.Response{ID: req.ID, Body: req.Body})
//	}
//
// It frames and parses; it knows no sockets, sessions or clocks. It never
// checks whether a token is good: that is the gateway's business.
//
// # Protocol flow
//
//	device                                   gateway
//	  | -- HELLO {client_id, token?} ----------> |  first frame, within 5 s
//	  | <------------------- CHALLENGE {nonce} -- |  only in enrolment mode "key"
//	  | -- PROOF {proof} ----------------------> |
//	  | <-- WELCOME {token, expires_at, ...} ---- |
//	  | -- REQUEST {id, token, service, body} -> |  many at once,
//	  | <---------------- RESPONSE {id, body} -- |  answered in any order
//	  | -- HEARTBEAT {token} ------------------> |
//	  | <- HEARTBEAT_ACK {token?, expires_at?} - |  now and then with a new token
//	  | <---------- PUSH {id, service, body} --- |
//	  | -- PUSH_ACK {id} ----------------------> |
//	  | <-- ERROR {code, message, id?, close} -- |  about one request, or the last word
//	  | <-------- GOAWAY {reason, after_ms} ---- |  reconnect after so long
//	  | -- BYE --------------------------------> |
//
// # Frame
//
//	0        1        2                 4
//	+--------+--------+-----------------+----------------- - -
//	|version | type   | length, u16 BE  | payload (length bytes)
//	+--------+--------+-----------------+----------------- - -
//
// The version also names the payload's encoding. The first frame's version is
// the connection's; a later frame of another one is bad_version.
package wire

import "encoding/binary"

// The numbers of the protocol. A test pins each one.
const (
	// Version1 payloads are JSON objects.
	Version1 = 1
	// Version2 payloads are Protocol Buffers; device.proto has the messages.
	Version2 = 2

	// HeaderSize is the length of a frame's header in bytes.
	HeaderSize = 4
	// MaxPayload is the longest payload, in bytes, that a header can announce.
	MaxPayload = 65535
	// DefaultMaxPayload is the limit where nobody set another.
	DefaultMaxPayload = 16384
	// MaxServiceName is the longest service name in bytes: the backend link
	// carries its length in one byte.
	MaxServiceName = 255
	// MaxAgent is how many bytes of a HELLO's agent are kept.
	MaxAgent = 255
)

// Type says what a frame is. Each constant shows its payload's fields; "?"
// marks those that may be absent.
type Type uint8

// The frame types, each with its sender and fields.
const (
	TypeHello        Type = 0x01 // device:  client_id, token?, agent?
	TypeWelcome      Type = 0x02 // gateway: token, expires_at, heartbeat_ms, idle_timeout_ms, max_frame, session
	TypeRequest      Type = 0x03 // device:  id, token, service, body
	TypeResponse     Type = 0x04 // gateway: id, body
	TypeHeartbeat    Type = 0x05 // device:  token
	TypeHeartbeatAck Type = 0x06 // gateway: token?, expires_at? (both or neither)
	TypePush         Type = 0x07 // gateway: id, service, body
	TypePushAck      Type = 0x08 // device:  id
	TypeError        Type = 0x09 // gateway: code, message, id?, retry_after_ms?, close
	TypeGoaway       Type = 0x0A // gateway: reason, after_ms
	TypeChallenge    Type = 0x0B // gateway: nonce (32 bytes)
	TypeProof        Type = 0x0C // device:  proof (32 bytes)
	TypeBye          Type = 0x0D // device:  (empty)
)

var typeNames = [...]string{
	TypeHello: "HELLO", TypeWelcome: "WELCOME", TypeRequest: "REQUEST", TypeResponse: "RESPONSE",
	TypeHeartbeat: "HEARTBEAT", TypeHeartbeatAck: "HEARTBEAT_ACK", TypePush: "PUSH", TypePushAck: "PUSH_ACK",
	TypeError: "ERROR", TypeGoaway: "GOAWAY", TypeChallenge: "CHALLENGE", TypeProof: "PROOF", TypeBye: "BYE",
}

// Valid reports whether t is a type of this protocol.
func (t Type) Valid() bool { return t >= TypeHello && t <= TypeBye }

// String is the type's name, "UNKNOWN" for one that is not of this protocol:
// it is safe as a metric label.
func (t Type) String() string {
	if !t.Valid() {
		return "UNKNOWN"
	}
	return typeNames[t]
}

// Header is a decoded frame header.
type Header struct {
	Version byte
	Type    Type
	Length  uint16 // of the payload, in bytes
}

// ParseHeader decodes and checks the first HeaderSize bytes of b, which must
// be that long. Its error is a *Error: bad_version, bad_frame (unknown type) or
// frame_too_large (more than maxPayload), in that order. It does not allocate
// unless it fails.
func ParseHeader(b []byte, maxPayload int) (Header, error) {
	_ = b[HeaderSize-1]
	h := Header{Version: b[0], Type: Type(b[1]), Length: binary.BigEndian.Uint16(b[2:])}
	switch {
	case h.Version != Version1 && h.Version != Version2:
		return h, unsupported(h.Version)
	case !h.Type.Valid():
		return h, Errorf(CodeBadFrame, "frame type 0x%02x is unknown", b[1])
	case int(h.Length) > maxPayload:
		return h, Errorf(CodeFrameTooLarge, "%s payload of %d bytes is over the limit of %d", h.Type, h.Length, maxPayload)
	}
	return h, nil
}

// Append adds the encoded header to dst.
func (h Header) Append(dst []byte) []byte {
	return append(dst, h.Version, byte(h.Type), byte(h.Length>>8), byte(h.Length))
}
