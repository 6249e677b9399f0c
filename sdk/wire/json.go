package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"math/bits"
	"strconv"
	"time"
	"unicode/utf8"
)

// Version 1: payloads are JSON objects. Members may come in any order; null
// stands for an absent one, except as a body, and so does "" as a token; a
// known member that comes twice is refused, since two readers could disagree
// on which one counts.

// field numbers a message's members from 0; unknownField is none of them.
const unknownField = -1

func unmarshalJSON(payload []byte, m Message) error {
	m.reset()
	var seen uint
	walk := members{b: payload, i: skipSpace(payload, 0)}
	for {
		name, raw, state := walk.next()
		if state == membersBad {
			return Errorf(CodeBadFrame, "%s payload is not a JSON object", m.Type())
		}
		if state == membersDone {
			break
		}
		name = name[1 : len(name)-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			name = []byte(unquote(append(append([]byte{'"'}, name...), '"')))
		}
		if isAbsent(name, raw) {
			continue
		}
		field, err := m.setJSON(name, raw)
		if err != nil {
			return err
		}
		if field == unknownField {
			continue
		}
		if seen&(1<<field) != 0 {
			return Errorf(CodeBadFrame, "%s.%s comes twice", m.Type(), name)
		}
		seen |= 1 << field
	}
	if skipSpace(payload, walk.i) != len(payload) {
		return Errorf(CodeBadFrame, "%s payload goes on after its JSON object", m.Type())
	}
	names, required := m.fields()
	if missing := required &^ seen; missing != 0 {
		return Errorf(CodeBadFrame, "%s.%s is missing", m.Type(), names[bits.TrailingZeros(missing)])
	}
	return nil
}

// isAbsent reports whether a member stands for one that is not there.
func isAbsent(name, raw []byte) bool {
	switch string(raw) {
	case "null":
		return string(name) != "body"
	case `""`:
		return string(name) == "token"
	}
	return false
}

// decoder turns raw JSON values into fields; the first that does not fit sets err.
type decoder struct {
	in  Type
	err error
}

func (d *decoder) fail(name, want string) {
	if d.err == nil {
		d.err = Errorf(CodeBadFrame, "%s.%s must be %s", d.in, name, want)
	}
}

// uint reads a whole number of at most max.
func (d *decoder) uint(name string, raw []byte, limit uint64, want string) uint64 {
	var v uint64
	if len(raw) > 20 {
		d.fail(name, want)
		return 0
	}
	for _, c := range raw {
		if c < '0' || c > '9' || v > (math.MaxUint64-9)/10 {
			d.fail(name, want)
			return 0
		}
		v = v*10 + uint64(c-'0')
	}
	if v > limit {
		d.fail(name, want)
		return 0
	}
	return v
}

func (d *decoder) uint32(name string, raw []byte) uint32 {
	return uint32(d.uint(name, raw, math.MaxUint32, "a whole number from 0 to 4294967295"))
}

func (d *decoder) millis(name string, raw []byte) time.Duration {
	return time.Duration(d.uint(name, raw, uint64(maxMillis), "a whole number of milliseconds")) * time.Millisecond
}

func (d *decoder) time(name string, raw []byte) time.Time {
	return time.UnixMilli(int64(d.uint(name, raw, uint64(maxMillis), "a time in Unix milliseconds")))
}

func (d *decoder) string(name string, raw []byte, limit int) string {
	if raw[0] != '"' {
		d.fail(name, "a string")
		return ""
	}
	s := unquote(raw)
	if len(s) > limit {
		d.fail(name, "at most "+strconv.Itoa(limit)+" bytes long")
		return ""
	}
	return s
}

func (d *decoder) service(raw []byte) string {
	s := d.string("service", raw, MaxServiceName)
	if s == "" {
		d.fail("service", "a name")
	}
	return s
}

func (d *decoder) bool(name string, raw []byte) bool {
	switch string(raw) {
	case "true":
		return true
	case "false":
	default:
		d.fail(name, "true or false")
	}
	return false
}

func (d *decoder) bytes32(name string, raw []byte) (v [32]byte) {
	const want = "32 bytes in base64"
	text, ok := plain(raw)
	if !ok || len(text) != 44 {
		d.fail(name, want)
		return v
	}
	var buf [33]byte // what 44 digits could hold, were the last one no padding
	n, err := base64.StdEncoding.Decode(buf[:], text)
	if err != nil || n != len(v) {
		d.fail(name, want)
		return v
	}
	return [32]byte(buf[:32])
}

func (d *decoder) clientID(raw []byte) ClientID {
	text, _ := plain(raw)
	id, ok := parseClientID(text)
	if !ok {
		d.fail("client_id", "64 lower-case hex digits")
	}
	return id
}

// token: a string that is no token at all is a wrong token, not a broken frame.
func (d *decoder) token(raw []byte) Token {
	text, ok := plain(raw)
	if !ok {
		d.fail("token", "a string")
		return Token{}
	}
	t, ok := parseToken(text)
	if (!ok || t.IsZero()) && d.err == nil {
		d.err = Errorf(CodeBadToken, "%s.token is not a token", d.in)
	}
	return t
}

// plain is what a JSON string says, as a slice of raw where nothing is escaped in it (some
// encoders write "\/"); ok is false for another kind of value.
func plain(raw []byte) (text []byte, ok bool) {
	if raw[0] != '"' {
		return nil, false
	}
	if bytes.IndexByte(raw, '\\') >= 0 {
		return []byte(unquote(raw)), true
	}
	return raw[1 : len(raw)-1], true
}

// cut is s without what is beyond its first limit bytes, ending with a whole
// character.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// unquote decodes a JSON string, which has been checked.
func unquote(raw []byte) string {
	s := raw[1 : len(raw)-1]
	for _, c := range s {
		if c == '\\' || c >= utf8.RuneSelf {
			var out string
			_ = json.Unmarshal(raw, &out) // replaces invalid UTF-8; cannot fail on a checked string
			return out
		}
	}
	return string(s)
}

// Encoding. Every append function adds to dst and returns it.

// appendString escapes only what has to be, so that no string grows by being
// decoded and encoded again. Invalid UTF-8 becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0 // s[:from] is written
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				dst = append(append(dst, s[from:i]...), "\uFFFD"...)
				from = i + 1
			}
			i += size
			continue
		}
		if c < 0x20 || c == '"' || c == '\\' {
			dst = appendEscape(append(dst, s[from:i]...), c)
			from = i + 1
		}
		i++
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, '\\', 'b')
	case '\f':
		return append(dst, '\\', 'f')
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	const digits = "0123456789abcdef"
	return append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&0x0f])
}

func appendToken(dst []byte, t Token) []byte {
	dst = append(dst, '"')
	dst, _ = t.AppendText(dst) // never fails
	return append(dst, '"')
}

func appendMillis(dst []byte, d time.Duration) []byte {
	return strconv.AppendUint(dst, wholeMillis(d), 10)
}

func appendTime(dst []byte, t time.Time) []byte {
	return strconv.AppendUint(dst, unixMillis(t), 10)
}

// appendBody writes no body as null: the frame stays well formed.
func appendBody(dst, body []byte) []byte {
	if len(body) == 0 {
		return append(dst, "null"...)
	}
	return append(dst, body...)
}

func appendBytes32(dst []byte, v [32]byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, v[:])
	return append(dst, '"')
}
