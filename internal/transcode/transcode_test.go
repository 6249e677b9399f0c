package transcode

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/goshield/goshield/internal/transcode/transcodetest"
)

func meter(t testing.TB, encoding string) *Transcoder {
	t.Helper()
	tr, err := New(Spec{Encoding: encoding, Descriptors: transcodetest.Descriptors(t), Request: "meter.Reading", Response: "meter.Receipt", Push: "meter.Receipt"})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// reading is one body in both encodings.
const readingJSON = `{"meter":"m1","value":-7,"unit":"M3","samples":[{"watts":-3,"at":"9"}],"place":{"lat":1.5},"raw":"AP8=","at":"1970-01-01T00:00:05Z","history":[1,2]}`

var readingWire = []byte("\x0a\x02m1" + "\x10\xf9\xff\xff\xff\xff\xff\xff\xff\xff\x01" + "\x18\x01" +
	"\x22\x0b\x08\x05\x11\x09\x00\x00\x00\x00\x00\x00\x00" + "\x2a\x09\x09\x00\x00\x00\x00\x00\x00\xf8\x3f" +
	"\x32\x02\x00\xff" + "\x3a\x02\x08\x05" + "\x42\x02\x01\x02")

func TestBothWays(t *testing.T) {
	for _, encoding := range []string{JSON, Protobuf} {
		tr := meter(t, encoding)
		serviceIsJSON := encoding == JSON
		forms := map[bool][]byte{true: []byte(readingJSON), false: readingWire}
		for _, deviceIsJSON := range []bool{true, false} {
			got, isJSON, err := tr.Request(forms[deviceIsJSON], deviceIsJSON)
			if err != nil || isJSON != serviceIsJSON || !bytes.Equal(got, forms[serviceIsJSON]) {
				t.Errorf("%s service, JSON device %v: request %q, %v, %v; want %q", encoding, deviceIsJSON, got, isJSON, err, forms[serviceIsJSON])
			}
			answers := map[bool][]byte{true: []byte(`{"taken":true,"note":"ok"}`), false: []byte("\x08\x01\x12\x02ok")}
			got, err = tr.Response(answers[serviceIsJSON], deviceIsJSON)
			if err != nil || !bytes.Equal(got, answers[deviceIsJSON]) {
				t.Errorf("%s service, JSON device %v: answer %q, %v; want %q", encoding, deviceIsJSON, got, err, answers[deviceIsJSON])
			}
			got, err = tr.Pushed(answers[serviceIsJSON])
			if err == nil {
				got, err = tr.Push(got, deviceIsJSON)
			}
			if err != nil || !bytes.Equal(got, answers[deviceIsJSON]) {
				t.Errorf("%s service, JSON device %v: push %q, %v; want %q", encoding, deviceIsJSON, got, err, answers[deviceIsJSON])
			}
		}
	}
}

func TestErrorsNameTheField(t *testing.T) {
	deep := strings.Repeat(`{"within":`, 100) + `{}` + strings.Repeat(`}`, 100)
	for _, tt := range []struct{ name, body, want string }{
		{"no message", `[1]`, "meter.Reading"},
		{"null", `null`, "meter.Reading"},
		{"an unknown member", `{"metre":"m1"}`, "metre"},
		{"a number that is text", `{"value":"seven"}`, "value"},
		{"a number too large", `{"value":2147483648}`, "value"},
		{"a message that is a number", `{"meter":"m1","place":5}`, "place"},
		{"a member of a message", `{"place":{"lat":true}}`, "place.lat"},
		{"an element of a list", `{"samples":[{"watts":1},{"watts":{}}]}`, "samples[1].watts"},
		{"an enum that does not exist", `{"unit":"MILES"}`, "unit"},
		{"bytes that are no base64", `{"raw":"*"}`, "raw"},
		{"a time that is none", `{"at":"yesterday"}`, "at"},
		{"a member twice", `{"value":1,"value":2}`, "value"},
		{"too deep", `{"place":` + deep + `}`, "place"},
	} {
		_, _, err := meter(t, Protobuf).Request([]byte(tt.body), true)
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 600 || strings.Contains(err.Error(), "\u00a0") {
			t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
	place := []byte{}
	for range 100 {
		place = append([]byte(fmt.Sprintf("\x1a%s", varint(len(place)))), place...)
	}
	for _, tt := range []struct{ name, body, want string }{
		{"no fields", "\xff", "no fields"},
		{"a field cut short", "\x0a\x05ab", "meter"},
		{"a field of another type", "\x08\x01", "meter"},
		{"a field inside another one", "\x2a\x02\x08\x01", "place.lat"},
		{"text that is no UTF-8", "\x0a\x01\xff", "meter"},
		{"a packed list that is cut", "\x42\x01\x80", "meter.Reading"},
		{"too deep", "\x2a" + varint(len(place)) + string(place), "place.within"},
	} {
		_, _, err := meter(t, JSON).Request([]byte(tt.body), false)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func varint(n int) string {
	var b []byte
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return string(append(b, byte(n)))
}

// A body that grows beyond what any frame holds is refused.
func TestTooLongOnTheOtherSide(t *testing.T) {
	body := "\x32" + varint(60000) + strings.Repeat("\x00", 60000) // base64 makes 80000 of it
	_, _, err := meter(t, JSON).Request([]byte(body), false)
	if err == nil || !strings.Contains(err.Error(), "over the limit of 65535") {
		t.Errorf("got %v, want the limit", err)
	}
}

// Fields that the descriptors do not know are no error: services grow.
func TestUnknownFieldsAreLeftOut(t *testing.T) {
	got, _, err := meter(t, JSON).Request([]byte("\x0a\x02m1\xa0\x06\x01"), false)
	if err != nil || string(got) != `{"meter":"m1"}` {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestSpecErrorsNameTheKey(t *testing.T) {
	good := Spec{Encoding: Protobuf, Descriptors: transcodetest.Descriptors(t), Request: "meter.Reading", Response: "meter.Receipt"}
	if tr, err := New(Spec{}); tr != nil || err != nil {
		t.Errorf("the zero Spec: %v, %v, want none", tr, err)
	}
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		want   string // "": good
	}{
		{"good", func(*Spec) {}, ""},
		{"no encoding", func(s *Spec) { s.Encoding = "" }, "encoding"},
		{"another encoding", func(s *Spec) { s.Encoding = "xml" }, "encoding"},
		{"no descriptors", func(s *Spec) { s.Descriptors = "" }, "descriptors"},
		{"no base64", func(s *Spec) { s.Descriptors = "*" }, "descriptors"},
		{"no set", func(s *Spec) { s.Descriptors = "AAAA" }, "descriptors"},
		{"imports missing", func(s *Spec) { s.Descriptors = transcodetest.WithoutImports(t) }, "descriptors"},
		{"too long", func(s *Spec) { s.Descriptors = strings.Repeat("A", 1<<20) }, "descriptors"},
		{"no request", func(s *Spec) { s.Request = "" }, "request"},
		{"an unknown request", func(s *Spec) { s.Request = "meter.Writing" }, "request"},
		{"an enum", func(s *Spec) { s.Request = "meter.Unit" }, "request"},
		{"no response", func(s *Spec) { s.Response = "" }, "response"},
		{"an unknown push", func(s *Spec) { s.Push = "Alert" }, "push"},
	} {
		spec := good
		tt.change(&spec)
		_, err := New(spec)
		got := ""
		if e := (*SpecError)(nil); errors.As(err, &e) {
			got = e.Field
		}
		if got != tt.want || (err == nil) != (tt.want == "") {
			t.Errorf("%s: got %v, want an error of %q", tt.name, err, tt.want)
		}
	}
}

// Whatever a device sends, what is made of it converts back to the same.
func FuzzJSONBody(f *testing.F) {
	for _, seed := range []string{readingJSON, `{}`, `{"value":"7"}`, `{"place":{"within":{"lat":"NaN"}}}`, `{"samples":[null]}`, `{"at":"9999-12-31T23:59:59.999999999Z"}`, `[`} {
		f.Add([]byte(seed))
	}
	toProto, toJSON := meter(f, Protobuf), meter(f, JSON)
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > MaxBody {
			return
		}
		wire, _, err := toProto.Request(body, true)
		if err != nil {
			return
		}
		again, _, err := toJSON.Request(wire, false)
		if err != nil {
			if strings.Contains(err.Error(), "over the limit") {
				return
			}
			t.Fatalf("%q became %x, which does not convert back: %v", body, wire, err)
		}
		if !json.Valid(again) {
			t.Fatalf("%q became %q, which is no JSON", body, again)
		}
		if third, _, err := toProto.Request(again, true); err != nil || !bytes.Equal(third, wire) {
			t.Fatalf("%q became %x, then %q, then %x, %v", body, wire, again, third, err)
		}
	})
}

func FuzzProtobufBody(f *testing.F) {
	for _, seed := range []string{string(readingWire), "", "\xff", "\x0a\x05ab", "\x2a\x02\x1a\x00", "\x42\x02\x01\x80", "\x0b\x0c"} {
		f.Add([]byte(seed))
	}
	toProto, toJSON := meter(f, Protobuf), meter(f, JSON)
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > MaxBody {
			return
		}
		text, _, err := toJSON.Request(body, false)
		if err != nil {
			return
		}
		if !json.Valid(text) || len(text) > MaxBody {
			t.Fatalf("%x became %d bytes, %q", body, len(text), text)
		}
		if _, _, err := toProto.Request(text, true); err != nil {
			t.Fatalf("%x became %q, which does not convert back: %v", body, text, err)
		}
	})
}
