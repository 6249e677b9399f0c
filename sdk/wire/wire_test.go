package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The numbers that devices in the field were built with.
func TestNumbers(t *testing.T) {
	for _, test := range []struct {
		name      string
		got, want int
	}{
		{"Version1", Version1, 1},
		{"Version2", Version2, 2},
		{"HeaderSize", HeaderSize, 4},
		{"MaxPayload", MaxPayload, 65535},
		{"DefaultMaxPayload", DefaultMaxPayload, 16384},
		{"MaxServiceName", MaxServiceName, 255},
		{"HELLO", int(TypeHello), 0x01},
		{"WELCOME", int(TypeWelcome), 0x02},
		{"REQUEST", int(TypeRequest), 0x03},
		{"RESPONSE", int(TypeResponse), 0x04},
		{"HEARTBEAT", int(TypeHeartbeat), 0x05},
		{"HEARTBEAT_ACK", int(TypeHeartbeatAck), 0x06},
		{"PUSH", int(TypePush), 0x07},
		{"PUSH_ACK", int(TypePushAck), 0x08},
		{"ERROR", int(TypeError), 0x09},
		{"GOAWAY", int(TypeGoaway), 0x0A},
		{"CHALLENGE", int(TypeChallenge), 0x0B},
		{"PROOF", int(TypeProof), 0x0C},
		{"BYE", int(TypeBye), 0x0D},
	} {
		if test.got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, test.got, test.want)
		}
	}
}

func TestTypeNames(t *testing.T) {
	for n := range 256 {
		typ := Type(n)
		if want := n >= 1 && n <= 13; typ.Valid() != want {
			t.Errorf("type %d: Valid is %v, want %v", n, typ.Valid(), want)
		}
		if (typ.String() == "UNKNOWN") == typ.Valid() || typ.String() == "" {
			t.Errorf("type %d: name %q, Valid %v", n, typ, typ.Valid())
		}
	}
	for _, m := range newMessages() {
		name := strings.ReplaceAll(strings.ToUpper(reflect.TypeOf(m).Elem().Name()), "ACK", "_ACK")
		if got := m.Type().String(); got != name {
			t.Errorf("%T: type %s, want %s", m, got, name)
		}
	}
}

// newMessages is one empty message of each type.
func newMessages() []Message {
	return []Message{
		&Hello{}, &Welcome{}, &Request{}, &Response{}, &Heartbeat{}, &HeartbeatAck{}, &Push{}, &PushAck{},
		&Error{}, &Goaway{}, &Challenge{}, &Proof{}, &Bye{},
	}
}

func newMessage(typ Type) Message { return newMessages()[typ-1] }

const tokenText = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

