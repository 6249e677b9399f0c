package wire

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

const idText = "5a777ab1f5dc193f889dca9a2de5c3cae446d9b8ad6ba65769cf2f8ad60f495e"

// What a hostile or broken peer sends: the error says which member is wrong and what it must be,
// and never repeats a value.
func TestBadPayloads(t *testing.T) {
	const notObject = "bad_frame: %s payload is not a JSON object"
	const id32 = "a whole number from 0 to 4294967295"
	for _, test := range []struct {
		name    string
		typ     Type
		payload string
		want    string // "%s" stands for the type
	}{
		{"empty", TypeRequest, ``, notObject},
		{"white space", TypeRequest, " \n", notObject},
		{"null", TypeRequest, `null`, notObject},
		{"array", TypeRequest, `[]`, notObject},
		{"garbage", TypeRequest, "\x00\xff\x17", notObject},
		{"not closed", TypeRequest, `{"id":1`, notObject},
		{"comma at the end", TypeRequest, `{"id":1,}`, notObject},
		{"comma first", TypeRequest, `{,"id":1}`, notObject},
		{"no comma", TypeRequest, `{"id":1 "body":2}`, notObject},
		{"no colon", TypeRequest, `{"id" 1}`, notObject},
		{"no value", TypeRequest, `{"id":}`, notObject},
		{"name without quotes", TypeRequest, `{id:1}`, notObject},
		{"leading zero", TypeRequest, `{"id":01}`, notObject},
		{"bad escape", TypeRequest, `{"id":"\x"}`, notObject},
		{"control character", TypeRequest, "{\"service\":\"a\nb\"}", notObject},
		{"wrong bracket", TypeRequest, `{"body":[1}}`, notObject},
		{"more after it", TypeRequest, `{} {}`, "bad_frame: %s payload goes on after its JSON object"},
		{"NUL after it", TypeBye, "{}\x00", "bad_frame: %s payload goes on after its JSON object"},
		{"BYE of nothing", TypeBye, ``, notObject},

		{"id missing", TypeRequest, `{"service":"a","body":1}`, "bad_frame: %s.id is missing"},
		{"id null", TypeRequest, `{"id":null,"service":"a","body":1}`, "bad_frame: %s.id is missing"},
		{"service missing", TypeRequest, `{"id":1,"body":1}`, "bad_frame: %s.service is missing"},
		{"body missing", TypeRequest, `{"id":1,"service":"a"}`, "bad_frame: %s.body is missing"},
		{"other case is another name", TypeRequest, `{"ID":1,"service":"a","body":1}`, "bad_frame: %s.id is missing"},
		{"id twice", TypeRequest, `{"id":1,"id":1,"service":"a","body":1}`, "bad_frame: %s.id comes twice"},
		{"id twice, once escaped", TypeRequest, `{"id":1,"\u0069d":2,"service":"a","body":1}`, "bad_frame: %s.id comes twice"},
		{"body twice", TypeRequest, `{"id":1,"service":"a","body":1,"body":null}`, "bad_frame: %s.body comes twice"},
		{"id negative", TypeRequest, `{"id":-1}`, "bad_frame: %s.id must be " + id32},
		{"id too large", TypeRequest, `{"id":4294967296}`, "bad_frame: %s.id must be " + id32},
		{"id far too large", TypeRequest, `{"id":18446744073709551617}`, "bad_frame: %s.id must be " + id32},
		{"id without end", TypeRequest, `{"id":` + strings.Repeat("9", 400) + `}`, "bad_frame: %s.id must be " + id32},
		{"id fractional", TypeRequest, `{"id":1.0}`, "bad_frame: %s.id must be " + id32},
		{"id exponent", TypeRequest, `{"id":1e3}`, "bad_frame: %s.id must be " + id32},
		{"id string", TypeRequest, `{"id":"1"}`, "bad_frame: %s.id must be " + id32},
		{"service number", TypeRequest, `{"service":1}`, "bad_frame: %s.service must be a string"},
		{"service empty", TypeRequest, `{"service":""}`, "bad_frame: %s.service must be a name"},
		{"service too long", TypeRequest, `{"service":"` + strings.Repeat("s", 256) + `"}`, "bad_frame: %s.service must be at most 255 bytes long"},
		{"service too long in bytes", TypeRequest, `{"service":"` + strings.Repeat(`\u00e9`, 128) + `"}`, "bad_frame: %s.service must be at most 255 bytes long"},
		{"token number", TypeRequest, `{"token":1}`, "bad_frame: %s.token must be a string"},
		{"token of another form", TypeRequest, `{"token":"secret"}`, "bad_token: %s.token is not a token"},
		{"token in capitals", TypeHeartbeat, `{"token":"6BA7B810-9DAD-11D1-80B4-00C04FD430C8"}`, "bad_token: %s.token is not a token"},
		{"token with a dash too many", TypeHeartbeat, `{"token":"6ba7b810-9dad-11d1-80b4-00c04fd430-8"}`, "bad_token: %s.token is not a token"},
		{"token nil UUID", TypeHeartbeat, `{"token":"00000000-0000-0000-0000-000000000000"}`, "bad_token: %s.token is not a token"},

		{"client_id missing", TypeHello, `{}`, "bad_frame: %s.client_id is missing"},
		{"client_id short", TypeHello, `{"client_id":"5a"}`, "bad_frame: %s.client_id must be 64 lower-case hex digits"},
		{"client_id capitals", TypeHello, `{"client_id":"` + strings.ToUpper(idText) + `"}`, "bad_frame: %s.client_id must be 64 lower-case hex digits"},
		{"client_id number", TypeHello, `{"client_id":5}`, "bad_frame: %s.client_id must be 64 lower-case hex digits"},
		{"client_id object", TypeHello, `{"client_id":{}}`, "bad_frame: %s.client_id must be 64 lower-case hex digits"},
		{"agent number", TypeHello, `{"client_id":"` + idText + `","agent":1}`, "bad_frame: %s.agent must be a string"},

		{"welcome without token", TypeWelcome, `{"expires_at":1}`, "bad_frame: %s.token is missing"},
		{"welcome with empty token", TypeWelcome, `{"token":"","expires_at":1}`, "bad_frame: %s.token is missing"},
		{"welcome without expiry", TypeWelcome, `{"token":"` + tokenText + `"}`, "bad_frame: %s.expires_at is missing"},
		{"time negative", TypeWelcome, `{"expires_at":-1}`, "bad_frame: %s.expires_at must be a time in Unix milliseconds"},
		{"time beyond reach", TypeWelcome, `{"expires_at":9223372036855}`, "bad_frame: %s.expires_at must be a time in Unix milliseconds"},
		{"heartbeat text", TypeWelcome, `{"heartbeat_ms":"20s"}`, "bad_frame: %s.heartbeat_ms must be a whole number of milliseconds"},
		{"max_frame too large", TypeWelcome, `{"max_frame":65536}`, "bad_frame: %s.max_frame must be a number of bytes"},
		{"ack with a token only", TypeHeartbeatAck, `{"token":"` + tokenText + `"}`, "bad_frame: %s.expires_at is missing"},
		{"ack with an expiry only", TypeHeartbeatAck, `{"expires_at":5}`, "bad_frame: %s.token is missing"},

		{"response without body", TypeResponse, `{"id":1}`, "bad_frame: %s.body is missing"},
		{"push without service", TypePush, `{"id":1,"body":1}`, "bad_frame: %s.service is missing"},
		{"push_ack without id", TypePushAck, `{}`, "bad_frame: %s.id is missing"},
		{"error without code", TypeError, `{"message":"x"}`, "bad_frame: %s.code is missing"},
		{"error close text", TypeError, `{"code":"x","close":"true"}`, "bad_frame: %s.close must be true or false"},
		{"error retry negative", TypeError, `{"code":"x","retry_after_ms":-5}`, "bad_frame: %s.retry_after_ms must be a whole number of milliseconds"},
		{"goaway reason", TypeGoaway, `{"reason":[]}`, "bad_frame: %s.reason must be a string"},
		{"nonce missing", TypeChallenge, `{}`, "bad_frame: %s.nonce is missing"},
		{"nonce short", TypeChallenge, `{"nonce":"AAAA"}`, "bad_frame: %s.nonce must be 32 bytes in base64"},
		{"nonce of 33 bytes", TypeChallenge, `{"nonce":"` + strings.Repeat("A", 44) + `"}`, "bad_frame: %s.nonce must be 32 bytes in base64"},
		{"nonce of 31 bytes", TypeChallenge, `{"nonce":"` + strings.Repeat("A", 42) + `=="}`, "bad_frame: %s.nonce must be 32 bytes in base64"},
		{"nonce with a line break", TypeChallenge, `{"nonce":"` + strings.Repeat("A", 42) + `\n="}`, "bad_frame: %s.nonce must be 32 bytes in base64"},
		{"proof in URL alphabet", TypeProof, `{"proof":"-` + strings.Repeat("A", 42) + `="}`, "bad_frame: %s.proof must be 32 bytes in base64"},
		{"proof number", TypeProof, `{"proof":1}`, "bad_frame: %s.proof must be 32 bytes in base64"},
		{"nested too deep", TypeRequest, `{"body":` + strings.Repeat("[", 256) + strings.Repeat("]", 256) + `}`, notObject},
		{"unknown member nested without end", TypeRequest, `{"x":` + strings.Repeat(`{"x":`, 8000), notObject},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Unmarshal(Version1, []byte(test.payload), newMessage(test.typ))
			want := strings.Replace(test.want, "%s", test.typ.String(), 1)
			if err == nil || err.Error() != want {
				t.Fatalf("got %v\nwant %s", err, want)
			}
			if e := err.(*Error); !e.Close || e.HasID {
				t.Errorf("got %+v, want one that closes the connection", e)
			}
		})
	}
}

