package conformance

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/coder/websocket"

	"github.com/goshield/goshield/sdk/wire"
)

// How devices connect: TCP with TLS or without, and WebSocket.

// subprotocol is that of WebSocket.
const subprotocol = "goshield"

// dial connects, without a frame.
func (d *device) dial() (err error) {
	ctx, cancel := context.WithTimeout(d.ctx, d.cfg.AnswerTime)
	defer cancel()
	d.dialled = time.Now()
	if d.way.websocket {
		d.conn, err = dialWebSocket(ctx, d.cfg, []string{subprotocol})
	} else {
		d.conn, err = dialTCP(ctx, d.cfg)
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	d.in, d.hears = wire.NewReader(d.conn, wire.MaxPayload), wire.Version1
	return nil
}

// Reach connects to each address once, without a frame.
func Reach(ctx context.Context, cfg Config) error {
	if cfg.Addr != "" {
		conn, err := dialTCP(ctx, &cfg)
		if err != nil {
			return err
		}
		_ = conn.Close()
	}
	if cfg.WebSocket != "" {
		conn, err := dialWebSocket(ctx, &cfg, []string{subprotocol})
		if err != nil {
			return fmt.Errorf("WebSocket: %w", err)
		}
		_ = conn.Close()
	}
	return nil
}

func dialTCP(ctx context.Context, cfg *Config) (net.Conn, error) {
	if cfg.TLS == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", cfg.Addr)
	}
	return (&tls.Dialer{Config: cfg.TLS}).DialContext(ctx, "tcp", cfg.Addr)
}

func dialWebSocket(ctx context.Context, cfg *Config, subprotocols []string) (net.Conn, error) {
	scheme := "ws"
	transport := &http.Transport{DisableKeepAlives: true}
	if cfg.TLS != nil {
		scheme, transport.TLSClientConfig = "wss", cfg.TLS.Clone()
	}
	//nolint:bodyclose // the library closes it
	ws, _, err := websocket.Dial(ctx, scheme+"://"+cfg.WebSocket+"/device", &websocket.DialOptions{
		Subprotocols: subprotocols, HTTPClient: &http.Client{Transport: transport}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(wire.HeaderSize + wire.MaxPayload)
	return &messages{Conn: websocket.NetConn(context.Background(), ws, websocket.MessageBinary), ws: ws}, nil
}

// messages is a WebSocket as a connection. Each Write is a message; of those that come each must be
// exactly one frame.
type messages struct {
	net.Conn
	ws       *websocket.Conn
	deadline time.Time
	unread   []byte
}

// SetReadDeadline implements net.Conn.
func (m *messages) SetReadDeadline(t time.Time) error {
	m.deadline = t
	return nil
}

// Read implements net.Conn.
func (m *messages) Read(p []byte) (int, error) {
	if len(m.unread) == 0 {
		ctx, cancel := context.WithDeadline(context.Background(), m.deadline)
		defer cancel()
		kind, message, err := m.ws.Read(ctx)
		switch {
		case ctx.Err() != nil:
			return 0, os.ErrDeadlineExceeded
		case websocket.CloseStatus(err) != -1:
			return 0, io.EOF
		case err != nil:
			return 0, err
		case kind != websocket.MessageBinary:
			return 0, errors.New("the gateway sent a text message")
		case len(message) < wire.HeaderSize || len(message) != wire.HeaderSize+int(binary.BigEndian.Uint16(message[2:])):
			return 0, fmt.Errorf("the gateway sent a message of %d bytes that is not exactly one frame", len(message))
		}
		m.unread = message
	}
	n := copy(p, m.unread)
	m.unread = m.unread[n:]
	return n, nil
}

// Close implements net.Conn, without a close handshake.
func (m *messages) Close() error { return m.ws.CloseNow() }
