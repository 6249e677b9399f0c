package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// ClientID names a device: the SHA-256 of its MAC address. It is a name, not a
// secret: all addresses of one vendor can be hashed within seconds.
type ClientID [32]byte

// ClientIDFromMAC derives the client_id of a six-octet MAC address: its lower-case hex
// digits without separators, hashed with SHA-256. Separators ("-", ":", "."
// and space) and case are ignored.
func ClientIDFromMAC(mac string) (ClientID, error) {
	var digits [12]byte
	n := 0
	for i := range len(mac) {
		c := mac[i]
		switch {
		case c == '-' || c == ':' || c == '.' || c == ' ':
			continue
		case c >= 'A' && c <= 'F':
			c += 'a' - 'A'
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
		default:
			return ClientID{}, fmt.Errorf("mac %q: %q is not a hex digit", mac, mac[i])
		}
		if n == len(digits) {
			return ClientID{}, fmt.Errorf("mac %q: more than 12 hex digits", mac)
		}
		digits[n] = c
		n++
	}
	if n != len(digits) {
		return ClientID{}, fmt.Errorf("mac %q: %d hex digits, want 12", mac, n)
	}
	return sha256.Sum256(digits[:]), nil
}

// ParseClientID reads the wire form: 64 lower-case hex digits.
func ParseClientID(s string) (ClientID, error) {
	id, ok := parseClientID([]byte(s))
	if !ok {
		return ClientID{}, fmt.Errorf("client_id must be 64 lower-case hex digits")
	}
	return id, nil
}

func parseClientID(b []byte) (id ClientID, ok bool) {
	if len(b) != 2*len(id) {
		return id, false
	}
	for i := range id {
		hi, lo := hexDigit(b[2*i]), hexDigit(b[2*i+1])
		if hi|lo > 0x0f {
			return ClientID{}, false
		}
		id[i] = hi<<4 | lo
	}
	return id, true
}

// hexDigit is the value of a lower-case hex digit, 0xff for anything else.
func hexDigit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// String is the wire form.
func (id ClientID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id ClientID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it takes what
// ParseClientID takes.
func (id *ClientID) UnmarshalText(b []byte) error {
	v, err := ParseClientID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// Token is a device's credential: a random UUID (version 4). The zero Token
// stands for "none". It does not print: fmt shows "[token]", so that no log
// line or error can carry one by accident; Text and MarshalText give its form.
type Token [16]byte

// ParseToken reads the canonical form of a UUID, in lower case.
func ParseToken(s string) (Token, error) {
	t, ok := parseToken([]byte(s))
	if !ok {
		return Token{}, fmt.Errorf("token is not a UUID in lower case") // without the value
	}
	return t, nil
}

func parseToken(b []byte) (t Token, ok bool) {
	if len(b) != 36 || b[8] != '-' || b[13] != '-' || b[18] != '-' || b[23] != '-' {
		return t, false
	}
	at := 0
	for i := range t {
		if at == 8 || at == 13 || at == 18 || at == 23 {
			at++ // the dash
		}
		hi, lo := hexDigit(b[at]), hexDigit(b[at+1])
		if hi|lo > 0x0f {
			return Token{}, false
		}
		t[i] = hi<<4 | lo
		at += 2
	}
	return t, true
}

// AppendText adds the canonical form to dst.
func (t Token) AppendText(dst []byte) ([]byte, error) {
	for i, n := range [...]int{4, 6, 8, 10, 16} {
		from := [...]int{0, 4, 6, 8, 10}[i]
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, t[from:n])
	}
	return dst, nil
}

// Text is the canonical form of the UUID. Send or store it; never log it.
func (t Token) Text() string {
	b, _ := t.AppendText(make([]byte, 0, 36)) // never fails
	return string(b)
}

// MarshalText implements encoding.TextMarshaler; the zero Token is empty.
func (t Token) MarshalText() ([]byte, error) {
	if t.IsZero() {
		return nil, nil
	}
	return t.AppendText(nil)
}

// UnmarshalText implements encoding.TextUnmarshaler; it takes what ParseToken
// takes, and empty text as the zero Token.
func (t *Token) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*t = Token{}
		return nil
	}
	v, err := ParseToken(string(b))
	if err == nil {
		*t = v
	}
	return err
}

// IsZero reports whether there is no token.
func (t Token) IsZero() bool { return t == Token{} }

// Format implements fmt.Formatter and keeps the value out of any output.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[token]")) }

// DeviceKey derives a device's own key from the fleet's group key (32 bytes):
// HMAC-SHA256(group key, client_id).
func DeviceKey(groupKey []byte, id ClientID) [32]byte {
	m := hmac.New(sha256.New, groupKey)
	m.Write(id[:])
	return [32]byte(m.Sum(nil))
}

// ExporterLabel is the TLS exporter label whose 32 bytes bind a proof to its
// connection (RFC 9266, tls-exporter; no context).
const ExporterLabel = "EXPORTER-Channel-Binding"

// ProofOf answers a CHALLENGE: HMAC-SHA256(device key, nonce ‖ binding ‖
// client_id). The binding is 32 zero bytes where a listener does not bind.
func ProofOf(deviceKey [32]byte, nonce, binding [32]byte, id ClientID) [32]byte {
	m := hmac.New(sha256.New, deviceKey[:])
	m.Write(nonce[:])
	m.Write(binding[:])
	m.Write(id[:])
	return [32]byte(m.Sum(nil))
}
