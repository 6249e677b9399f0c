package link

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Every number that travels, pinned.
func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uint64
	}{
		{"Version", Version, 1},
		{"HeaderSize", HeaderSize, 16},
		{"HELLO", uint64(TypeHello), 1},
		{"REQUEST", uint64(TypeRequest), 2},
		{"RESPONSE", uint64(TypeResponse), 3},
		{"ERROR", uint64(TypeError), 4},
		{"PUSH", uint64(TypePush), 5},
		{"PUSH_RESULT", uint64(TypePushResult), 6},
		{"PING", uint64(TypePing), 7},
		{"PONG", uint64(TypePong), 8},
		{"GOAWAY", uint64(TypeGoaway), 9},
		{"CANCEL", uint64(TypeCancel), 10},
		{"FlagJSON", uint64(FlagJSON), 1},
		{"FlagProtobuf", uint64(FlagProtobuf), 2},
		{"acknowledged", uint64(PushAcknowledged), 0},
		{"not_connected", uint64(PushNotConnected), 1},
		{"queue_full", uint64(PushQueueFull), 2},
		{"timed_out", uint64(PushTimedOut), 3},
		{"gateway's parity", uint64(Gateway), 0},
		{"backend's parity", uint64(Backend), 1},
		{"MaxServiceName", MaxServiceName, 255},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, c.got, c.want)
		}
	}
	for v := range 256 {
		name := Type(v).String()
		if valid := v >= 1 && v <= 10; Type(v).Valid() != valid || (name != "UNKNOWN") != valid || name == "" {
			t.Errorf("Type(%d): Valid %v, String %q", v, Type(v).Valid(), name)
		}
		result := PushResult(v).String()
		if valid := v <= 3; PushResult(v).Valid() != valid || (result != "unknown") != valid || result == "" {
			t.Errorf("PushResult(%d): Valid %v, String %q", v, PushResult(v).Valid(), result)
		}
	}
}

var device = wire.ClientID(bytes.Repeat([]byte{0xd1}, 32))

// golden is one frame of each type, byte for byte.
var golden = []struct {
	name  string
	frame []byte
	hex   string
}{
	{"hello gateway", AppendHello(nil, &Hello{Node: "gw-1", Secret: "s3", MaxFrame: 131072, MaxStreams: 4096}),
		"01 01 0000 00000043 0000000000000000" +
			hex.EncodeToString([]byte(`{"node":"gw-1","secret":"s3","max_frame":131072,"max_streams":4096}`))},
	{"hello backend", AppendHello(nil, &Hello{Node: "b", Services: []string{"echo"}, MaxFrame: 1024, MaxStreams: 1}),
		"01 01 0000 00000041 0000000000000000" +
			hex.EncodeToString([]byte(`{"node":"b","services":["echo"],"max_frame":1024,"max_streams":1}`))},
	{"request json", AppendRequest(nil, 0x0102030405060708, &Request{ClientID: device, Service: "echo", Deadline: 5 * time.Second, JSON: true, Body: []byte(`{"a":1}`)}),
		"01 02 0001 00000030 0102030405060708" + strings.Repeat("d1", 32) + "04 6563686f 00001388 7b2261223a317d"},
	{"request protobuf", AppendRequest(nil, 2, &Request{ClientID: device, Service: "x", Body: []byte{0xff}}),
		"01 02 0002 00000027 0000000000000002" + strings.Repeat("d1", 32) + "01 78 00000000 ff"},
	{"response", AppendResponse(nil, 2, []byte("true")), "01 03 0000 00000004 0000000000000002 74727565"},
	{"error", AppendError(nil, 2, wire.CodeBackendError, "no"),
		"01 04 0000 00000010 0000000000000002 6261636b656e645f6572726f72 00 6e6f"},
	{"push", AppendPush(nil, 3, &Push{ClientID: device, Service: "news", Body: []byte("1")}),
		"01 05 0000 00000026 0000000000000003" + strings.Repeat("d1", 32) + "04 6e657773 31"},
	{"push result", AppendPushResult(nil, 3, PushQueueFull), "01 06 0000 00000001 0000000000000003 02"},
	{"ping", AppendPing(nil, [8]byte{1, 2, 3, 4, 5, 6, 7, 8}), "01 07 0000 00000008 0000000000000000 0102030405060708"},
	{"pong", AppendPong(nil, [8]byte{8, 7, 6, 5, 4, 3, 2, 1}), "01 08 0000 00000008 0000000000000000 0807060504030201"},
	{"goaway", AppendGoaway(nil), "01 09 0000 00000000 0000000000000000"},
	{"cancel", AppendCancel(nil, 2), "01 0a 0000 00000000 0000000000000002"},
}

