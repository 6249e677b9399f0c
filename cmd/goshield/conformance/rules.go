package conformance

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// rule is one thing that the protocol demands, and how a device sees whether it is kept.
type rule struct {
	name   string
	demand string
	play   step

	only     way  // zero fields: any
	tcp      bool // not over WebSocket
	slow     bool // it waits for the gateway to notice a silence
	disturbs bool // it disturbs all devices of the gateway: it is played alone
}

func (r *rule) applies(w way) bool {
	return (r.only.version == 0 || r.only.version == w.version) && (!r.only.websocket || w.websocket) && !(r.tcp && w.websocket)
}

// rules are all rules, in the order of the report.
func rules() []rule {
	return slices.Concat(openingRules(), frameRules(), jsonRules(), protobufRules(), webSocketRules(), requestRules(), tokenRules(),
		silenceRules(), courseRules())
}

// step is a part of a rule. Its error says in what the gateway broke it, or that it cannot be tried (notTried).
type step func(d *device) error

// steps plays one after the other.
func steps(all ...step) step {
	return func(d *device) error {
		for _, s := range all {
			if err := s(d); err != nil {
				return err
			}
		}
		return nil
	}
}

// each plays a step on a fresh connection of the device for each of the values.
func each[T any](values []T, play func(d *device, value T) error) step {
	return func(d *device) error {
		for _, v := range values {
			o := d.another(false)
			err := play(o, v)
			d.remarks = o.remarks
			if err != nil {
				return fmt.Errorf("%v: %w", v, err)
			}
		}
		return nil
	}
}

// connected is a connection without a frame.
func connected(d *device) error { return d.dial() }

// enrolled is a device with a new token.
func enrolled(d *device) error { return d.open(wire.Token{}) }

// goesOn: the connection answers as ever.
func goesOn(d *device) error {
	if err := d.ask(`"still here?"`); err != nil {
		return fmt.Errorf("does it go on? %w", err)
	}
	return nil
}

// refusedAs wants an ERROR of that code as the last word.
func refusedAs(code wire.Code) step {
	return func(d *device) error { return d.refused(d.cfg.AnswerTime, code) }
}

// refusedNaming wants one whose message names a field.
func refusedNaming(code wire.Code, field string) step {
	return func(d *device) error {
		if err := d.refused(d.cfg.AnswerTime, code); err != nil {
			return err
		}
		if !strings.Contains(strings.Join(d.remarks, " "), field) {
			return fmt.Errorf("its message does not name %s", field)
		}
		return nil
	}
}

// sent sends bytes as they are.
func sent(b ...byte) step { return func(d *device) error { return d.sendRaw(b) } }

// says sends a frame.
func says(m func(d *device) wire.Message) step { return func(d *device) error { return d.send(m(d)) } }

// payload sends a frame with a payload of its own making, in which TOKEN and SERVICE stand for what they say.
func payload(t wire.Type, text string) step {
	return func(d *device) error {
		text := strings.NewReplacer("TOKEN", d.token.Text(), "SERVICE", d.cfg.Service).Replace(text)
		return d.sendPayload(t, []byte(text))
	}
}

func closed(d *device) error { return d.ended(d.cfg.AnswerTime) }

