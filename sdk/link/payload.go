package link

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"time"
	"unicode/utf8"

	"github.com/goshield/goshield/sdk/wire"
)

// Frame is one frame as it was read. Payload is valid until the next one is
// read: within a Conn's handler.
type Frame struct {
	Header
	Payload []byte

	names *names // nil: service names are not shared
}

// Hello is how each end introduces itself.
type Hello struct {
	Node       string   `json:"node"`               // the sender's name, for people
	Services   []string `json:"services,omitempty"` // what a backend answers for; none: anything
	Secret     string   `json:"secret,omitempty"`   // from the gateway only
	MaxFrame   int      `json:"max_frame"`          // longest payload the sender takes, bytes
	MaxStreams int      `json:"max_streams"`        // most streams of the peer's at once
}

// Format implements fmt.Formatter and keeps the secret out of any output.
func (h Hello) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{node %q, services %q, max_frame %d, max_streams %d}", h.Node, h.Services, h.MaxFrame, h.MaxStreams)
}

// Request is what a device asks of a service.
type Request struct {
	ClientID wire.ClientID
	Service  string
	Deadline time.Duration // from now, 0: none. Travels in whole milliseconds, rounded up
	JSON     bool          // what the body is: JSON, else protobuf bytes
	Body     []byte
}

// Push is what a backend has for a device.
type Push struct {
	ClientID wire.ClientID
	Service  string
	Body     []byte
}

// size is the length of the payload.
func (r *Request) size() int { return len(r.ClientID) + 1 + len(r.Service) + 4 + len(r.Body) }
func (p *Push) size() int    { return len(p.ClientID) + 1 + len(p.Service) + len(p.Body) }

// The Append functions add a whole frame, header and payload, to dst. Service
// names must have from 1 to MaxServiceName bytes; whether the peer takes a
// payload so long is the caller's to know.

// AppendHello adds a HELLO.
func AppendHello(dst []byte, h *Hello) []byte {
	payload, err := json.Marshal(h)
	if err != nil {
		panic("link: a Hello always marshals: " + err.Error())
	}
	return append(Header{Type: TypeHello, Length: uint32(len(payload))}.Append(dst), payload...)
}

// AppendRequest adds a REQUEST.
func AppendRequest(dst []byte, stream uint64, r *Request) []byte {
	flags := FlagProtobuf
	if r.JSON {
		flags = FlagJSON
	}
	dst = Header{Type: TypeRequest, Flags: flags, Length: uint32(r.size()), Stream: stream}.Append(dst)
	dst = append(dst, r.ClientID[:]...)
	dst = append(dst, byte(len(r.Service)))
	dst = append(dst, r.Service...)
	dst = binary.BigEndian.AppendUint32(dst, milliseconds(r.Deadline))
	return append(dst, r.Body...)
}

// milliseconds rounds up, so that a deadline which is not over never becomes
// 0, "none".
func milliseconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(min((d-1)/time.Millisecond+1, math.MaxUint32))
}

// AppendResponse adds a RESPONSE.
func AppendResponse(dst []byte, stream uint64, body []byte) []byte {
	return append(Header{Type: TypeResponse, Length: uint32(len(body)), Stream: stream}.Append(dst), body...)
}

// AppendError adds an ERROR. A 0 byte in the code would end it there.
func AppendError(dst []byte, stream uint64, code wire.Code, message string) []byte {
	dst = Header{Type: TypeError, Length: uint32(len(code) + 1 + len(message)), Stream: stream}.Append(dst)
	dst = append(dst, code...)
	dst = append(dst, 0)
	return append(dst, message...)
}

// AppendPush adds a PUSH.
func AppendPush(dst []byte, stream uint64, p *Push) []byte {
	dst = Header{Type: TypePush, Length: uint32(p.size()), Stream: stream}.Append(dst)
	dst = append(dst, p.ClientID[:]...)
	dst = append(dst, byte(len(p.Service)))
	dst = append(dst, p.Service...)
	return append(dst, p.Body...)
}

// AppendPushResult adds a PUSH_RESULT.
func AppendPushResult(dst []byte, stream uint64, r PushResult) []byte {
	return append(Header{Type: TypePushResult, Length: 1, Stream: stream}.Append(dst), byte(r))
}

// AppendPing adds a PING, AppendPong the PONG to one.
func AppendPing(dst []byte, data [8]byte) []byte {
	return append(Header{Type: TypePing, Length: 8}.Append(dst), data[:]...)
}

// AppendPong adds a PONG.
func AppendPong(dst []byte, data [8]byte) []byte {
	return append(Header{Type: TypePong, Length: 8}.Append(dst), data[:]...)
}

// AppendGoaway adds a GOAWAY.
func AppendGoaway(dst []byte) []byte { return Header{Type: TypeGoaway}.Append(dst) }