func TestGoldenFrames(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			want := strings.ReplaceAll(g.hex, " ", "")
			if got := hex.EncodeToString(g.frame); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			h, err := ParseHeader(g.frame, MaxFrame)
			if err != nil {
				t.Fatal(err)
			}
			if int(h.Length) != len(g.frame)-HeaderSize {
				t.Errorf("header says %d bytes, the payload has %d", h.Length, len(g.frame)-HeaderSize)
			}
			if again := h.Append(nil); !bytes.Equal(again, g.frame[:HeaderSize]) {
				t.Errorf("header encoded again is %x, want %x", again, g.frame[:HeaderSize])
			}
		})
	}
}

// What is appended is what is decoded.
func TestPayloadsRoundTrip(t *testing.T) {
	frame := func(b []byte) Frame {
		h, err := ParseHeader(b, MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		return Frame{Header: h, Payload: b[HeaderSize:]}
	}
	check := func(name string, got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
		}
	}
	hello := Hello{Node: "n", Services: []string{"a", "b"}, Secret: "x", MaxFrame: 4096, MaxStreams: 7}
	h, err := frame(AppendHello(nil, &hello)).Hello()
	check("hello", h, hello, err)
	req := Request{ClientID: device, Service: strings.Repeat("s", 255), Deadline: 1500 * time.Microsecond, JSON: true, Body: []byte("[]")}
	r, err := frame(AppendRequest(nil, 2, &req)).Request()
	req.Deadline = 2 * time.Millisecond
	check("request, deadline rounded up", r, req, err)
	push := Push{ClientID: device, Service: "p", Body: []byte{}}
	p, err := frame(AppendPush(nil, 3, &push)).Push()
	check("push", p, push, err)
	e, err := frame(AppendError(nil, 2, "code", "a\x00b")).Error()
	check("error", e, &wire.Error{Code: "code", Message: "a\x00b"}, err)
	e, err = frame(AppendError(nil, 2, "code", "\xff")).Error()
	check("error, not UTF-8", e, &wire.Error{Code: "code", Message: "\ufffd"}, err)
	for res := PushAcknowledged; res <= PushTimedOut; res++ {
		got, err := frame(AppendPushResult(nil, 3, res)).PushResult()
		check("push result", got, res, err)
	}
	for d, want := range map[time.Duration]uint32{-time.Second: 0, 0: 0, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, 1<<63 - 1: 1<<32 - 1} {
		if got := milliseconds(d); got != want {
			t.Errorf("milliseconds(%v): got %d, want %d", d, got, want)
		}
	}
}

