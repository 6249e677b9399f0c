package gateway

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/transcode"
	"github.com/goshield/goshield/internal/transcode/transcodetest"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/backend"
)

// Bodies that are converted between device and service.

// converting is a document whose echo service speaks one encoding, with messages of package meter.
func converting(t testing.TB, encoding string) dynamic.Document {
	t.Helper()
	doc := testDoc()
	echo := doc.Services["echo"]
	echo.Body = transcode.Spec{
		Encoding: encoding, Descriptors: transcodetest.Descriptors(t),
		Request: "meter.Sample", Response: "meter.Sample", Push: "meter.Sample",
	}
	doc.Services["echo"] = echo
	return doc
}

// sample is one body, by whether it is JSON.
var sample = map[bool]string{true: `{"watts":-3}`, false: "\x08\x05"}

// body sends a REQUEST and returns what the router got, which it holds.
func (r *rig) body(d *device, id uint32, body string) (req heldRequest, refused *wire.Error) {
	d.t.Helper()
	r.router.holding(true)
	d.request(id, body)
	synctest.Wait()
	r.router.mu.Lock()
	defer r.router.mu.Unlock()
	if len(r.router.held) == 0 {
		var e wire.Error
		d.want(&e)
		return req, &e
	}
	req = r.router.held[0]
	r.router.held = r.router.held[1:]
	return req, nil
}

func (r *rig) deviceOf(t *testing.T, version byte, id wire.ClientID) *device {
	t.Helper()
	d := r.connect(t)
	d.version = version
	d.hello(id, wire.Token{})
	return d
}

func TestBodiesAreConverted(t *testing.T) {
	for _, encoding := range []string{transcode.JSON, transcode.Protobuf} {
		for _, version := range []byte{wire.Version1, wire.Version2} {
			name := map[byte]string{wire.Version1: "JSON", wire.Version2: "protobuf"}[version] + " device, " + encoding + " service"
			t.Run(name, func(t *testing.T) {
				bubble(t, converting(t, encoding), func(t *testing.T, r *rig) {
					d := r.deviceOf(t, version, clientID(1))
					deviceJSON, serviceJSON := version == wire.Version1, encoding == transcode.JSON
					req, refused := r.body(d, 1, sample[deviceJSON])
					if refused != nil || string(req.body) != sample[serviceJSON] || req.req.JSON != serviceJSON {
						t.Fatalf("the service got %q, JSON %v (%v); want %q, %v", req.body, req.req.JSON, refused, sample[serviceJSON], serviceJSON)
					}
					req.w.Done(req.tag, backend.Reply{Body: []byte(sample[serviceJSON])})
					var resp wire.Response
					d.want(&resp)
					if string(resp.Body) != sample[deviceJSON] {
						t.Errorf("the device got %q, want %q", resp.Body, sample[deviceJSON])
					}

					result := make(chan link.PushResult, 1)
					r.pushFromBackend(clientID(1), "echo", []byte(sample[serviceJSON]), func(p link.PushResult) { result <- p })
					var push wire.Push
					d.want(&push)
					if string(push.Body) != sample[deviceJSON] {
						t.Errorf("pushed %q, want %q", push.Body, sample[deviceJSON])
					}
					d.send(&wire.PushAck{ID: push.ID})
					if got := <-result; got != link.PushAcknowledged {
						t.Errorf("push: %v, want acknowledged", got)
					}
				})
			})
		}
	}
}

// A body that does not fit is refused by its field; what else is in flight is answered, and the connection goes on.
func TestBodyThatDoesNotFit(t *testing.T) {
	for _, tt := range []struct {
		encoding string
		version  byte
		body     string
		want     string
	}{
		{transcode.Protobuf, wire.Version1, `{"watts":"many"}`, "watts"},
		{transcode.Protobuf, wire.Version1, `{"volts":1}`, "volts"},
		{transcode.JSON, wire.Version2, "\x0a\x00", "watts"},
		{transcode.JSON, wire.Version2, "\x11\x00", "at"},
	} {
		bubble(t, converting(t, tt.encoding), func(t *testing.T, r *rig) {
			d := r.deviceOf(t, tt.version, clientID(1))
			good, refused := r.body(d, 1, sample[tt.version == wire.Version1])
			if refused != nil {
				t.Fatal(refused)
			}
			_, refused = r.body(d, 2, tt.body)
			if refused == nil || refused.Code != wire.CodeBadFrame || refused.Close || !refused.HasID || refused.ID != 2 || !strings.Contains(refused.Message, tt.want) {
				t.Errorf("%q: %+v, want bad_frame of 2 with %q that does not close", tt.body, refused, tt.want)
			}
			good.w.Done(good.tag, backend.Reply{Body: good.body})
			var resp wire.Response
			d.want(&resp)
			if resp.ID != 1 {
				t.Errorf("response %d, want 1", resp.ID)
			}
		})
	}
}