func testToken(t testing.TB) Token {
	t.Helper()
	token, err := ParseToken(tokenText)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func testClientID(t testing.TB) ClientID {
	t.Helper()
	id, err := ClientIDFromMAC("00:1a:2b:3c:4d:5e")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// goldenMessages are the messages of testdata/frames.txt, by name.
func goldenMessages(t testing.TB) map[string]Message {
	token, id := testToken(t), testClientID(t)
	expires := time.UnixMilli(1767225600000)
	bytes32 := [32]byte(bytes.Repeat([]byte{0xfb}, 32)) // with "+" and "/" in base64
	return map[string]Message{
		"hello_enrol":    &Hello{ClientID: id},
		"hello_resume":   &Hello{ClientID: id, Token: token, Agent: "meter/1.4"},
		"welcome":        &Welcome{Token: token, ExpiresAt: expires, Heartbeat: 20 * time.Second, IdleTimeout: 90 * time.Second, MaxFrame: 16384, Session: "gw-a/1f"},
		"request":        &Request{ID: 7, Token: token, Service: "echo", Body: []byte(`{"hello":"world"}`)},
		"request_null":   &Request{ID: 4294967295, Token: token, Service: "echo", Body: []byte(`null`)},
		"response":       &Response{ID: 7, Body: []byte(`{"hello":"world"}`)},
		"heartbeat":      &Heartbeat{Token: token},
		"heartbeat_ack":  &HeartbeatAck{},
		"rotation":       &HeartbeatAck{Token: token, ExpiresAt: expires},
		"push":           &Push{ID: 3, Service: "alerts", Body: []byte(`[1, 2]`)},
		"push_ack":       &PushAck{ID: 3},
		"error_request":  &Error{Code: CodeRateLimited, Message: "over 50 a second", ID: 7, HasID: true, RetryAfter: 20 * time.Millisecond},
		"error_close":    &Error{Code: CodeBadToken, Message: "the token is not this device's", Close: true},
		"goaway":         &Goaway{Reason: "draining", After: 1500 * time.Millisecond},
		"challenge":      &Challenge{Nonce: bytes32},
		"proof":          &Proof{Proof: bytes32},
		"bye":            &Bye{},
		"error_escaping": &Error{Code: CodeInternal, Message: "a\"b\\c\n\x01é", Close: true},
	}
}

// goldenFrames reads testdata/frames.txt, or frames2.txt for version 2: a name
// and the frame in hex a line.
func goldenFrames(t testing.TB, version byte) map[string][]byte {
	t.Helper()
	path := "testdata/frames.txt"
	if version == Version2 {
		path = "testdata/frames2.txt"
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	frames := make(map[string][]byte)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") || lines.Text() == "" {
			continue
		}
		name, digits, _ := strings.Cut(lines.Text(), " ")
		frame, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		frames[name] = frame
	}
	return frames
}

func TestGoldenFrames(t *testing.T) {
	for _, version := range []byte{Version1, Version2} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) { testGoldenFrames(t, version) })
	}
}

func testGoldenFrames(t *testing.T, version byte) {
	frames, messages := goldenFrames(t, version), goldenMessages(t)
	types := make(map[Type]bool)
	for name, m := range messages {
		t.Run(name, func(t *testing.T) {
			types[m.Type()] = true
			want := frames[name]
			got, err := Append(nil, version, m)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("Append: got %x, %v\nwant %x", got, err, want)
			}
			h, err := ParseHeader(want, MaxPayload)
			if err != nil || h != (Header{version, m.Type(), uint16(len(want) - HeaderSize)}) {
				t.Fatalf("ParseHeader: got %+v, %v", h, err)
			}
			again := newMessage(h.Type)
			if err := Unmarshal(h.Version, want[HeaderSize:], again); err != nil || !reflect.DeepEqual(again, m) {
				t.Errorf("Unmarshal: got %+v, %v\nwant %+v", again, err, m)
			}
		})
	}
	for name := range frames {
		if messages[name] == nil {
			t.Errorf("%s: no message of that name in the test", name)
		}
	}
	if len(types) != int(TypeBye) {
		t.Errorf("types with a golden frame: got %d, want %d", len(types), TypeBye)
	}
}

// The frame that PROTOCOL.md spells out.
func TestProtocolDocumentsHeartbeat(t *testing.T) {
	want := append([]byte{0x01, 0x05, 0x00, 0x30}, `{"token":"6ba7b810-9dad-11d1-80b4-00c04fd430c8"}`...)
	got, err := Append(nil, Version1, &Heartbeat{Token: testToken(t)})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %x, %v, want %x", got, err, want)
	}
}