func TestMalformed(t *testing.T) {
	id := strings.Repeat("\xd1", 32)
	for _, c := range []struct {
		name    string
		typ     Type
		flags   uint16
		payload string
		want    string // in the message
	}{
		{"hello empty", TypeHello, 0, "", "not the JSON object"},
		{"hello no object", TypeHello, 0, "3", "not the JSON object"},
		{"hello cut", TypeHello, 0, `{"node":"gw`, "not the JSON object"},
		{"hello wrong kind", TypeHello, 0, `{"node":"n","secret":5,"max_frame":4096,"max_streams":1}`, "not the JSON object"},
		{"hello with a tail", TypeHello, 0, `{"max_frame":4096,"max_streams":1} x`, "follows"},
		{"hello tiny frames", TypeHello, 0, `{"max_frame":1023,"max_streams":1}`, "max_frame"},
		{"hello no streams", TypeHello, 0, `{"max_frame":1024}`, "max_streams"},
		{"request empty", TypeRequest, FlagJSON, "", "client_id"},
		{"request cut in client_id", TypeRequest, FlagJSON, id[:31], "client_id"},
		{"request without service", TypeRequest, FlagJSON, id + "\x00\x00\x00\x00\x00", "no service"},
		{"request cut in service", TypeRequest, FlagJSON, id + "\x05echo", "service name"},
		{"request service not UTF-8", TypeRequest, FlagJSON, id + "\x01\xff\x00\x00\x00\x00", "UTF-8"},
		{"request cut in deadline", TypeRequest, FlagJSON, id + "\x01e\x00\x00\x00", "deadline"},
		{"request of neither encoding", TypeRequest, 0, id + "\x01e\x00\x00\x00\x00", "flags"},
		{"request of both encodings", TypeRequest, 3, id + "\x01e\x00\x00\x00\x00", "flags"},
		{"push cut in service", TypePush, 0, id + "\x02e", "service name"},
		{"error without code", TypeError, 0, "\x00message", "no code"},
		{"error without end of code", TypeError, 0, "backend_error", "no code"},
		{"push result empty", TypePushResult, 0, "", "one byte"},
		{"push result long", TypePushResult, 0, "\x00\x00", "one byte"},
		{"push result unknown", TypePushResult, 0, "\x04", "one byte"},
		{"ping short", TypePing, 0, "1234567", "8 bytes"},
		{"pong long", TypePong, 0, "123456789", "8 bytes"},
	} {
		f := Frame{Header: Header{Type: c.typ, Flags: c.flags}, Payload: []byte(c.payload)}
		err := decode(f)
		var mistake *wire.Error
		if !errors.As(err, &mistake) || mistake.Code != wire.CodeBadFrame || !strings.Contains(mistake.Message, c.want) {
			t.Errorf("%s: got %v, want bad_frame with %q", c.name, err, c.want)
		}
	}
}

// decode decodes a frame's payload by its type.
func decode(f Frame) (err error) {
	switch f.Type {
	case TypeHello:
		_, err = f.Hello()
	case TypeRequest:
		_, err = f.Request()
	case TypeError:
		_, err = f.Error()
	case TypePush:
		_, err = f.Push()
	case TypePushResult:
		_, err = f.PushResult()
	case TypePing, TypePong:
		_, err = f.ping()
	}
	return err
}

func TestHeaderRefused(t *testing.T) {
	for _, c := range []struct {
		name, hex string
		want      wire.Code
	}{
		{"version", "02 03 0000 00000000 0000000000000000", wire.CodeBadVersion},
		{"type 0", "01 00 0000 00000000 0000000000000000", wire.CodeBadFrame},
		{"type 11", "01 0b 0000 00000000 0000000000000000", wire.CodeBadFrame},
		{"too long", "01 03 0000 00000401 0000000000000000", wire.CodeFrameTooLarge},
		{"longest that fits in the field", "01 03 0000 ffffffff 0000000000000000", wire.CodeFrameTooLarge},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(c.hex, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseHeader(b, 1024); !errors.Is(err, &wire.Error{Code: c.want}) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
	b := golden[4].frame
	if allocs := testing.AllocsPerRun(100, func() {
		if _, err := ParseHeader(b, 1024); err != nil {
			t.Fatal(err)
		}
	}); allocs != 0 {
		t.Errorf("ParseHeader: got %v allocations, want 0", allocs)
	}
}

// A HELLO that is printed does not show its secret.
func TestHelloDoesNotPrintItsSecret(t *testing.T) {
	h := Hello{Node: "gw", Secret: "do-not-show", MaxFrame: 1024, MaxStreams: 1}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, v := range []any{h, &h, struct{ H Hello }{h}} {
			if got := fmt.Sprintf(format, v); strings.Contains(got, h.Secret) {
				t.Errorf("%s of %T: %s", format, v, got)
			}
		}
	}
}

// Names invented by a peer do not fill the memory.
func TestNamesAreBounded(t *testing.T) {
	var n names
	for i := range 10 * maxNames {
		want := fmt.Sprintf("service-%d", i)
		if got := n.of([]byte(want)); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if len(n.known) != maxNames {
		t.Errorf("got %d names kept, want %d", len(n.known), maxNames)
	}
	if allocs := testing.AllocsPerRun(100, func() { n.of([]byte("service-0")) }); allocs != 0 {
		t.Errorf("a known name: got %v allocations, want 0", allocs)
	}
}
