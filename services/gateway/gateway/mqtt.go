package gateway

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/mqtt"
)

// MQTT (docs/PROTOCOL.md §7): the session gets frames from package mqtt, which makes them of the device's packets, so that
// limits, tokens, routes, pushes and drain are those of every session.

// mqttRead is how many bytes of packets are asked for at once.
const mqttRead = 2048

var mqttBuffers = sync.Pool{New: func() any { return new([mqttRead]byte) }}

// mqttStream is a stream whose bytes are MQTT.
type mqttStream struct {
	*stream
	packets *mqtt.Translator
	ses     *session // static once there is one

	// Owned by the reader.
	buf   []byte // packets as they came; nil: none
	r, w  int    // what of buf was not received yet
	frame []byte // what of a frame was not read yet
	err   error  // after which nothing more can be read
}

func newMQTTStream(conn net.Conn, sock *socket) *mqttStream {
	s := &mqttStream{stream: newStream(conn, sock)}
	s.packets = mqtt.NewTranslator(func(bytes int) bool { return s.ses.admitPing(bytes) })
	return s
}

// attend implements attended.
func (s *mqttStream) attend(ses *session) { s.ses = ses }

// Read implements transport: frames, one at a time. Packets that become none are dealt with here.
func (s *mqttStream) Read(p []byte) (int, error) {
	for len(s.frame) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if err := s.next(); err != nil {
			var refused *wire.Error
			if errors.As(err, &refused) {
				s.err = err
			}
			return 0, err
		}
	}
	n := copy(p, s.frame)
	s.frame = s.frame[n:]
	return n, nil
}

// next takes one packet.
func (s *mqttStream) next() error {
	size, err := s.fill()
	if err != nil {
		return err
	}
	s.ses.frameCame()
	in, err := s.packets.Receive(s.buf[s.r : s.r+size])
	s.r += size
	if err != nil {
		return err
	}
	s.frame = in.Frame
	if len(in.Answer) > 0 {
		s.ses.sendPackets(in.Answer)
	}
	if len(in.Frame) == 0 && !s.ses.mayRead() {
		return io.EOF // it is over: what still comes is thrown away
	}
	return nil
}

