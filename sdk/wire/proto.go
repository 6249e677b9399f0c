package wire

import (
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Version 2: payloads are Protocol Buffers (device.proto). They are read and
// written field by field, without generated code: a frame then costs no
// allocation that version 1 does not have, and the errors name the field. A
// test holds this codec against the generated one of package devicepb.
//
// A member's field number is its place in fields() counted from 1. As proto3
// has it, an absent field is a zero one and of a repeated one the last counts.
// Stricter than proto3 demands, a known field of another wire type or a number
// over its type's range is refused instead of ignored or cut.

// protoField is one field as it came: n for a varint, b for bytes.
type protoField struct {
	num protowire.Number
	typ protowire.Type
	n   uint64
	b   []byte
}

func unmarshalProto(payload []byte, m Message) error {
	m.reset()
	var seen uint
	names, _ := m.fields()
	for rest := payload; len(rest) > 0; {
		f, n := consumeField(rest)
		if n < 0 {
			return Errorf(CodeBadFrame, "%s payload is not Protocol Buffers at byte %d", m.Type(), len(payload)-len(rest))
		}
		rest = rest[n:]
		if int(f.num) > len(names) {
			continue
		}
		if err := m.setProto(f); err != nil {
			return err
		}
		if bit := uint(1) << (f.num - 1); names[f.num-1] == "token" && len(f.b) == 0 {
			seen &^= bit // no token, wherever one is needed
		} else {
			seen |= bit
		}
	}
	names, required := m.fields()
	for i, name := range names {
		// Zero is a good id, and a body of no bytes a good body.
		if name != "id" && name != "body" && required&^seen&(1<<i) != 0 {
			return Errorf(CodeBadFrame, "%s.%s is missing", m.Type(), name)
		}
	}
	return nil
}

// consumeField cuts the first field off b. n is its length, negative if b does
// not begin with a field. Groups and fixed numbers, which no message has, come
// without a value.
func consumeField(b []byte) (f protoField, n int) {
	num, typ, tag := protowire.ConsumeTag(b)
	if tag < 0 || num > protowire.MaxValidNumber {
		return f, -1
	}
	f.num, f.typ = num, typ
	switch typ {
	case protowire.VarintType:
		f.n, n = protowire.ConsumeVarint(b[tag:])
	case protowire.BytesType:
		f.b, n = protowire.ConsumeBytes(b[tag:])
	default:
		n = protowire.ConsumeFieldValue(num, typ, b[tag:])
	}
	if n < 0 {
		return f, n
	}
	return f, tag + n
}

// protoDecoder turns fields into members; the first that does not fit sets err.
type protoDecoder struct {
	in  Type
	f   protoField
	err error
}

func (d *protoDecoder) fail(name, want string) {
	d.err = Errorf(CodeBadFrame, "%s.%s must be %s", d.in, name, want)
}

// uint reads a number of at most limit.
func (d *protoDecoder) uint(name string, limit uint64, want string) uint64 {
	if d.f.typ != protowire.VarintType || d.f.n > limit {
		d.fail(name, want)
		return 0
	}
	return d.f.n
}

func (d *protoDecoder) uint32(name string) uint32 {
	return uint32(d.uint(name, math.MaxUint32, "a whole number from 0 to 4294967295"))
}

func (d *protoDecoder) millis(name string) time.Duration {
	return time.Duration(d.uint(name, uint64(maxMillis), "a whole number of milliseconds")) * time.Millisecond
}

func (d *protoDecoder) time(name string) time.Time {
	return time.UnixMilli(int64(d.uint(name, uint64(maxMillis), "a time in Unix milliseconds")))
}

func (d *protoDecoder) bool(name string) bool {
	return d.uint(name, 1, "true or false") == 1
}

func (d *protoDecoder) bytes(name string) []byte {
	if d.f.typ != protowire.BytesType {
		d.fail(name, "bytes")
	}
	return d.f.b
}

func (d *protoDecoder) string(name string, limit int) string {
	switch {
	case d.f.typ != protowire.BytesType || !utf8.Valid(d.f.b):
		d.fail(name, "a string of UTF-8")
		return ""
	case len(d.f.b) > limit:
		d.fail(name, "at most "+strconv.Itoa(limit)+" bytes long")
		return ""
	}
	return string(d.f.b)
}

func (d *protoDecoder) service() string {
	s := d.string("service", MaxServiceName)
	if s == "" && d.err == nil {
		d.fail("service", "a name")
	}
	return s
}

func (d *protoDecoder) bytes32(name string) (v [32]byte) {
	if d.f.typ != protowire.BytesType || copy(v[:], d.f.b) != len(v) || len(d.f.b) != len(v) {
		d.fail(name, "32 bytes")
		return [32]byte{}
	}
	return v
}

// token: as in version 1, bytes that are no token are a wrong token, not a
// broken frame; none at all stand for no token.
func (d *protoDecoder) token() (t Token) {
	b := d.bytes("token")
	if len(b) == 0 || d.err != nil {
		return t
	}
	if copy(t[:], b) != len(t) || len(b) != len(t) || t.IsZero() {
		d.err = Errorf(CodeBadToken, "%s.token is not a token", d.in)
		return Token{}
	}
	return t
}

// Encoding. Every append function adds the whole field to dst and returns it.

func protoUint(dst []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), v)
}

// protoUintSet leaves a zero out, as proto3 does.
func protoUintSet(dst []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protoUint(dst, num, v)
}

func protoMillis(dst []byte, num protowire.Number, d time.Duration) []byte {
	return protoUintSet(dst, num, wholeMillis(d))
}

func protoTime(dst []byte, num protowire.Number, t time.Time) []byte {
	return protoUint(dst, num, unixMillis(t))
}

func protoBytes(dst []byte, num protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), b)
}

// protoBytesSet leaves out what is empty, as proto3 does.
func protoBytesSet(dst []byte, num protowire.Number, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	return protoBytes(dst, num, b)
}

// protoToken leaves the zero Token out.
func protoToken(dst []byte, num protowire.Number, t Token) []byte {
	if t.IsZero() {
		return dst
	}
	return protoBytes(dst, num, t[:])
}

// protoString writes invalid UTF-8 as U+FFFD, like version 1: readers refuse it.
func protoString(dst []byte, num protowire.Number, s string) []byte {
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	if utf8.ValidString(s) {
		return protowire.AppendString(dst, s)
	}
	return protowire.AppendString(dst, toValidUTF8(s))
}

func protoStringSet(dst []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	return protoString(dst, num, s)
}

// toValidUTF8 replaces each invalid byte by U+FFFD.
func toValidUTF8(s string) string {
	out := make([]rune, 0, len(s))
	for _, r := range s {
		out = append(out, r)
	}
	return string(out)
}
