package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"

	"github.com/coder/websocket"

	"github.com/goshield/goshield/sdk/wire"
)

// webStream makes a byte stream of messages, and sees to it that each holds exactly one frame.
type webStream struct {
	parkable // wire

	// Static.
	ws   *websocket.Conn
	wire *webWire

	// Owned by the reader.
	message io.Reader // the message being read; nil: none
	header  [wire.HeaderSize]byte
	unread  []byte // of header
	payload int    // bytes of it still to come
	err     error  // after which nothing more can be read
}

func newWebStream(ws *websocket.Conn, w *webWire) *webStream {
	ws.SetReadLimit(wire.HeaderSize + wire.MaxPayload)
	// The library would have the garbage collector close what nobody closes. The session closes its socket, whatever happens; and
	// since a websocket.Conn refers to itself, one with a finalizer that nobody closes is never collected.
	runtime.SetFinalizer(ws, nil)
	return &webStream{parkable: w, ws: ws, wire: w}
}

// attend implements attended.
func (s *webStream) attend(ses *session) { s.wire.ses = ses }

// Read implements transport. A message that is not exactly one frame is a
// *wire.Error, and its frame is not handed out.
func (s *webStream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.read(p)
	if err == nil {
		return n, nil
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) { // an interrupt, which wire lets through between two messages
		s.err = err
	}
	return 0, err
}

func (s *webStream) read(p []byte) (int, error) {
	if s.message == nil {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	if len(s.unread) > 0 {
		n := copy(p, s.unread)
		s.unread = s.unread[n:]
		return n, s.finish()
	}
	n, err := s.message.Read(p[:min(len(p), s.payload)])
	s.payload -= n
	if errors.Is(err, io.EOF) && s.payload > 0 {
		return n, wire.Errorf(wire.CodeBadFrame, "a message ends before its frame")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, endOfMessages(err)
	}
	return n, s.finish()
}

// next begins the next message: it must be binary and begin with a header.
func (s *webStream) next() error {
	kind, message, err := s.ws.Reader(context.Background())
	if err != nil {
		return endOfMessages(err)
	}
	if kind != websocket.MessageBinary {
		return wire.Errorf(wire.CodeBadFrame, "a text message; frames are binary")
	}
	if _, err := io.ReadFull(message, s.header[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return wire.Errorf(wire.CodeBadFrame, "a message is shorter than a frame's header")
		}
		return endOfMessages(err)
	}
	s.message, s.unread, s.payload = message, s.header[:], int(binary.BigEndian.Uint16(s.header[2:]))
	return nil
}

// finish ends a message whose frame was read: nothing may follow it.
func (s *webStream) finish() error {
	if len(s.unread) > 0 || s.payload > 0 {
		return nil
	}
	var more [1]byte
	n, err := io.ReadFull(s.message, more[:])
	switch {
	case n > 0:
		return wire.Errorf(wire.CodeBadFrame, "a message goes on after its frame")
	case !errors.Is(err, io.EOF):
		return endOfMessages(err)
	}
	s.message = nil
	return nil
}

// endOfMessages turns the peer's good-bye into io.EOF.
func endOfMessages(err error) error {
	if websocket.CloseStatus(err) != -1 {
		return io.EOF
	}
	return err
}

// noVersion is that of a pong among the frames that wait to be written.
const noVersion = 0

// pong queues the answer to a ping: the flusher writes it, when it is its turn, and under its deadline. The library would write it
// on the reader, which had to wait for the flusher then, and would give up the connection after 5 s. Where the queue is
// full there is no pong, which would not be read.
func (s *session) pong(payload []byte) {
	var frame [wire.HeaderSize + longestPing]byte
	n := copy(frame[wire.HeaderSize:], payload)
	frame[0], frame[wire.HeaderSize-1] = noVersion, byte(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state <= stateOpen && s.out.full == 0 {
		s.enqueue(frame[:wire.HeaderSize+n])
		s.startFlush()
	}
}

// Write implements transport: p is whole frames, each of which becomes a message, and pongs.
func (s *webStream) Write(p []byte) (int, error) {
	written := 0
	for len(p)-written >= wire.HeaderSize {
		rest := p[written:]
		size := wire.HeaderSize + int(binary.BigEndian.Uint16(rest[2:]))
		if err := s.writeOne(rest[:size]); err != nil {
			return written, err
		}
		written += size
	}
	return written, nil
}

func (s *webStream) writeOne(frame []byte) error {
	if frame[0] == noVersion {
		return s.wire.pong(frame[wire.HeaderSize:])
	}
	return s.ws.Write(context.Background(), websocket.MessageBinary, frame)
}

// CloseWrite implements transport: WebSocket's close handshake, which waits some
// seconds for the peer's part.
func (s *webStream) CloseWrite() error {
	s.wire.closing.Store(true)
	return s.ws.Close(websocket.StatusNormalClosure, "")
}

// Close implements transport.
func (s *webStream) Close() error { return s.wire.Close() }