// What is unusual and right.
func TestOddPayloads(t *testing.T) {
	token := testToken(t)
	for _, test := range []struct {
		name    string
		payload string
		want    Message
	}{
		{"white space and order", " {\t\"body\" : [ 1 , {} ] ,\r\n\"service\":\"a\",\"id\":0 } ", &Request{Service: "a", Body: []byte("[ 1 , {} ]")}},
		{"unknown members", `{"x":{"id":9},"id":1,"service":"a","body":1,"x":2}`, &Request{ID: 1, Service: "a", Body: []byte("1")}},
		{"null stands for absent", `{"id":1,"token":null,"service":"a","body":1}`, &Request{ID: 1, Service: "a", Body: []byte("1")}},
		{"empty token stands for absent", `{"id":1,"token":"","service":"a","body":1}`, &Request{ID: 1, Service: "a", Body: []byte("1")}},
		{"null as a body", `{"id":1,"service":"a","body":null}`, &Request{ID: 1, Service: "a", Body: []byte("null")}},
		{"body kept byte for byte", `{"id":1,"service":"a","body":{"a": 1.50, "b":"\u00e9\/"}}`, &Request{ID: 1, Service: "a", Body: []byte(`{"a": 1.50, "b":"\u00e9\/"}`)}},
		{"escaped name", `{"\u0069\u0064":1,"service":"a","body":1}`, &Request{ID: 1, Service: "a", Body: []byte("1")}},
		{"escaped service", `{"id":1,"service":"\u0065cho\"","body":1}`, &Request{ID: 1, Service: `echo"`, Body: []byte("1")}},
		{"escaped token", `{"token":"\u0036` + tokenText[1:] + `"}`, &Heartbeat{Token: token}},
		{"invalid UTF-8 is replaced", "{\"id\":1,\"service\":\"a\xff\",\"body\":1}", &Request{ID: 1, Service: "a\uFFFD", Body: []byte("1")}},
		{"slashes escaped in base64", `{"nonce":"` + strings.Repeat(`\/`, 42) + `8="}`, &Challenge{Nonce: [32]byte(filled(0xff))}},
		{"heartbeat without token", `{}`, &Heartbeat{}},
		{"rotation at the epoch", `{"token":"` + tokenText + `","expires_at":0}`, &HeartbeatAck{Token: token, ExpiresAt: time.UnixMilli(0)}},
		{"latest time", `{"token":"` + tokenText + `","expires_at":9223372036854}`, &HeartbeatAck{Token: token, ExpiresAt: time.UnixMilli(9223372036854)}},
		{"goaway of nothing", `{}`, &Goaway{}},
		{"error of a code from the future", `{"code":"new_code","close":true}`, &Error{Code: "new_code", Close: true}},
		{"agent cut at a whole character", `{"client_id":"` + idText + `","agent":"` + strings.Repeat("a", 254) + `éé"}`,
			&Hello{ClientID: testClientID(t), Agent: strings.Repeat("a", 254)}},
		{"bye with members", `{"why":"tired"}`, &Bye{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := newMessage(test.want.Type())
			if err := Unmarshal(Version1, []byte(test.payload), got); err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, test.want)
			}
		})
	}
}

