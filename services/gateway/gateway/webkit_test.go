package gateway

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// Opcodes of WebSocket (RFC 6455 §5.2).
const (
	opContinuation = 0
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// webSocketFrame is a client's frame, masked with zeros.
func webSocketFrame(opcode byte, payload []byte) []byte {
	b := []byte{0x80 | opcode}
	if len(payload) < 126 {
		b = append(b, 0x80|byte(len(payload)))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(payload)))
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

// fragment is a client's frame of a message that goes on.
func fragment(opcode byte, payload []byte) []byte {
	b := webSocketFrame(opcode, payload)
	b[0] &^= 0x80
	return b
}

// webSocketByHand is a connection that was upgraded, as bytes: client libraries do not flood.
func webSocketByHand(t *testing.T, s *Server) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn := dialRaw(t, s.WebSocketAddr())
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn, upgradeByHand(t, conn)
}

// upgradeByHand makes a connection one of WebSocket.
func upgradeByHand(t testing.TB, conn net.Conn) *bufio.Reader {
	t.Helper()
	_, err := io.WriteString(conn, "GET "+websocketPath+" HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: "+websocketSubprotocol+"\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade = %v, %v, want 101", resp, err)
	}
	_ = resp.Body.Close()
	return in
}

// readWebSocketFrame is the gateway's next frame; err at the end.
func readWebSocketFrame(in *bufio.Reader) (opcode byte, payload []byte, err error) {
	var header [2]byte
	if _, err := io.ReadFull(in, header[:]); err != nil {
		return 0, nil, err
	}
	size := int(header[1])
	if size == 126 {
		var long [2]byte
		if _, err := io.ReadFull(in, long[:]); err != nil {
			return 0, nil, err
		}
		size = int(binary.BigEndian.Uint16(long[:]))
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(in, payload)
	return header[0] & 0x0f, payload, err
}

// webEnd is a client's end of WebSocket as a byte stream: what is written becomes a message each, and messages are read. It answers
// a close, unless it is the answer to the test's own.
type webEnd struct {
	net.Conn
	in     *bufio.Reader
	left   []byte      // of a message, not read yet
	pongs  chan string // payloads
	closes atomic.Bool // the test closes
}

func newWebEnd(t testing.TB, conn net.Conn) *webEnd {
	t.Helper()
	return &webEnd{Conn: conn, in: upgradeByHand(t, conn), pongs: make(chan string, 64)}
}

// Write implements net.Conn.
func (c *webEnd) Write(p []byte) (int, error) {
	if _, err := c.Conn.Write(webSocketFrame(opBinary, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Read implements net.Conn.
func (c *webEnd) Read(p []byte) (int, error) {
	for len(c.left) == 0 {
		opcode, payload, err := readWebSocketFrame(c.in)
		if err != nil {
			return 0, err
		}
		switch opcode {
		case opBinary:
			c.left = payload
		case opPong:
			c.pongs <- string(payload)
		case opClose:
			if !c.closes.Load() {
				_, _ = c.Conn.Write(webSocketFrame(opClose, payload)) // it may be closed
			}
			return 0, io.EOF
		}
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

// ping sends a ping and wants its pong.
func (c *webEnd) ping(t testing.TB, payload string) {
	t.Helper()
	if _, err := c.Conn.Write(webSocketFrame(opPing, []byte(payload))); err != nil {
		t.Fatal(err)
	}
	c.wantPong(t, payload)
}

func (c *webEnd) wantPong(t testing.TB, payload string) {
	t.Helper()
	select {
	case got := <-c.pongs:
		if got != payload {
			t.Fatalf("pong = %q, want %q", got, payload)
		}
	case <-time.After(patience):
		t.Fatalf("no pong, want %q", payload)
	}
}

// dialWeb connects a device by WebSocket, over TLS if the gateway speaks it.
func (w *world) dialWeb(s *Server) *device {
	w.t.Helper()
	conn := dialRaw(w.t, s.WebSocketAddr())
	if s.tls != nil {
		conn = tls.Client(conn, w.clientTLS())
	}
	return newDevice(w.t, newWebEnd(w.t, conn))
}

// webBubble is bubble with a WebSocket listener, but for its socket; the devices on it come by connectWeb.
func webBubble(t *testing.T, doc dynamic.Document, f func(t *testing.T, r *rig)) {
	t.Helper()
	bubble(t, doc, func(t *testing.T, r *rig) {
		r.web = newWeb(r.Server, nil, false, nil)
		r.work.Add(1)
		go r.web.serve() // until Kill
		f(t, r)
	})
}

// stalledWeb is a device that reads its WELCOME and nothing after it.
func (r *rig) stalledWeb(t *testing.T, id wire.ClientID) (*device, net.Conn) {
	t.Helper()
	here, there := net.Pipe()
	r.accepted(there, websocketKind)
	t.Cleanup(func() { _ = here.Close() })
	end := newWebEnd(t, here)
	d := &device{t: t, conn: end, client: id, version: wire.Version1}
	d.send(&wire.Hello{ClientID: id})
	f, err := wire.NewReader(end, wire.MaxPayload).Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Unmarshal(f.Version, f.Payload, &d.welcome); err != nil {
		t.Fatal(err)
	}
	d.token = d.welcome.Token
	return d, here
}

func (r *rig) connectWeb(t *testing.T) (*device, *webEnd) {
	t.Helper()
	here, there := net.Pipe()
	r.accepted(there, websocketKind)
	end := newWebEnd(t, here)
	return newDevice(t, end), end
}