// The opening of a connection.
func openingRules() []rule {
	stranger := wire.Token{0x6b, 0xa7, 0xb8, 0x10, 0x9d, 0xad, 0x41, 0xd1, 0x80, 0xb4, 0, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}
	return []rule{
		{
			name: "opening/enrol", demand: "HELLO without a token is answered by WELCOME with a new one",
			play: steps(enrolled, func(d *device) error { return checkWelcome(d.welcome) }),
		},
		{
			name: "opening/first-frame", demand: "a frame before HELLO is auth_required, BYE excepted",
			play: each([]wire.Message{&wire.Request{ID: 1, Token: stranger, Service: "echo", Body: []byte("1")}, &wire.Heartbeat{Token: stranger}, &wire.PushAck{ID: 1}, &wire.Proof{}, &wire.Response{ID: 1, Body: []byte("1")}},
				func(d *device, m wire.Message) error {
					return steps(connected, says(func(*device) wire.Message { return m }), refusedAs(wire.CodeAuthRequired))(d)
				}),
		},
		{
			name: "opening/bye", demand: "BYE as the first frame closes without an ERROR",
			play: steps(connected, says(func(*device) wire.Message { return &wire.Bye{} }), closed),
		},
		{
			name: "opening/second-hello", demand: "HELLO on an open session is bad_frame",
			play: steps(enrolled, says(func(d *device) wire.Message { return &wire.Hello{ClientID: d.id} }), refusedAs(wire.CodeBadFrame)),
		},
		{
			name: "opening/gateways-frames", demand: "frames that only a gateway sends are bad_frame",
			play: each([]wire.Message{&wire.Welcome{Token: stranger}, &wire.Response{ID: 1, Body: []byte("1")}, &wire.HeartbeatAck{}, &wire.Goaway{}},
				func(d *device, m wire.Message) error {
					return steps(enrolled, says(func(*device) wire.Message { return m }), refusedAs(wire.CodeBadFrame))(d)
				}),
		},
		{
			name: "opening/resume", demand: "HELLO with the token resumes: WELCOME repeats it or brings its successor, and it works",
			play: steps(enrolled, func(d *device) error { return resume(d, d.token) }),
		},
		{
			name: "opening/other-version", demand: "a token works in either version",
			play: steps(enrolled, func(d *device) error {
				o := d.another(false)
				o.way.version = wire.Version1 + wire.Version2 - d.way.version
				return steps(func(*device) error { return o.open(d.token) }, func(*device) error { return goesOn(o) })(d)
			}),
		},
		{
			name: "opening/timeout", demand: "without HELLO, auth_timeout after 5 s",
			slow: true, play: steps(connected, timesOut),
		},
		{
			name: "opening/half-hello", demand: "half a HELLO is not enough: auth_timeout after 5 s",
			slow: true, tcp: true, play: steps(connected, func(d *device) error {
				frame, err := d.frame(&wire.Hello{ClientID: d.id})
				if err != nil {
					return err
				}
				return d.sendRaw(frame[:len(frame)/2])
			}, timesOut),
		},
		{
			name: "opening/plain", demand: "without TLS there is no WELCOME",
			play: withoutTLS,
		},
		{
			name: "opening/tls-version", demand: "TLS before 1.2 is refused",
			play: oldTLS,
		},
		{
			name: "proof/wrong", demand: "a wrong PROOF is bad_proof",
			play: steps(challenged, says(func(*device) wire.Message { return &wire.Proof{Proof: [32]byte{1}} }), refusedAs(wire.CodeBadProof)),
		},
		{
			name: "proof/other-frame", demand: "another frame in place of PROOF is bad_frame",
			play: steps(challenged, says(func(*device) wire.Message { return &wire.Heartbeat{Token: stranger} }), refusedAs(wire.CodeBadFrame)),
		},
		{
			name: "proof/other-device", demand: "the proof of another device is bad_proof",
			play: steps(challenged, func(d *device) error {
				if d.cfg.DeviceKey == nil {
					return cannotTry("the kit has no keys")
				}
				d.id = d.another(true).id // its key, and its name in the proof
				return nil
			}, func(d *device) error { return d.sendProof() }, refusedAs(wire.CodeBadProof)),
		},
		{
			name: "proof/timeout", demand: "without PROOF, auth_timeout after 5 s",
			slow: true, play: steps(challenged, timesOut),
		},
	}
}

// checkWelcome: what a device goes by.
func checkWelcome(w wire.Welcome) error {
	switch text := w.Token.Text(); {
	case text[14] != '4' || !strings.ContainsRune("89ab", rune(text[19])):
		return errors.New("the token is no UUID of version 4")
	case !w.ExpiresAt.After(time.Now().Add(-time.Minute)):
		return fmt.Errorf("expires_at is %v", w.ExpiresAt)
	case w.MaxFrame < 256 || w.MaxFrame > wire.MaxPayload:
		return fmt.Errorf("max_frame is %d", w.MaxFrame)
	case w.IdleTimeout <= 0:
		return errors.New("idle_timeout_ms is not above 0")
	case w.Session == "":
		return errors.New("session is empty")
	}
	return nil
}

// resume opens a second connection with a token.
func resume(d *device, token wire.Token) error {
	o := d.another(false)
	err := o.open(token)
	if err == nil {
		err = goesOn(o)
	}
	d.remarks = append(d.remarks, o.remarks...)
	d.token = o.token
	return err
}

// timesOut wants auth_timeout 5 s after the connection was made, or the last frame was sent.
func timesOut(d *device) error {
	const limit = 5 * time.Second
	begun := d.dialled
	if !d.sentAt.IsZero() {
		begun = d.sentAt
	}
	if err := d.refused(limit+slack, wire.CodeAuthTimeout); err != nil {
		return err
	}
	if took := time.Since(begun); took < limit {
		return fmt.Errorf("it came after %v already", took.Round(time.Millisecond))
	}
	return nil
}

// challenged is a device that was asked for a proof.
func challenged(d *device) error {
	if err := d.dial(); err != nil {
		return err
	}
	if err := d.send(&wire.Hello{ClientID: d.id}); err != nil {
		return err
	}
	f, err := d.read(d.cfg.AnswerTime)
	if err != nil {
		return err
	}
	if f.Type == wire.TypeWelcome {
		return cannotTry("the gateway asks for no proof")
	}
	if f.Type != wire.TypeChallenge {
		return fmt.Errorf("got %s in place of CHALLENGE", f.Type)
	}
	d.saw("CHALLENGE")
	d.challenge = wire.Frame{Header: f.Header, Payload: slices.Clone(f.Payload)}
	return nil
}

