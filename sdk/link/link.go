// Package link is the backend link: what a gateway and a backend say to each
// other over one long-lived connection that carries many requests at once.
//
//	conn, err := link.Open(ctx, nc, link.Config{Node: "gw-1", Secret: secret}) // the gateway's end
//	if err != nil {
//		return err // nc is closed
//	}
//	streams := link.NewStreams[chan []byte](link.Gateway, conn.Limits().MaxStreams)
//	id, _ := streams.Open(answer)
//	err = conn.Request(id, &link.Request{ClientID: dev, Service: "echo", JSON: true, Body: body})
//	...
//	err = conn.Serve(func(f link.Frame) error { // reads until the link ends
//		if ch, ok := streams.Take(f.Stream); ok && f.Type == link.TypeResponse {
//			ch <- bytes.Clone(f.Payload)
//		}
//		return nil
//	})
//
// It frames, negotiates, keeps the connection alive and writes together what becomes
// ready together. It does not dial, route, retry or run handlers: see
// sdk/backend for a backend's end made ready to use.
//
// # Protocol flow
//
//	gateway                                          backend
//	  | -- HELLO {node, secret, max_frame, max_streams} -> |  first, within 5 s
//	  | <- HELLO {node, services, max_frame, max_streams} - |  the lower limits hold
//	  | -- REQUEST (even stream id) ---------------------> |  many at once,
//	  | <------------------------ RESPONSE or ERROR (same) - |  answered in any order
//	  | -- CANCEL (same) --------------------------------> |  nobody waits any more
//	  | <------------------------- PUSH (odd stream id) ---- |
//	  | -- PUSH_RESULT (same) ---------------------------> |
//	  | <- PING / PONG -----------------------------------> |  either way, when it is quiet
//	  | <- GOAWAY ----------------------------------------> |  either way: no new streams from you
//
// An ERROR of stream 0 is about the link: it is the last frame before a close
// and says why.
//
// # Frame
//
//	0         1      2         4                 8                                16
//	| version | type | flags   | length, u32 BE  | stream id, u64 BE              | payload (length bytes)
//
// Flags are a bit set, u16 BE; bits that a type does not know are ignored. Stream
// id 0 is the link itself. A REQUEST has an even one, chosen by the gateway, a
// PUSH an odd one, chosen by the backend; an answer repeats it. Ids need
// not follow each other, and a side does well to choose ones that cannot be
// guessed (see Streams): a peer that answers with a wrong id then hits nothing.
package link

import (
	"encoding/binary"
	"errors"

	"github.com/goshield/goshield/sdk/wire"
)

// The numbers of the protocol. A test pins each one.
const (
	// Version is the only one there is.
	Version = 1
	// HeaderSize is the length of a frame's header in bytes.
	HeaderSize = 16

	// MaxFrame is the longest payload, in bytes, that may be negotiated, and
	// MinFrame the shortest limit that a HELLO may name.
	MaxFrame = 16 << 20
	MinFrame = 1 << 10
	// DefaultMaxFrame is the limit where a Config names none: the longest body of a
	// device frame, with room for what is put before it.
	DefaultMaxFrame = 128 << 10
	// MaxHello bounds a HELLO's payload: it is read before anybody is trusted.
	MaxHello = 16 << 10

	// MaxStreams is the most streams that may be negotiated.
	MaxStreams = 1 << 20
	// DefaultMaxStreams is the limit where a Config names none.
	DefaultMaxStreams = 4096

	// MaxServiceName is the longest service name in bytes: its length travels in one.
	MaxServiceName = wire.MaxServiceName
)

// Type says what a frame is. Each constant shows the payload's layout.
type Type uint8

// The frame types.
const (
	TypeHello      Type = 1  // JSON {node, services, secret, max_frame, max_streams}; the secret from the gateway only
	TypeRequest    Type = 2  // client_id (32) ‖ service length (u8) ‖ service ‖ deadline ms (u32 BE, 0: none) ‖ body; FlagJSON or FlagProtobuf
	TypeResponse   Type = 3  // body
	TypeError      Type = 4  // code ‖ 0 ‖ message
	TypePush       Type = 5  // client_id (32) ‖ service length (u8) ‖ service ‖ body
	TypePushResult Type = 6  // one byte: a PushResult
	TypePing       Type = 7  // 8 bytes
	TypePong       Type = 8  // the PING's 8 bytes
	TypeGoaway     Type = 9  // none: no new streams, those in flight are answered
	TypeCancel     Type = 10 // none: nobody waits for this stream any more
)