func TestParseHeader(t *testing.T) {
	for _, test := range []struct {
		name  string
		in    [4]byte
		limit int
		want  string // "" for a good one, else how the error begins
	}{
		{"empty payload", [4]byte{1, 0x0d, 0, 0}, 16384, ""},
		{"at the limit", [4]byte{1, 3, 0x40, 0}, 16384, ""},
		{"over the limit", [4]byte{1, 3, 0x40, 1}, 16384, "frame_too_large: REQUEST payload of 16385 bytes is over the limit of 16384"},
		{"longest", [4]byte{1, 3, 0xff, 0xff}, MaxPayload, ""},
		{"version 0", [4]byte{0, 3, 0, 0}, 16384, "bad_version: frame version 0 "},
		{"version 2", [4]byte{2, 3, 0, 0}, 16384, ""},
		{"version 3", [4]byte{3, 3, 0, 0}, 16384, "bad_version: frame version 3 "},
		{"TLS record", [4]byte{0x16, 3, 1, 2}, 16384, "bad_version: frame version 22 "},
		{"HTTP", [4]byte{'G', 'E', 'T', ' '}, 16384, "bad_version: frame version 71 "},
		{"type 0", [4]byte{1, 0, 0, 0}, 16384, "bad_frame: frame type 0x00 "},
		{"type after the last", [4]byte{1, 0x0e, 0, 0}, 16384, "bad_frame: frame type 0x0e "},
		{"version before type before length", [4]byte{9, 0, 0xff, 0xff}, 1, "bad_version"},
		{"type before length", [4]byte{1, 0, 0xff, 0xff}, 1, "bad_frame"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, err := ParseHeader(test.in[:], test.limit)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if test.want == "" && got != "" || !strings.HasPrefix(got, test.want) {
				t.Errorf("error: got %q, want %q", got, test.want)
			}
			if b := h.Append(nil); !bytes.Equal(b, test.in[:]) {
				t.Errorf("header: got %x, want %x", b, test.in)
			}
		})
	}
}

func TestAppend(t *testing.T) {
	prefix := []byte("prefix")
	got, err := Append(prefix, Version1, &Bye{})
	if want := "prefix\x01\x0d\x00\x02{}"; err != nil || string(got) != want {
		t.Errorf("after a prefix: got %q, %v, want %q", got, err, want)
	}
	got, err = Append(prefix, Version2, &Bye{})
	if want := "prefix\x02\x0d\x00\x00"; err != nil || string(got) != want {
		t.Errorf("version 2: got %q, %v, want %q", got, err, want)
	}
	got, err = Append(prefix, 3, &Bye{})
	if code(err) != CodeBadVersion || string(got) != "prefix" {
		t.Errorf("version 3: got %q, %v, want the prefix and bad_version", got, err)
	}
	if err := Unmarshal(3, nil, &Bye{}); code(err) != CodeBadVersion {
		t.Errorf("Unmarshal of version 3: got %v, want bad_version", err)
	}
	overhead := len(`{"id":1,"body":""}`)
	body := []byte(`"` + strings.Repeat("x", MaxPayload-overhead) + `"`)
	if got, err = Append(nil, Version1, &Response{ID: 1, Body: body}); err != nil || len(got) != HeaderSize+MaxPayload {
		t.Errorf("longest payload: got %d bytes, %v, want %d", len(got), err, HeaderSize+MaxPayload)
	}
	body = append([]byte(`"x`), body[1:]...)
	got, err = Append(prefix, Version1, &Response{ID: 1, Body: body})
	if code(err) != CodeFrameTooLarge || string(got) != "prefix" {
		t.Errorf("one byte more: got %d bytes, %v, want the prefix and frame_too_large", len(got), err)
	}
	if got, err = Append(nil, Version1, &Response{ID: 1}); err != nil || string(got[HeaderSize:]) != `{"id":1,"body":null}` {
		t.Errorf("no body: got %q, %v, want null", got, err)
	}
}

// code is an error's protocol code, or the empty one.
func code(err error) Code {
	if e, ok := err.(*Error); ok {
		return e.Code
	}
	return ""
}

