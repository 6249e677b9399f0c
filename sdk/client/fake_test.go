package client_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// patience bounds every wait of a test. Within synctest it costs nothing.
const patience = time.Minute

// fakeGateway is a gateway that does what a test tells it, connection by connection. Devices reach it
// over pipes, so that all of it can run on synctest's clock.
type fakeGateway struct {
	t     testing.TB
	peers chan *peer

	mu      sync.Mutex
	refuse  error // what dialling gets
	attempt []time.Time
}

func newFakeGateway(t testing.TB) *fakeGateway {
	return &fakeGateway{t: t, peers: make(chan *peer, 64)}
}

// dial is a Config.DialContext.
func (g *fakeGateway) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.attempt = append(g.attempt, time.Now())
	if g.refuse != nil {
		return nil, g.refuse
	}
	near, far := net.Pipe()
	g.peers <- newPeer(g.t, far)
	return near, nil
}

func (g *fakeGateway) setRefuse(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = err
}

// attempts is when the devices dialled.
func (g *fakeGateway) attempts() []time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]time.Time(nil), g.attempt...)
}

// accept is the next connection.
func (g *fakeGateway) accept() *peer {
	g.t.Helper()
	select {
	case p := <-g.peers:
		return p
	case <-time.After(patience):
		g.t.Fatal("no connection came")
		return nil
	}
}

// peer is the gateway's end of a connection.
type peer struct {
	t    testing.TB
	conn net.Conn
	r    *wire.Reader
	// version is how it encodes its frames: like the device's last one.
	version byte
}

func newPeer(t testing.TB, conn net.Conn) *peer {
	return &peer{t: t, conn: conn, r: wire.NewReader(conn, wire.MaxPayload), version: wire.Version1}
}

func (p *peer) close() { _ = p.conn.Close() }

// next reads a frame, or returns the error that it got instead.
func (p *peer) next() (wire.Message, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	f, err := p.r.Next()
	if err != nil {
		return nil, err
	}
	p.version = f.Version
	m := map[wire.Type]wire.Message{
		wire.TypeHello: &wire.Hello{}, wire.TypeRequest: &wire.Request{}, wire.TypeHeartbeat: &wire.Heartbeat{},
		wire.TypePushAck: &wire.PushAck{}, wire.TypeProof: &wire.Proof{}, wire.TypeBye: &wire.Bye{},
	}[f.Type]
	if m == nil {
		return nil, fmt.Errorf("a device sent %s", f.Type)
	}
	if err := wire.Unmarshal(f.Version, append([]byte(nil), f.Payload...), m); err != nil {
		return nil, err
	}
	return m, nil
}

// expect reads the next frame, which must be an M.
func expect[M wire.Message](p *peer) M {
	p.t.Helper()
	m, err := p.next()
	if err != nil {
		p.t.Fatalf("waiting for %T: %v", *new(M), err)
	}
	typed, ok := m.(M)
	if !ok {
		p.t.Fatalf("got %s %+v, want %T", m.Type(), m, *new(M))
	}
	return typed
}

// expectRequest reads the next frame but for heartbeats, which it acknowledges.
func (p *peer) expectRequest() *wire.Request {
	p.t.Helper()
	for {
		m, err := p.next()
		if err != nil {
			p.t.Fatalf("waiting for REQUEST: %v", err)
		}
		switch m := m.(type) {
		case *wire.Request:
			return m
		case *wire.Heartbeat:
			p.send(&wire.HeartbeatAck{})
		default:
			p.t.Fatalf("got %s, want REQUEST", m.Type())
		}
	}
}

// expectEnd reads until the device has closed the connection.
func (p *peer) expectEnd() {
	p.t.Helper()
	for {
		m, err := p.next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.t.Fatalf("waiting for the end: %v", err)
		}
		if m.Type() != wire.TypeHeartbeat && m.Type() != wire.TypeBye {
			p.t.Fatalf("got %s, want the end of the connection", m.Type())
		}
	}
}

func (p *peer) send(m wire.Message) {
	p.t.Helper()
	frame, err := wire.Append(nil, p.version, m)
	if err != nil {
		p.t.Fatal(err)
	}
	p.sendRaw(frame)
}