func filled(b byte) []byte { return []byte(strings.Repeat(string([]byte{b}), 32)) }

// A message that is decoded into again holds nothing of the one before.
func TestUnmarshalReplacesAll(t *testing.T) {
	for name, m := range goldenMessages(t) {
		minimal := map[Type]string{
			TypeHello: `{"client_id":"` + idText + `"}`, TypeWelcome: `{"token":"` + tokenText + `","expires_at":1}`,
			TypeRequest: `{"id":0,"service":"x","body":0}`, TypeResponse: `{"id":0,"body":0}`, TypePush: `{"id":0,"service":"x","body":0}`,
			TypePushAck: `{"id":0}`, TypeError: `{"code":"x"}`, TypeChallenge: `{"nonce":"` + strings.Repeat("A", 43) + `="}`,
			TypeProof: `{"proof":"` + strings.Repeat("A", 43) + `="}`,
		}[m.Type()]
		if minimal == "" {
			minimal = `{}`
		}
		fresh := newMessage(m.Type())
		if err := Unmarshal(Version1, []byte(minimal), fresh); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := Unmarshal(Version1, []byte(minimal), m); err != nil || !reflect.DeepEqual(m, fresh) {
			t.Errorf("%s: got %+v, %v, want %+v", name, m, err, fresh)
		}
	}
}

