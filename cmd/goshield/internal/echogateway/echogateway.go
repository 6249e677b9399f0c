// Package echogateway is a gateway of two hundred lines for the tests of this
// module: it enrols and resumes devices, rotates tokens, answers every request with
// its own body, and misbehaves when told to. It checks tokens, and nothing else.
package echogateway

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/sdk/wire"
)

// Gateway listens on loopback until Close.
type Gateway struct {
	// Behaviour, set before the first connection.
	Heartbeat time.Duration                                               // in WELCOME; 0: none
	Rotate    bool                                                        // every ack brings a new token
	Answer    func(id wire.ClientID, req *wire.Request) wire.Message      // nil: echo
	OnHello   func(h *wire.Hello) *wire.Error                             // nil: nobody is refused
	Welcomed  func(id wire.ClientID, send func(wire.Message), end func()) // after each WELCOME; may be nil

	t      testing.TB
	ca     *certs.CA
	ln     net.Listener
	closed chan struct{}
	work   sync.WaitGroup

	mu     sync.Mutex
	tokens map[wire.ClientID]wire.Token
	conns  map[net.Conn]bool
}

// Start makes a gateway with TLS, or without, whose certificate is for localhost and
// 127.0.0.1. change sets its behaviour; may be nil. The test ends it.
func Start(t testing.TB, withTLS bool, change func(g *Gateway)) *Gateway {
	t.Helper()
	ca, err := certs.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{t: t, ca: ca, closed: make(chan struct{}), tokens: make(map[wire.ClientID]wire.Token), conns: make(map[net.Conn]bool)}
	if change != nil {
		change(g)
	}
	if g.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if withTLS {
		certPEM, keyPEM, err := ca.Issue(certs.Leaf{DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, ValidFor: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		g.ln = tls.NewListener(g.ln, &tls.Config{Certificates: []tls.Certificate{pair}})
	}
	g.work.Go(g.accept)
	t.Cleanup(g.Close)
	return g
}

// Addr is where it listens.
func (g *Gateway) Addr() string { return g.ln.Addr().String() }

// CA signed its certificate.
func (g *Gateway) CA() *certs.CA { return g.ca }

// Disconnect breaks every connection.
func (g *Gateway) Disconnect() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.disconnect()
}

// ForgetAndDisconnect makes every token invalid and breaks every connection, at one moment: a device that comes back
// already is not broken off again.
func (g *Gateway) ForgetAndDisconnect() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.tokens)
	g.disconnect()
}

// disconnect is called with mu held.
func (g *Gateway) disconnect() {
	for conn := range g.conns {
		_ = conn.Close()
	}
}

// Close ends it, and returns when all of it has ended.
func (g *Gateway) Close() {
	select {
	case <-g.closed:
		return
	default:
		close(g.closed)
	}
	_ = g.ln.Close()
	g.Disconnect()
	g.work.Wait()
}

// accept ends with the listener.
func (g *Gateway) accept() {
	for {
		conn, err := g.ln.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		g.conns[conn] = true
		g.mu.Unlock()
		g.work.Go(func() { g.serve(conn) })
	}
}

// serve ends with the connection.
func (g *Gateway) serve(conn net.Conn) {
	defer func() {
		g.mu.Lock()
		delete(g.conns, conn)
		g.mu.Unlock()
		_ = conn.Close()
	}()
	select {
	case <-g.closed:
		return
	default:
	}
	s := &session{g: g, conn: conn, r: wire.NewReader(conn, wire.MaxPayload)}
	for {
		f, err := s.r.Next()
		if err != nil {
			return
		}
		if err := s.handle(f); err != nil {
			var refusal *wire.Error
			if errors.As(err, &refusal) {
				s.send(refusal)
			}
			return
		}
	}
}

type session struct {
	g      *Gateway
	conn   net.Conn
	r      *wire.Reader
	id     wire.ClientID
	next   wire.Token // offered in acks until it is used
	sendMu sync.Mutex
}

func (s *session) send(m wire.Message) {
	// The version of the device's first frame; what is said before one is version 1.
	frame, err := wire.Append(nil, max(s.r.Version(), wire.Version1), m)
	if err != nil {
		s.g.t.Errorf("echogateway: %v", err)
		return
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	_, _ = s.conn.Write(frame) // a broken connection shows in the next read
}

func (s *session) handle(f wire.Frame) error {
	switch f.Type {
	case wire.TypeHello:
		return s.hello(f)
	case wire.TypeRequest:
		var req wire.Request
		if err := wire.Unmarshal(f.Version, f.Payload, &req); err != nil {
			return err
		}
		if err := s.check(req.Token); err != nil {
			return err
		}
		answer := wire.Message(&wire.Response{ID: req.ID, Body: req.Body})
		if s.g.Answer != nil {
			answer = s.g.Answer(s.id, &req)
		}
		if answer != nil {
			s.send(answer)
		}
	case wire.TypeHeartbeat:
		var beat wire.Heartbeat
		if err := wire.Unmarshal(f.Version, f.Payload, &beat); err != nil {
			return err
		}
		if err := s.check(beat.Token); err != nil {
			return err
		}
		ack := &wire.HeartbeatAck{}
		if s.g.Rotate {
			if s.next.IsZero() {
				s.next = newToken()
			}
			ack.Token, ack.ExpiresAt = s.next, time.Now().Add(time.Hour)
		}
		s.send(ack)
	case wire.TypePushAck:
	case wire.TypeBye:
		return errors.New("bye")
	default:
		return wire.Errorf(wire.CodeBadFrame, "%s from a device", f.Type)
	}
	return nil
}

func (s *session) hello(f wire.Frame) error {
	var h wire.Hello
	if err := wire.Unmarshal(f.Version, f.Payload, &h); err != nil {
		return err
	}
	if s.g.OnHello != nil {
		if refusal := s.g.OnHello(&h); refusal != nil {
			return refusal
		}
	}
	s.id = h.ClientID
	token := h.Token
	if token.IsZero() {
		token = newToken()
		s.g.mu.Lock()
		s.g.tokens[s.id] = token
		s.g.mu.Unlock()
	} else if err := s.check(token); err != nil {
		return err
	}
	s.send(&wire.Welcome{Token: token, ExpiresAt: time.Now().Add(time.Hour), Heartbeat: s.g.Heartbeat,
		IdleTimeout: time.Minute, MaxFrame: wire.DefaultMaxPayload, Session: "echogateway"})
	if s.g.Welcomed != nil {
		s.g.Welcomed(s.id, s.send, func() { _ = s.conn.Close() })
	}
	return nil
}

// check accepts the device's token, or the one it was offered, which thereby replaces the other.
func (s *session) check(token wire.Token) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	switch {
	case token == s.g.tokens[s.id] && !token.IsZero():
		return nil
	case token == s.next && !token.IsZero():
		s.g.tokens[s.id], s.next = token, wire.Token{}
		return nil
	}
	return wire.Errorf(wire.CodeBadToken, "not this device's token")
}

func newToken() (t wire.Token) {
	_, _ = rand.Read(t[:]) // never fails
	return t
}