// AppendCancel adds a CANCEL.
func AppendCancel(dst []byte, stream uint64) []byte {
	return Header{Type: TypeCancel, Stream: stream}.Append(dst)
}

// The methods below decode a Frame's payload by its type. Their error is a
// *wire.Error, bad_frame, that says what is wrong without repeating the payload.
// Byte slices in what they return alias the payload.

// Hello decodes a HELLO. Fields that nobody knows are ignored.
func (f Frame) Hello() (Hello, error) {
	var h Hello
	dec := json.NewDecoder(bytes.NewReader(f.Payload))
	if err := dec.Decode(&h); err != nil {
		return Hello{}, f.malformed("not the JSON object that it should be") // err might repeat the secret
	}
	if _, err := dec.Token(); err != io.EOF {
		return Hello{}, f.malformed("something follows the JSON object")
	}
	switch {
	case h.MaxFrame < MinFrame:
		return Hello{}, f.malformed(fmt.Sprintf("max_frame must be at least %d", MinFrame))
	case h.MaxStreams < 1:
		return Hello{}, f.malformed("max_streams must be at least 1")
	}
	h.MaxFrame, h.MaxStreams = min(h.MaxFrame, MaxFrame), min(h.MaxStreams, MaxStreams)
	return h, nil
}

// Request decodes a REQUEST.
func (f Frame) Request() (Request, error) {
	id, service, rest, err := f.address()
	if err != nil {
		return Request{}, err
	}
	if len(rest) < 4 {
		return Request{}, f.malformed("ends within its deadline")
	}
	kind := f.Flags & (FlagJSON | FlagProtobuf)
	if kind != FlagJSON && kind != FlagProtobuf {
		return Request{}, f.malformed("its flags must say either JSON or protobuf")
	}
	return Request{
		ClientID: id,
		Service:  service,
		Deadline: time.Duration(binary.BigEndian.Uint32(rest)) * time.Millisecond,
		JSON:     kind == FlagJSON,
		Body:     rest[4:],
	}, nil
}

// Push decodes a PUSH.
func (f Frame) Push() (Push, error) {
	id, service, body, err := f.address()
	return Push{ClientID: id, Service: service, Body: body}, err
}

// address decodes what REQUEST and PUSH begin with.
func (f Frame) address() (id wire.ClientID, service string, rest []byte, err error) {
	p := f.Payload
	if len(p) < len(id)+1 {
		return id, "", nil, f.malformed("ends within its client_id")
	}
	copy(id[:], p)
	n := int(p[len(id)])
	p = p[len(id)+1:]
	switch {
	case n == 0:
		return id, "", nil, f.malformed("has no service name")
	case len(p) < n:
		return id, "", nil, f.malformed("ends within its service name")
	case !utf8.Valid(p[:n]):
		return id, "", nil, f.malformed("its service name is not UTF-8")
	}
	return id, f.names.of(p[:n]), p[n:], nil
}

// Error decodes an ERROR. Neither part is bounded but by the frame, and what is not
// UTF-8 is replaced: they come from the peer and end up in logs and on devices.
func (f Frame) Error() (*wire.Error, error) {
	code, message, ok := bytes.Cut(f.Payload, []byte{0})
	if !ok || len(code) == 0 {
		return nil, f.malformed("has no code")
	}
	return &wire.Error{Code: wire.Code(bytes.ToValidUTF8(code, nil)), Message: string(bytes.ToValidUTF8(message, []byte("�")))}, nil
}

// PushResult decodes a PUSH_RESULT.
func (f Frame) PushResult() (PushResult, error) {
	if len(f.Payload) != 1 || !PushResult(f.Payload[0]).Valid() {
		return 0, f.malformed("must be one byte from 0 to 3")
	}
	return PushResult(f.Payload[0]), nil
}

// ping decodes a PING or a PONG.
func (f Frame) ping() ([8]byte, error) {
	if len(f.Payload) != 8 {
		return [8]byte{}, f.malformed("must have 8 bytes")
	}
	return [8]byte(f.Payload), nil
}

func (f Frame) malformed(what string) error {
	return wire.Errorf(wire.CodeBadFrame, "%s of %d bytes: %s", f.Type, len(f.Payload), what)
}

// names gives out one string for each service name, instead of one for each
// frame. It keeps few: there are few services, and a peer may invent more.
type names struct{ known map[string]string }

const maxNames = 256

func (n *names) of(b []byte) string {
	if n == nil {
		return string(b)
	}
	if s, ok := n.known[string(b)]; ok {
		return s
	}
	s := string(b)
	if n.known == nil {
		n.known = make(map[string]string)
	}
	if len(n.known) < maxNames {
		n.known[s] = s
	}
	return s
}