// Odd values of a caller still give a frame that the other side can read.
func TestAppendRoundsAndClamps(t *testing.T) {
	token := testToken(t)
	for _, test := range []struct {
		name    string
		in, out Message
	}{
		{"zero time", &Welcome{Token: token}, &Welcome{Token: token, ExpiresAt: time.UnixMilli(0)}},
		{"part of a millisecond", &Error{Code: "x", RetryAfter: 1}, &Error{Code: "x", RetryAfter: time.Millisecond}},
		{"rounded up", &Goaway{After: 1500*time.Microsecond + 1}, &Goaway{After: 2 * time.Millisecond}},
		{"negative", &Goaway{After: -time.Hour}, &Goaway{}},
		{"longest", &Goaway{After: 1<<63 - 1}, &Goaway{After: time.Duration(1<<63 - 1).Truncate(time.Millisecond)}},
		{"far future", &HeartbeatAck{Token: token, ExpiresAt: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)},
			&HeartbeatAck{Token: token, ExpiresAt: time.UnixMilli(maxMillis)}},
		{"invalid UTF-8", &Goaway{Reason: "a\xffb\xe2\x82"}, &Goaway{Reason: "a\uFFFDb\uFFFD\uFFFD"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			frame, err := Append(nil, Version1, test.in)
			if err != nil {
				t.Fatal(err)
			}
			got := newMessage(test.in.Type())
			if err := Unmarshal(Version1, frame[HeaderSize:], got); err != nil || !reflect.DeepEqual(got, test.out) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, test.out)
			}
		})
	}
}

// Every string survives, however it has to be escaped.
func TestStringsSurvive(t *testing.T) {
	var all strings.Builder
	for r := rune(0); r < 0x300; r++ {
		all.WriteRune(r)
	}
	all.WriteString("\u2028\u2029\uFFFD\U0001F680</script>&")
	want := all.String()
	frame, err := Append(nil, Version1, &Goaway{Reason: want})
	if err != nil || !json.Valid(frame[HeaderSize:]) {
		t.Fatalf("got %q, %v, want JSON", frame, err)
	}
	var got Goaway
	if err := Unmarshal(Version1, frame[HeaderSize:], &got); err != nil || got.Reason != want {
		t.Errorf("got %q, %v\nwant %q", got.Reason, err, want)
	}
}

// A body that ValidJSON takes can be carried by a frame: the limit of nesting is the same.
func TestValidJSONNesting(t *testing.T) {
	for _, test := range []struct {
		depth int
		want  bool
	}{{1, true}, {63, true}, {64, true}, {65, true}, {255, true}, {256, false}, {5000, false}} {
		for _, brackets := range []string{"[]", "{}"} {
			open, inner := brackets[:1], brackets
			if brackets == "{}" {
				open = `{"a":`
			}
			body := strings.Repeat(open, test.depth-1) + inner + strings.Repeat(brackets[1:], test.depth-1)
			if got := ValidJSON([]byte(body)); got != test.want {
				t.Errorf("%s nested %d: got %v, want %v", brackets, test.depth, got, test.want)
			}
			var resp Response
			err := Unmarshal(Version1, []byte(`{"id":1,"body":`+body+`}`), &resp)
			if got := err == nil; got != test.want {
				t.Errorf("%s nested %d in a frame: got %v, want %v", brackets, test.depth, err, test.want)
			}
		}
	}
}