func (p *peer) sendRaw(b []byte) {
	p.t.Helper()
	_ = p.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

// welcome answers a HELLO: no heartbeats but with those that change it.
func (p *peer) welcome(token wire.Token, change ...func(*wire.Welcome)) *wire.Hello {
	p.t.Helper()
	hello := expect[*wire.Hello](p)
	w := &wire.Welcome{Token: token, ExpiresAt: time.Now().Add(time.Hour), IdleTimeout: 90 * time.Second, MaxFrame: 16384, Session: "fake/1"}
	for _, f := range change {
		f(w)
	}
	p.send(w)
	return hello
}

func withHeartbeat(d time.Duration) func(*wire.Welcome) {
	return func(w *wire.Welcome) { w.Heartbeat = d }
}

// echo answers the next request with its own body.
func (p *peer) echo() *wire.Request {
	p.t.Helper()
	req := p.expectRequest()
	p.send(&wire.Response{ID: req.ID, Body: req.Body})
	return req
}

// serve welcomes the device and answers everything until the connection ends. It
// ends with the connection.
func (p *peer) serve(token wire.Token, change ...func(*wire.Welcome)) {
	p.welcome(token, change...)
	for {
		m, err := p.next()
		if err != nil {
			p.close()
			return
		}
		switch m := m.(type) {
		case *wire.Request:
			p.send(&wire.Response{ID: m.ID, Body: m.Body})
		case *wire.Heartbeat:
			p.send(&wire.HeartbeatAck{})
		}
	}
}

func newToken(t testing.TB) wire.Token {
	t.Helper()
	var token wire.Token
	if _, err := rand.Read(token[:]); err != nil {
		t.Fatal(err)
	}
	return token
}

func testID(t testing.TB) wire.ClientID {
	t.Helper()
	id, err := wire.ClientIDFromMAC("00:1a:2b:3c:4d:5e")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// config is a device of g's with short back-offs.
func (g *fakeGateway) config() client.Config {
	return client.Config{
		Addr: "gateway.test:8443", ClientID: testID(g.t), DialContext: g.dial, TokenStore: client.MemoryStore(),
		BackoffBase: 10 * time.Millisecond, BackoffCap: 50 * time.Millisecond,
	}
}

// dialling is a Dial that goes on while the test plays the gateway.
type dialling struct {
	client *client.Client
	err    error
	done   chan struct{}
}

func dialInBackground(cfg client.Config) *dialling {
	d := &dialling{done: make(chan struct{})}
	go func() {
		defer close(d.done)
		d.client, d.err = client.Dial(context.Background(), cfg)
	}()
	return d
}

// wait returns the client, which must have been made.
func (d *dialling) wait(t testing.TB) *client.Client {
	t.Helper()
	<-d.done
	if d.err != nil {
		t.Fatalf("Dial: %v", d.err)
	}
	return d.client
}

// connect makes a client with its first connection welcomed with token.
func (g *fakeGateway) connect(cfg client.Config, token wire.Token, change ...func(*wire.Welcome)) (*client.Client, *peer) {
	g.t.Helper()
	d := dialInBackground(cfg)
	p := g.accept()
	p.welcome(token, change...)
	return d.wait(g.t), p
}

// asking is a Request that goes on while the test plays the gateway.
type asking struct {
	body []byte
	err  error
	done chan struct{}
}

func ask(ctx context.Context, c *client.Client, body string) *asking {
	a := &asking{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.body, a.err = c.Request(ctx, "echo", []byte(body))
	}()
	return a
}

// wait returns the answer and the error.
func (a *asking) wait() (string, error) {
	<-a.done
	return string(a.body), a.err
}

// expectAnswer wants the answer that echo gives.
func (a *asking) expectAnswer(t testing.TB, want string) {
	t.Helper()
	if got, err := a.wait(); err != nil || got != want {
		t.Errorf("answer: got %q, %v, want %q", got, err, want)
	}
}

// code is the code of the gateway's error, or empty.
func code(err error) wire.Code {
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}