// A service that answers nonsense harms one request.
func TestAnswerThatDoesNotFit(t *testing.T) {
	for name, tt := range map[string]struct{ answer, want string }{
		"nonsense":             {"no protobuf", "meter.Sample"},
		"another type":         {"\x0a\x01x", "watts"},
		"a field of a message": {"\x11\x00", "at"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, converting(t, transcode.Protobuf), func(t *testing.T, r *rig) {
				d := r.deviceOf(t, wire.Version1, clientID(1))
				other := r.deviceOf(t, wire.Version1, clientID(2))
				req, refused := r.body(d, 1, sample[true])
				if refused != nil {
					t.Fatal(refused)
				}
				req.w.Done(req.tag, backend.Reply{Body: []byte(tt.answer)})
				e := d.wantError(wire.CodeBackendError)
				if e.Close || e.ID != 1 || !strings.Contains(e.Message, tt.want) {
					t.Errorf("got %+v, want an error of 1 with %q that does not close", e, tt.want)
				}
				other.quiet(time.Second)
				req, refused = r.body(d, 2, sample[true])
				if refused != nil {
					t.Fatal(refused)
				}
				req.w.Done(req.tag, backend.Reply{Body: req.body})
				var resp wire.Response
				d.want(&resp)
				if string(resp.Body) != sample[true] {
					t.Errorf("then %s, want %s", resp.Body, sample[true])
				}
			})
		})
	}
}

// An answer that grows beyond the device's longest frame is an error, not a broken frame.
func TestAnswerThatGrowsTooLong(t *testing.T) {
	doc := converting(t, transcode.Protobuf)
	echo := doc.Services["echo"]
	echo.Body.Response = "meter.Reading"
	doc.Services["echo"] = echo
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.deviceOf(t, wire.Version1, clientID(1))
		req, refused := r.body(d, 1, sample[true])
		if refused != nil {
			t.Fatal(refused)
		}
		raw := bytes.Repeat([]byte{0xff}, 13000) // as base64 beyond 16384
		req.w.Done(req.tag, backend.Reply{Body: append([]byte("\x32\xc8\x65"), raw...)})
		if e := d.wantError(wire.CodeBackendError); e.ID != 1 || !strings.Contains(e.Message, "over the limit") {
			t.Errorf("got %+v, want an error of 1 that names the limit", e)
		}
	})
}

func TestPushThatDoesNotFit(t *testing.T) {
	bubble(t, converting(t, transcode.Protobuf), func(t *testing.T, r *rig) {
		d := r.deviceOf(t, wire.Version1, clientID(1))
		result := make(chan link.PushResult, 1)
		r.pushFromBackend(clientID(1), "echo", []byte("\xff"), func(p link.PushResult) { result <- p })
		if got := <-result; got != link.PushNotConnected {
			t.Errorf("push: %v, want %v", got, link.PushNotConnected)
		}
		d.quiet(time.Second)
	})
}

// A device of MQTT reaches a service that speaks protobuf, too.
func TestMQTTBodiesAreConverted(t *testing.T) {
	eachMQTT(t, converting(t, transcode.Protobuf), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "res/#", "err/#")
		d.publish("req/echo/1", sample[true], 1)
		if got := d.wantPublish("res/echo/1"); got != sample[true] {
			t.Errorf("answer %q, want %q", got, sample[true])
		}
		d.wantPuback(1, packets.CodeSuccess)
		d.publish("req/echo/2", `{"watts":{}}`, 2)
		if got := d.wantPublish("err/echo/2"); !strings.Contains(got, "bad_frame") || !strings.Contains(got, "watts") {
			t.Errorf("got %s, want bad_frame with the field", got)
		}
		d.wantPuback(2, packets.ErrPayloadFormatInvalid)
	})
}
