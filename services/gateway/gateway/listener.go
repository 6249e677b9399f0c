package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/accept"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/quicktcp"
)

// listen binds an address of the configuration.
func listen(key, addr string) (net.Listener, error) {
	// A device's heartbeat tells that it lives; the kernel's probes would wake its radio besides.
	lc := net.ListenConfig{KeepAlive: -1}
	ln, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, &config.Error{Key: key, Err: err}
	}
	return ln, nil
}

// deviceListener is where devices of one kind connect.
type deviceListener struct {
	net.Listener
	kind listenerKind
}

// acceptFrom accepts until ln is closed.
func (s *Server) acceptFrom(ln net.Listener, kind listenerKind) {
	defer s.work.Done()
	accept.Loop(ln, func(c net.Conn) { s.accepted(c, kind) }, func(err error, pause time.Duration) {
		s.log.Warn("cannot accept", zap.Error(err), zap.Duration("pause", pause))
	})
}

// accepted takes a new connection in, or closes it before it costs anything.
func (s *Server) accepted(c net.Conn, kind listenerKind) {
	sock := &socket{Conn: quicktcp.Wrap(c), srv: s, kind: kind, peer: addrOf(c.RemoteAddr()), remote: addrOf(c.RemoteAddr())}
	if s.full() || !s.sockets.admit(sock, s.settings.Load().doc.GatewayLimit.MaxConnections) {
		s.refuse(sock)
		return
	}
	s.metrics.handshaking.Inc()
	s.work.Add(1)
	go s.open(sock)
}

// open brings a connection to its first frame: PROXY header, TLS, and then a
// session or the HTTP server of WebSocket. It ends within the deadlines of these steps.
func (s *Server) open(sock *socket) {
	defer s.work.Done()
	result, err := s.handshake(sock)
	switch {
	case errors.Is(err, errProbe):
	case err != nil:
		s.metrics.handshakes.WithLabelValues(result).Inc()
		s.metrics.closed.WithLabelValues(closedHandshake).Inc()
		s.log.Debug("connection refused", zap.String("result", result), zap.Stringer("peer", sock.peer), zap.Error(err))
	default:
		s.metrics.handshakes.WithLabelValues(handshakeOK).Inc()
		return
	}
	s.metrics.handshaking.Dec()
	_ = sock.Close() // there is nothing to lose
}

// handshake does all that comes before the first frame, and hands the connection on.
func (s *Server) handshake(sock *socket) (result string, err error) {
	conn, result, err := s.secure(sock)
	if err != nil {
		return result, err
	}
	switch sock.kind {
	case websocketKind:
		s.web.take(conn, sock)
	case mqttKind:
		s.startSession(sock, newMQTTStream(conn, sock))
	case deviceKind:
		s.startSession(sock, newStream(conn, sock))
	}
	return handshakeOK, nil
}

// handshakeTLS is done with a deadline, and with a place at the gate wherever it computes. Its error is errProbe for a
// peer that leaves before its first byte.
func (s *Server) handshakeTLS(sock *socket) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.timings.handshake)
	defer cancel()
	cfg := s.tls
	if sock.kind == websocketKind {
		cfg = s.webTLS
	}
	conn := tls.Server(sock, cfg)
	sock.handshake = ctx
	err := conn.HandshakeContext(ctx)
	sock.leaveGate()
	sock.handshake = nil
	if !sock.began && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
		return nil, errProbe
	}
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	sock.secure = conn
	return conn, nil
}

func handshakeResult(err error) string {
	switch {
	case errors.Is(err, errOverloaded):
		return handshakeOverloaded
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return handshakeTimeout
	}
	return handshakeFailed
}

// Addr is where devices connect, after Start.
func (s *Server) Addr() string { return s.listeners[0].Addr().String() }

// WebSocketAddr is where devices connect by WebSocket, after Start; "" if
// they cannot.
func (s *Server) WebSocketAddr() string {
	if s.web == nil {
		return ""
	}
	return s.web.addr.String()
}

// MQTTAddr is where devices connect that speak MQTT, after Start; "" if they cannot.
func (s *Server) MQTTAddr() string {
	for _, ln := range s.listeners {
		if ln.kind == mqttKind {
			return ln.Addr().String()
		}
	}
	return ""
}

// PushAddr is where the push API listens, after Start; "" if there is none.
func (s *Server) PushAddr() string {
	if s.pushLn == nil {
		return ""
	}
	return s.pushLn.Addr().String()
}
