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

// Write implements transport: p is whole frames, each of which becomes a message.
func (s *webStream) Write(p []byte) (int, error) {
	written := 0
	for len(p)-written >= wire.HeaderSize {
		rest := p[written:]
		size := wire.HeaderSize + int(binary.BigEndian.Uint16(rest[2:]))
		if err := s.ws.Write(context.Background(), websocket.MessageBinary, rest[:size]); err != nil {
			return written, err
		}
		written += size
	}
	return written, nil
}

// CloseWrite implements transport: WebSocket's close handshake, which waits some
// seconds for the peer's part.
func (s *webStream) CloseWrite() error {
	s.wire.closing.Store(true)
	return s.ws.Close(websocket.StatusNormalClosure, "")
}

// Close implements transport.
func (s *webStream) Close() error { return s.wire.Close() }
