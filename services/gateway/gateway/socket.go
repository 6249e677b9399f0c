package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// listenerKind is what is spoken on a listener.
type listenerKind uint8

const (
	deviceKind listenerKind = iota
	websocketKind
	mqttKind
)

// socket is one accepted TCP connection, from accept to end, beneath TLS and WebSocket. It is the
// net.Conn that crypto/tls reads from.
type socket struct {
	net.Conn // *net.TCPConn, or a pipe in tests

	// Static after the PROXY header was read.
	srv    *Server
	kind   listenerKind
	peer   netip.Addr // the other end of the TCP connection: a load balancer, or the device itself
	remote netip.Addr // the device

	// During the TLS handshake only, owned by its goroutine: while it computes, the
	// handshake has a place at the gate; while it waits for the peer it has none, so that
	// whoever stalls takes nothing from others.
	handshake context.Context // nil: no handshake is under way
	inside    bool
	began     bool // something has come

	// Static once there is a session.
	secure *tls.Conn // nil: plain
	ses    *session

	closed atomic.Bool
}

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	if s.handshake == nil {
		if s.ses != nil {
			s.ses.waits()
		}
		return s.Conn.Read(p)
	}
	s.leaveGate()
	n, err := s.Conn.Read(p)
	s.began = s.began || n > 0
	if err != nil {
		return n, err
	}
	if err := s.srv.handshakes.enter(s.handshake); err != nil {
		return 0, err
	}
	s.inside = true
	return n, nil
}

func (s *socket) leaveGate() {
	if s.inside {
		s.inside = false
		s.srv.handshakes.leave()
	}
}

// Close implements net.Conn. It interrupts whatever reads or writes.
func (s *socket) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.srv.sockets.forget(s)
	return s.Conn.Close()
}

// CloseWrite ends the outgoing direction only; errors.ErrUnsupported where the connection cannot do so.
func (s *socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// sockets is every connection there is, so that the end of the gateway finds all of them. It is safe
// for concurrent use.
type sockets struct {
	mu    sync.Mutex
	all   map[*socket]struct{}
	ended bool          // nothing is taken any more
	empty chan struct{} // closed at the next moment without connections; nil: nobody waits
}

func newSockets() *sockets { return &sockets{all: make(map[*socket]struct{})} }

// admit takes a connection in unless there are limit already, or the end has come.
func (c *sockets) admit(s *socket, limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || len(c.all) >= limit {
		return false
	}
	c.all[s] = struct{}{}
	return true
}

func (c *sockets) forget(s *socket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, s)
	if len(c.all) == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// waitEmpty waits until there is no connection.
func (c *sockets) waitEmpty(ctx context.Context) error {
	c.mu.Lock()
	if len(c.all) == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	empty := c.empty
	c.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end refuses new connections from now on and returns those there are.
func (c *sockets) end() []*socket {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	list := make([]*socket, 0, len(c.all))
	for s := range c.all {
		list = append(list, s)
	}
	return list
}