// The flags of a REQUEST: what its body is. Exactly one is set.
const (
	FlagJSON     uint16 = 1
	FlagProtobuf uint16 = 2
)

// CodeBadSecret is the code of the ERROR that refuses a HELLO.
const CodeBadSecret wire.Code = "bad_secret"

// CodeBackendFailed is the code of an ERROR by which a backend says that the fault is its own, and not the request's. The device is
// told backend_error; the gateway counts it among the failures for which an endpoint is ejected.
const CodeBackendFailed wire.Code = "backend_failed"

var typeNames = [...]string{
	TypeHello: "HELLO", TypeRequest: "REQUEST", TypeResponse: "RESPONSE", TypeError: "ERROR", TypePush: "PUSH",
	TypePushResult: "PUSH_RESULT", TypePing: "PING", TypePong: "PONG", TypeGoaway: "GOAWAY", TypeCancel: "CANCEL",
}

// Valid reports whether t is a type of this protocol.
func (t Type) Valid() bool { return t >= TypeHello && t <= TypeCancel }

// String is the type's name, "UNKNOWN" for one that is not of this protocol:
// it is safe as a metric label.
func (t Type) String() string {
	if !t.Valid() {
		return "UNKNOWN"
	}
	return typeNames[t]
}

// Role is which end of a link one is.
type Role uint8

// The two ends.
const (
	Gateway Role = iota // opens the link, sends REQUEST; even stream ids
	Backend             // accepts it, sends PUSH; odd stream ids
)

// String is the role's name.
func (r Role) String() string {
	if r == Gateway {
		return "gateway"
	}
	return "backend"
}

// Owns reports whether a stream of that id is one which this end opens.
func (r Role) Owns(stream uint64) bool { return stream != 0 && stream&1 == uint64(r) }

// Header is a decoded frame header.
type Header struct {
	Type   Type
	Flags  uint16
	Length uint32 // of the payload, in bytes
	Stream uint64
}

// ParseHeader decodes and checks the first HeaderSize bytes of b, which must be
// that long. Its error is a *wire.Error: bad_version, bad_frame (unknown type)
// or frame_too_large (more than maxFrame), in that order. It does not allocate
// unless it fails.
func ParseHeader(b []byte, maxFrame int) (Header, error) {
	_ = b[HeaderSize-1]
	h := Header{
		Type:   Type(b[1]),
		Flags:  binary.BigEndian.Uint16(b[2:]),
		Length: binary.BigEndian.Uint32(b[4:]),
		Stream: binary.BigEndian.Uint64(b[8:]),
	}
	switch {
	case b[0] != Version:
		return h, wire.Errorf(wire.CodeBadVersion, "link version %d is not supported", b[0])
	case !h.Type.Valid():
		return h, wire.Errorf(wire.CodeBadFrame, "frame type %d is unknown", b[1])
	case uint64(h.Length) > uint64(maxFrame):
		return h, wire.Errorf(wire.CodeFrameTooLarge, "%s payload of %d bytes is over the limit of %d", h.Type, h.Length, maxFrame)
	}
	return h, nil
}

// Append adds the encoded header to dst.
func (h Header) Append(dst []byte) []byte {
	dst = append(dst, Version, byte(h.Type))
	dst = binary.BigEndian.AppendUint16(dst, h.Flags)
	dst = binary.BigEndian.AppendUint32(dst, h.Length)
	return binary.BigEndian.AppendUint64(dst, h.Stream)
}

// What a Conn answers instead of taking a frame, and how a link may end.
var (
	// ErrBackpressure: the peer does not read fast enough and the queue is full.
	// The frame was not taken; the link goes on.
	ErrBackpressure = errors.New("link: the peer does not keep up")
	// ErrClosed: the link has ended, or is ending by this end's own Close or
	// Finish.
	ErrClosed = errors.New("link: closed")
	// ErrRefused: the peer said, in an ERROR of stream 0, why it closes. A
	// *wire.Error with its words is wrapped with it.
	ErrRefused = errors.New("link: refused by the peer")
	// ErrPeerSilent: nothing came, not even the answer to a PING.
	ErrPeerSilent = errors.New("link: the peer does not answer")
)
