package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/goshield/goshield/sdk/wire"
)

// What JSON, Protocol Buffers and WebSocket messages must look like.

// jsonRules are of version 1.
func jsonRules() []rule {
	list := []rule{
		{
			name: "json/client-id", demand: "client_id must be 64 lower-case hex digits",
			play: each([]string{`"abc"`, `"` + strings.Repeat("A", 64) + `"`, `"` + strings.Repeat("g", 64) + `"`, `"` + strings.Repeat("a", 65) + `"`, `7`, `null`},
				func(d *device, value string) error {
					return steps(connected, payload(wire.TypeHello, `{"client_id":`+value+`}`), refusedNaming(wire.CodeBadFrame, "client_id"))(d)
				}),
		},
		{
			name: "json/unknown-members", demand: "unknown members are ignored, in any order; null is an absent one",
			play: steps(enrolled, payload(wire.TypeRequest,
				` { "body" : "x" , "later" : {"a":[1,{"b":null}]}, "service":"SERVICE","token":"TOKEN", "id":1, "Id":"other", "agent":null } `), answeredBody(`"x"`)),
		},
		{
			name: "json/twice", demand: "a known member that comes twice is bad_frame",
			play: steps(enrolled, payload(wire.TypeHeartbeat, `{"token":"TOKEN","token":"TOKEN"}`), refusedNaming(wire.CodeBadFrame, "token")),
		},
		{
			name: "json/no-body", demand: "REQUEST without a body is bad_frame, naming it; null is a body",
			play: steps(enrolled, payload(wire.TypeRequest, `{"id":1,"token":"TOKEN","service":"SERVICE","body":null}`), answeredBody(`null`),
				payload(wire.TypeRequest, `{"id":2,"token":"TOKEN","service":"SERVICE"}`), refusedNaming(wire.CodeBadFrame, "body")),
		},
		{
			name: "json/ids", demand: "an id is a whole number from 0 to 4294967295",
			play: each([]string{`-1`, `4294967296`, `1.5`, `"1"`, `1e3`}, func(d *device, id string) error {
				return steps(enrolled, payload(wire.TypeRequest, `{"id":`+id+`,"token":"TOKEN","service":"SERVICE","body":1}`), refusedNaming(wire.CodeBadFrame, "id"))(d)
			}),
		},
		{
			name: "json/verbatim", demand: "a body is handed on byte for byte",
			play: steps(enrolled, func(d *device) error {
				return d.ask("{\"a\" :\t[1.50, 1e400,\"\\u00e9\\/\", -0],\n\"a\":12345678901234567890}")
			}),
		},
		{
			name: "json/depth", demand: "at most 256 objects and arrays are open inside each other",
			play: steps(enrolled, func(d *device) error { return d.ask(strings.Repeat("[", 250) + strings.Repeat("]", 250)) },
				payload(wire.TypeRequest, `{"id":9,"token":"TOKEN","service":"SERVICE","body":`+strings.Repeat("[", 300)+strings.Repeat("]", 300)+`}`),
				refusedAs(wire.CodeBadFrame)),
		},
		{
			name: "json/behind", demand: "nothing may follow the object",
			play: steps(enrolled, payload(wire.TypeHeartbeat, `{"token":"TOKEN"}{}`), refusedAs(wire.CodeBadFrame)),
		},
		{
			name: "json/no-token", demand: `"" and null are no token: auth_required`,
			play: each([]string{`""`, `null`}, func(d *device, none string) error {
				return steps(enrolled, payload(wire.TypeHeartbeat, `{"token":`+none+`}`), refusedAs(wire.CodeAuthRequired))(d)
			}),
		},
		{
			name: "json/no-uuid", demand: "a token that is no UUID in lower case is bad_token",
			play: each([]string{"x", strings.ToUpper("6ba7b810-9dad-41d1-80b4-00c04fd430c8"), "6ba7b8109dad41d180b400c04fd430c8"}, func(d *device, token string) error {
				return steps(enrolled, payload(wire.TypeHeartbeat, `{"token":"`+token+`"}`), refusedAs(wire.CodeBadToken))(d)
			}),
		},
	}
	for i := range list {
		list[i].only.version = wire.Version1
	}
	return list
}

// answeredBody wants a RESPONSE with that body.
func answeredBody(want string) step {
	return func(d *device) error {
		var resp wire.Response
		if err := d.next(&resp); err != nil {
			return err
		}
		if string(resp.Body) != want {
			return fmt.Errorf("its body is %.60q, want %q", resp.Body, want)
		}
		return nil
	}
}