func TestErrorCodes(t *testing.T) {
	open := map[Code]bool{
		CodeRateLimited: true, CodeNoSuchService: true, CodeBackendUnavailable: true,
		CodeBackendTimeout: true, CodeBackendError: true, CodeShuttingDown: true,
	}
	all := []Code{
		"bad_frame", "bad_version", "frame_too_large", "auth_timeout", "auth_required", "unknown_client",
		"bad_proof", "bad_token", "token_expired", "token_reused", "revoked", "taken_over", "kicked",
		"idle_timeout", "heartbeat_timeout", "auth_unavailable", "overloaded", "rate_limited",
		"no_such_service", "backend_unavailable", "backend_timeout", "backend_error", "shutting_down", "internal",
	}
	for _, c := range all {
		if got := c.Closes(); got == open[c] {
			t.Errorf("%s: Closes is %v", c, got)
		}
		if e := Errorf(c, "x %d", 1); e.Close != c.Closes() || e.Error() != string(c)+": x 1" {
			t.Errorf("%s: Errorf gives %+v, %q", c, e, e)
		}
	}
	if e := (&Error{Code: CodeRevoked}); e.Error() != "revoked" {
		t.Errorf("without a message: %q, want the code", e)
	}
}

var sink any

func TestAllocations(t *testing.T) {
	header := []byte{1, 3, 0, 90}
	request, _ := Append(nil, Version1, &Request{ID: 1, Token: testToken(t), Service: "echo", Body: []byte(`{"hello":["world",1]}`)})
	beat, _ := Append(nil, Version1, &Heartbeat{Token: testToken(t)})
	request2, _ := Append(nil, Version2, &Request{ID: 1, Token: testToken(t), Service: "echo", Body: []byte{1, 2, 3}})
	beat2, _ := Append(nil, Version2, &Heartbeat{Token: testToken(t)})
	var req Request
	var heartbeat Heartbeat
	response := &Response{ID: 1, Body: []byte(`{"hello":"world"}`)}
	out := make([]byte, 0, 1024)
	stream := bytes.NewReader(nil)
	reader := NewReader(stream, 0)
	for _, test := range []struct {
		name string
		most float64
		do   func() error
	}{
		{"ParseHeader", 0, func() error { _, err := ParseHeader(header, DefaultMaxPayload); return err }},
		{"Unmarshal REQUEST", 1, func() error { return Unmarshal(1, request[HeaderSize:], &req) }}, // the service's name
		{"Unmarshal HEARTBEAT", 0, func() error { return Unmarshal(1, beat[HeaderSize:], &heartbeat) }},
		{"Append RESPONSE", 0, func() (err error) { out, err = Append(out[:0], 1, response); return err }},
		{"Append HEARTBEAT", 0, func() (err error) { out, err = Append(out[:0], 1, &heartbeat); return err }},
		{"Unmarshal REQUEST, version 2", 1, func() error { return Unmarshal(2, request2[HeaderSize:], &req) }},
		{"Unmarshal HEARTBEAT, version 2", 0, func() error { return Unmarshal(2, beat2[HeaderSize:], &heartbeat) }},
		{"Append RESPONSE, version 2", 0, func() (err error) { out, err = Append(out[:0], 2, response); return err }},
		{"Reader.Next", 0, func() error { stream.Reset(request); _, err := reader.Next(); return err }},
	} {
		if err := test.do(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got := testing.AllocsPerRun(100, func() { sink = test.do() }); got > test.most {
			t.Errorf("%s: got %v allocations, want at most %v", test.name, got, test.most)
		}
	}
}

func TestTokensDoNotPrint(t *testing.T) {
	token := testToken(t)
	for _, format := range []string{"%v", "%s", "%x", "%d", "%q", "%+v", "%#v"} {
		for _, v := range []any{token, &token, Request{ID: 1, Token: token}, &Hello{Token: token}, []Token{token}} {
			got := fmt.Sprintf(format, v)
			if strings.Contains(got, "6ba7b8") || strings.Contains(got, "107") || strings.Contains(got, "0x6b") {
				t.Errorf("%s of %T shows the token: %s", format, v, got)
			}
		}
	}
}