// fill reads until a whole packet is there, and returns its size.
func (s *mqttStream) fill() (int, error) {
	for {
		size, err := s.packets.PacketSize(s.buf[s.r:s.w])
		if err != nil {
			return 0, err
		}
		if size > 0 && s.w-s.r >= size {
			return size, nil
		}
		s.makeRoom(max(size, 1))
		s.ses.within.Store(s.w > s.r)
		n, err := s.stream.Read(s.buf[s.w:])
		s.w += n
		if err != nil && n == 0 {
			if errors.Is(err, io.EOF) && s.w > s.r {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
}

// makeRoom moves what is unread to the front of a buffer of at least n bytes, with room for more.
func (s *mqttStream) makeRoom(n int) {
	if s.r == s.w {
		s.r, s.w = 0, 0
	}
	if s.r+n <= len(s.buf) && s.w < len(s.buf) {
		return
	}
	to := s.buf
	switch {
	case n <= len(to):
	case n <= mqttRead:
		to = mqttBuffers.Get().(*[mqttRead]byte)[:]
	default:
		to = make([]byte, n)
	}
	s.w = copy(to, s.buf[s.r:s.w])
	s.r, s.buf = 0, to
}

// shrink implements parkable.
func (s *mqttStream) shrink() {
	s.stream.shrink()
	if s.r != s.w {
		return // part of a packet
	}
	if len(s.buf) == mqttRead {
		mqttBuffers.Put((*[mqttRead]byte)(s.buf))
	}
	s.buf, s.r, s.w = nil, 0, 0
}

// Write implements transport: p is whole frames, or packets that were queued as they are.
func (s *mqttStream) Write(p []byte) (int, error) {
	buf := s.sock.srv.buffers.get()
	defer s.sock.srv.buffers.put(buf)
	out := buf.b[:0]
	for rest := p; len(rest) >= wire.HeaderSize; {
		size := wire.HeaderSize + int(binary.BigEndian.Uint16(rest[2:]))
		payload := rest[wire.HeaderSize:size]
		if rest[0] == versionRaw {
			out = append(out, payload...)
		} else {
			var err error
			f := wire.Frame{Header: wire.Header{Version: rest[0], Type: wire.Type(rest[1]), Length: uint16(len(payload))}, Payload: payload}
			if out, err = s.packets.Send(out, f); err != nil {
				return 0, err
			}
		}
		rest = rest[size:]
	}
	if buf.b = out; len(out) > 0 {
		if _, err := s.stream.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// CloseWrite implements transport.
func (s *mqttStream) CloseWrite() error {
	if bye := s.packets.Goodbye(); bye != nil {
		if _, err := s.stream.Write(bye); err != nil {
			return err
		}
	}
	return s.stream.CloseWrite()
}

// turnAway is that of a connection which becomes no session. It waits for CONNECT, which says what form the answer has; one
// that is wrong is told so instead.
func (s *mqttStream) turnAway(e *wire.Error) error {
	if err := s.sock.Conn.SetDeadline(time.Now().Add(s.sock.srv.timings.hello)); err != nil {
		return err
	}
	if err := s.awaitConnect(); err != nil && !errors.As(err, &e) {
		return err
	}
	frame, err := wire.Append(nil, wire.Version1, e)
	if err != nil {
		return err
	}
	return s.lastWords(s, frame)
}

// awaitConnect receives the first packet. Its error is a *wire.Error for one that is no good CONNECT.
func (s *mqttStream) awaitConnect() error {
	var buf []byte
	for {
		size, err := s.packets.PacketSize(buf)
		if err == nil && size > 0 && len(buf) >= size {
			_, err = s.packets.Receive(buf[:size])
			return err
		}
		if err != nil {
			return err
		}
		buf = slices.Grow(buf, max(size-len(buf), 128))
		n, err := s.stream.Read(buf[len(buf):cap(buf)])
		if buf = buf[:len(buf)+n]; err != nil && n == 0 {
			return err
		}
	}
}

// raw implements translating.
func (s *mqttStream) raw() io.Reader { return s.stream }

// bodiesAreJSON implements translating.
func (s *mqttStream) bodiesAreJSON() bool { return s.packets.JSON() }

// patience implements translating.
func (s *mqttStream) patience() time.Duration { return s.packets.Patience() }

// welcomed implements translating.
func (s *mqttStream) welcomed(w *wire.Welcome, inFlight int) { s.packets.Welcomed(w, inFlight) }

// mayPush implements translating.
func (s *mqttStream) mayPush(service string, bytes int) pushOutcome {
	switch s.packets.MayPush(service, bytes) {
	case mqtt.PushFull:
		return pushQueueFull
	case mqtt.PushRefused:
		return pushRefused
	case mqtt.PushTaken:
	}
	return pushQueued
}

// translating is a transport whose device speaks another protocol, of which it makes frames of version 2.
type translating interface {
	attended
	// bodiesAreJSON reports whether the device's bodies are; asked when its first frame has come.
	bodiesAreJSON() bool
	// welcomed is called by the reader before the WELCOME is queued. From there on the transport puts the token into frames: the
	// connection stands for it.
	welcomed(w *wire.Welcome, inFlight int)
	// patience is how long the device may be silent, instead of without a HEARTBEAT; 0: for ever.
	patience() time.Duration
	// mayPush is asked before a PUSH is queued: pushQueued, or what becomes of it. mu is held.
	mayPush(service string, bytes int) pushOutcome
	// raw reads what comes without making frames of it.
	raw() io.Reader
}

// versionRaw in a frame's header marks, in the outbound queue only, packets that are written as they are.
const versionRaw = 0

// sendPackets queues packets of a transport's own protocol.
func (s *session) sendPackets(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state > stateOpen {
		return
	}
	for len(p) > 0 {
		n := min(len(p), wire.MaxPayload)
		s.enqueue(append([]byte{versionRaw, 0, byte(n >> 8), byte(n)}, p[:n]...))
		p = p[n:]
	}
	s.startFlush()
}

// frameCame notes that a whole packet has come, whether it becomes a frame or not. The reader calls it.
func (s *session) frameCame() {
	s.frameStart.Store(0)
	s.lastFrame.Store(s.srv.now())
}