// protobufRules are of version 2.
func protobufRules() []rule {
	list := []rule{
		{
			name: "protobuf/client-id", demand: "client_id must be 32 bytes",
			play: each([]int{1, 31, 33}, func(d *device, n int) error {
				return steps(connected, fields(wire.TypeHello, func(_ *device, b []byte) []byte { return bytesField(b, 1, make([]byte, n)) }),
					refusedNaming(wire.CodeBadFrame, "client_id"))(d)
			}),
		},
		{
			name: "protobuf/unknown-fields", demand: "unknown fields are ignored, in any order; of a repeated one the last counts",
			play: steps(enrolled, fields(wire.TypeRequest, func(d *device, b []byte) []byte {
				b = bytesField(b, 4, []byte("first"))
				b = protowire.AppendVarint(protowire.AppendTag(b, 1000, protowire.VarintType), 7)
				b = protowire.AppendFixed64(protowire.AppendTag(b, 1001, protowire.Fixed64Type), 7)
				b = bytesField(b, 4, []byte("last"))
				b = bytesField(b, 3, []byte(d.cfg.Service))
				b = bytesField(b, 2, d.token[:])
				return protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), 1)
			}), answeredBody("last")),
		},
		{
			name: "protobuf/wire-type", demand: "a field of another wire type is bad_frame, naming it",
			play: steps(enrolled, fields(wire.TypeHeartbeat, func(_ *device, b []byte) []byte {
				return protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), 1)
			}), refusedNaming(wire.CodeBadFrame, "token")),
		},
		{
			name: "protobuf/range", demand: "a number that its type cannot hold is bad_frame, naming it",
			play: steps(enrolled, fields(wire.TypePushAck, func(_ *device, b []byte) []byte {
				return protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), 1<<32)
			}), refusedNaming(wire.CodeBadFrame, "id")),
		},
		{
			name: "protobuf/verbatim", demand: "a body is any bytes, none too, and is handed on as it is",
			play: steps(enrolled, func(d *device) error { return d.ask("\x00\xff{\x80\n") }, func(d *device) error { return d.ask("") }),
		},
		{
			name: "protobuf/no-token", demand: "an empty token is none: auth_required",
			play: steps(enrolled, fields(wire.TypeHeartbeat, func(_ *device, b []byte) []byte { return bytesField(b, 1, nil) }), refusedAs(wire.CodeAuthRequired)),
		},
	}
	for i := range list {
		list[i].only.version = wire.Version2
	}
	return list
}

// fields sends a payload of protobuf fields.
func fields(t wire.Type, build func(d *device, b []byte) []byte) step {
	return func(d *device) error { return d.sendPayload(t, build(d, nil)) }
}

func bytesField(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// webSocketRules are about messages: each must be exactly one frame.
func webSocketRules() []rule {
	list := []rule{
		{
			name: "websocket/two-frames", demand: "a message that goes on after its frame is bad_frame",
			play: steps(enrolled, func(d *device) error {
				frame, err := d.frame(&wire.Heartbeat{Token: d.token})
				if err != nil {
					return err
				}
				return d.sendRaw(append(frame, frame...))
			}, refusedAs(wire.CodeBadFrame)),
		},
		{
			name: "websocket/half-frame", demand: "a message that ends before its frame is bad_frame",
			play: steps(enrolled, func(d *device) error { return d.sendRaw([]byte{d.way.version, byte(wire.TypeHeartbeat), 0, 9, 1}) }, refusedAs(wire.CodeBadFrame)),
		},
		{
			name: "websocket/no-header", demand: "a message shorter than a header is bad_frame",
			play: steps(enrolled, func(d *device) error { return d.sendRaw([]byte{d.way.version}) }, refusedAs(wire.CodeBadFrame)),
		},
		{
			name: "websocket/text", demand: "a text message is bad_frame",
			play: steps(enrolled, func(d *device) error {
				ctx, cancel := context.WithTimeout(d.ctx, d.cfg.AnswerTime)
				defer cancel()
				return d.conn.(*messages).ws.Write(ctx, websocket.MessageText, []byte("hello"))
			}, refusedAs(wire.CodeBadFrame)),
		},
		{
			name: "websocket/subprotocol", demand: `the upgrade needs the subprotocol "goshield"`,
			play: func(d *device) error {
				ctx, cancel := context.WithTimeout(d.ctx, d.cfg.AnswerTime)
				defer cancel()
				conn, err := dialWebSocket(ctx, d.cfg, []string{"something-else"})
				if err != nil {
					d.saw("refused")
					return nil
				}
				_ = conn.Close()
				return errors.New("the gateway took another one")
			},
		},
		{
			name: "websocket/ping", demand: "a ping is answered by a pong",
			play: steps(enrolled, func(d *device) error {
				ctx, cancel := context.WithTimeout(d.ctx, d.cfg.AnswerTime)
				defer cancel()
				ws := d.conn.(*messages).ws
				ponged := make(chan error, 1)
				go func() { ponged <- ws.Ping(ctx) }() // ends with ctx at the latest
				// The pong is found while something is read.
				r := d.request(`"after the ping"`)
				for start := time.Now(); ; r = d.request(`"and again"`) {
					if err := d.exchange(r); err != nil {
						return err
					}
					select {
					case err := <-ponged:
						if err == nil {
							d.saw("pong")
						}
						return err
					default:
					}
					if time.Since(start) > d.cfg.AnswerTime {
						return errors.New("no pong came")
					}
					time.Sleep(50 * time.Millisecond)
				}
			}),
		},
	}
	for i := range list {
		list[i].only.websocket = true
	}
	return list
}
