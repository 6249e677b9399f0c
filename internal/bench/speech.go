//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"

	"github.com/goshield/goshield/sdk/wire"
)

// speech is what a member of a crowd says and understands. appendAsk and appendBeat are called
// by one goroutine at a time, next by another.
type speech interface {
	// greet opens a session, where there is one.
	greet() error
	// appendAsk appends the message of that number, appendBeat a sign of life. Whether the latter
	// is answered like a message is the second result.
	appendAsk(dst []byte, number uint32) []byte
	appendBeat(dst []byte, number uint32) ([]byte, bool)
	// next reads the next answer, checks it, and returns the number of the message that it is to; 0: to a sign of life
	// that is none.
	next() (number uint32, err error)
}

// echoSpeech is for a terminator in front of an echo server: answers come in
// order and are the messages themselves.
type echoSpeech struct {
	conn          net.Conn
	member        uint32
	payload       int
	received      uint32
	message, want []byte
}

func newEchoSpeech(conn net.Conn, member uint32, payload int) *echoSpeech {
	return &echoSpeech{
		conn: conn, member: member, payload: payload,
		message: make([]byte, payload), want: bytes.Repeat([]byte{'x'}, payload),
	}
}

func (e *echoSpeech) greet() error { return nil }

func (e *echoSpeech) appendAsk(dst []byte, number uint32) []byte {
	start := len(dst)
	dst = append(dst, bytes.Repeat([]byte{'x'}, e.payload)...)
	stamp(dst[start:], e.member, uint64(number))
	return dst
}

func (e *echoSpeech) appendBeat(dst []byte, number uint32) ([]byte, bool) {
	return e.appendAsk(dst, number), true
}

func (e *echoSpeech) next() (uint32, error) {
	if _, err := io.ReadFull(e.conn, e.message); err != nil {
		return 0, err
	}
	e.received++
	stamp(e.want, e.member, uint64(e.received))
	if !bytes.Equal(e.message, e.want) {
		return 0, fmt.Errorf("got back %x, not message %d", e.message[:minPayload], e.received)
	}
	return e.received, nil
}

// deviceSpeech is a device at a gateway.
type deviceSpeech struct {
	conn    net.Conn
	version byte
	member  uint32
	payload int
	reader  *wire.Reader
	token   atomic.Pointer[wire.Token] // set by who reads, used by who sends
}

func newDeviceSpeech(conn net.Conn, version byte, member uint32, payload int) *deviceSpeech {
	return &deviceSpeech{conn: conn, version: version, member: member, payload: payload, reader: wire.NewReader(conn, 0)}
}

func (d *deviceSpeech) greet() error {
	id := sha256.Sum256(binary.BigEndian.AppendUint32([]byte("bench"), d.member))
	hello, err := wire.Append(nil, d.version, &wire.Hello{ClientID: id, Agent: "bench"})
	if err != nil {
		return err
	}
	if _, err := d.conn.Write(hello); err != nil {
		return err
	}
	frame, err := d.reader.Next()
	if err != nil {
		return err
	}
	var welcome wire.Welcome
	if err := unmarshal(frame, &welcome); err != nil {
		return err
	}
	d.token.Store(&welcome.Token)
	return nil
}

func (d *deviceSpeech) appendAsk(dst []byte, number uint32) []byte {
	dst, err := wire.Append(dst, d.version, &wire.Request{
		ID: number, Token: *d.token.Load(), Service: echoService, Body: d.body(number),
	})
	if err != nil {
		panic(err) // longer than a frame can be: -payload is bounded
	}
	return dst
}

func (d *deviceSpeech) appendBeat(dst []byte, _ uint32) ([]byte, bool) {
	dst, err := wire.Append(dst, d.version, &wire.Heartbeat{Token: *d.token.Load()})
	if err != nil {
		panic(err) // no heartbeat is longer than a frame
	}
	return dst, false
}

// body is a JSON string of so many bytes.
func (d *deviceSpeech) body(number uint32) []byte {
	body := make([]byte, 0, d.payload)
	body = append(body, '"')
	body = strconv.AppendUint(body, uint64(d.member)<<32|uint64(number), 16)
	for len(body) < d.payload-1 {
		body = append(body, '-')
	}
	return append(body, '"')
}

func (d *deviceSpeech) next() (uint32, error) {
	frame, err := d.reader.Next()
	if err != nil {
		return 0, err
	}
	if frame.Type == wire.TypeHeartbeatAck {
		var ack wire.HeartbeatAck
		err := unmarshal(frame, &ack)
		if err == nil && !ack.Token.IsZero() {
			d.token.Store(&ack.Token)
		}
		return 0, err
	}
	var answer wire.Response
	if err := unmarshal(frame, &answer); err != nil {
		return 0, err
	}
	if want := d.body(answer.ID); !bytes.Equal(answer.Body, want) {
		return 0, fmt.Errorf("request %d was answered with %q, want %q", answer.ID, answer.Body, want)
	}
	return answer.ID, nil
}

// unmarshal decodes a frame that must be of m's type.
func unmarshal(frame wire.Frame, m wire.Message) error {
	switch frame.Type {
	case m.Type():
		return wire.Unmarshal(frame.Version, frame.Payload, m)
	case wire.TypeError:
		var refusal wire.Error
		return errors.Join(wire.Unmarshal(frame.Version, frame.Payload, &refusal), &refusal)
	}
	return fmt.Errorf("got a %s frame, want %s", frame.Type, m.Type())
}