// The header of a frame, and payloads whatever they are.
func frameRules() []rule {
	return []rule{
		{
			name: "frame/version", demand: "a version that nobody speaks is bad_version, told in version 1",
			play: each([]byte{0, 3, 255}, func(d *device, v byte) error {
				return steps(connected, sent(v, byte(wire.TypeHello), 0, 0), refusedAs(wire.CodeBadVersion))(d)
			}),
		},
		{
			name: "frame/version-changed", demand: "another version than the first frame's is bad_version",
			play: steps(enrolled, func(d *device) error {
				other := wire.Version1 + wire.Version2 - d.way.version
				return d.sendRaw([]byte{other, byte(wire.TypeBye), 0, 0})
			}, refusedAs(wire.CodeBadVersion)),
		},
		{
			name: "frame/type", demand: "an unknown type is bad_frame",
			play: each([]byte{0x00, 0x0e, 0xff}, func(d *device, t byte) error {
				return steps(enrolled, sent(d.way.version, t, 0, 0), refusedAs(wire.CodeBadFrame))(d)
			}),
		},
		{
			name: "frame/header-order", demand: "a header is refused for its version, then its type, then its length",
			tcp: true, play: each([]struct {
				header []byte
				code   wire.Code
			}{
				{[]byte{9, 0xee, 0xff, 0xff}, wire.CodeBadVersion},
				{[]byte{0, 0xee, 0xff, 0xff}, wire.CodeBadFrame}, // 0: the connection's
			}, func(d *device, c struct {
				header []byte
				code   wire.Code
			},
			) error {
				if c.header[0] == 0 {
					c.header[0] = d.way.version
				}
				return steps(enrolled, sent(c.header...), refusedAs(c.code))(d)
			}),
		},
		{
			name: "frame/too-large", demand: "a payload over max_frame is frame_too_large, by its header alone",
			tcp: true, play: steps(enrolled, func(d *device) error {
				n := d.welcome.MaxFrame + 1
				if n > wire.MaxPayload {
					return cannotTry("max_frame is as large as a frame can be")
				}
				return d.sendRaw(wire.Header{Version: d.way.version, Type: wire.TypeRequest, Length: uint16(n)}.Append(nil))
			}, refusedAs(wire.CodeFrameTooLarge)),
		},
		{
			name: "frame/largest", demand: "a payload of max_frame is taken",
			play: steps(enrolled, func(d *device) error {
				frame, err := d.frame(d.request(`""`))
				if err != nil {
					return err
				}
				free := d.welcome.MaxFrame - (len(frame) - wire.HeaderSize) - 3 // protobuf's lengths may grow
				return d.ask(`"` + strings.Repeat("x", free) + `"`)
			}),
		},
		{
			name: "frame/pieces", demand: "a frame may come in pieces",
			tcp: true, play: steps(enrolled, func(d *device) error {
				r := d.request(`"in pieces"`)
				frame, err := d.frame(r)
				if err != nil {
					return err
				}
				for _, piece := range [][]byte{frame[:1], frame[1:4], frame[4:9], frame[9:]} {
					if err := d.sendRaw(piece); err != nil {
						return err
					}
					time.Sleep(20 * time.Millisecond) // so that they arrive one by one
				}
				return d.answered(r)
			}),
		},
		{
			name: "frame/together", demand: "frames may come together",
			tcp: true, play: steps(enrolled, func(d *device) error {
				a, b := d.request(`"a"`), &wire.Heartbeat{Token: d.token}
				first, err1 := d.frame(a)
				second, err2 := d.frame(b)
				if err := errors.Join(err1, err2, d.sendRaw(append(first, second...))); err != nil {
					return err
				}
				return d.inAnyOrder(wire.TypeResponse, wire.TypeHeartbeatAck)
			}),
		},
		{
			name: "frame/cut-off", demand: "the end of the stream within a frame ends the connection",
			tcp: true, play: steps(enrolled, func(d *device) error {
				if err := d.sendRaw([]byte{d.way.version, byte(wire.TypeRequest), 0, 100, '{'}); err != nil {
					return err
				}
				half, ok := d.conn.(interface{ CloseWrite() error })
				if !ok {
					return cannotTry("this connection cannot be closed in one direction")
				}
				return half.CloseWrite()
			}, closed),
		},
		{
			name: "frame/garbage", demand: "a payload that does not parse is bad_frame",
			play: each([]string{"\x00", "{", "]", "\xff\xff\xff"}, func(d *device, text string) error {
				return steps(connected, payload(wire.TypeHello, text), refusedAs(wire.CodeBadFrame))(d)
			}),
		},
		{
			name: "frame/client-id", demand: "HELLO without client_id is bad_frame, naming it",
			play: func(d *device) error {
				nothing := map[byte]string{wire.Version1: "{}", wire.Version2: ""}[d.way.version]
				return steps(connected, payload(wire.TypeHello, nothing), refusedNaming(wire.CodeBadFrame, "client_id"))(d)
			},
		},
		{
			name: "frame/service", demand: "REQUEST without a service is bad_frame, naming it",
			play: steps(enrolled, func(d *device) error {
				r := d.request("1")
				r.Service = ""
				return d.send(r)
			}, refusedNaming(wire.CodeBadFrame, "service")),
		},
		{
			name: "frame/service-length", demand: "a service name has at most 255 bytes",
			play: steps(enrolled, func(d *device) error {
				r := d.request("1")
				r.Service = strings.Repeat("s", 256)
				return d.send(r)
			}, refusedNaming(wire.CodeBadFrame, "service")),
		},
	}
}
