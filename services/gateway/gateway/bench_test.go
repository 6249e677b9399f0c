package gateway

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/backend"
)

// The request path without sockets and backends: decode, limit, token, routing table of
// requests in flight, answer, write.

// treadmill is a transport that gives the reader one frame a turn, and takes its answer.
type treadmill struct {
	frames  chan []byte
	answers chan int
	rest    []byte
}

func (m *treadmill) Read(p []byte) (int, error) {
	if len(m.rest) == 0 {
		frame, ok := <-m.frames
		if !ok {
			return 0, io.EOF
		}
		m.rest = frame
	}
	n := copy(p, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}

func (m *treadmill) Write(p []byte) (int, error) { m.answers <- len(p); return len(p), nil }
func (m *treadmill) CloseWrite() error           { return nil }
func (m *treadmill) Close() error                { return nil }

// straightRouter answers from a slice that is there already.
type straightRouter struct{ fakeRouter }

func (*straightRouter) Send(req backend.Request, w backend.Waiter, tag uint32) backend.Handle {
	w.Done(tag, backend.Reply{Body: req.Body})
	return backend.Handle{}
}

// benchSession is an open session on a treadmill. stop ends it.
func benchSession(tb testing.TB) (m *treadmill, request []byte, stop func()) {
	tb.Helper()
	cfg := DefaultConfig()
	cfg.TLS.Mode, cfg.Push, cfg.WebSocket, cfg.MQTT, cfg.Node = tlsOff, "", "", "", "gw-1"
	cfg.Defaults = testDoc()
	cfg.Defaults.DeviceLimit.Rate, cfg.Defaults.DeviceLimit.Burst = 1e9, 1e9 // asked, and never over
	s, err := newServer(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}, defaultTimings())
	if err != nil {
		tb.Fatal(err)
	}
	s.registry = &fakeDirectory{}
	s.use(newFakeAuth(cfg.Defaults.Token), &straightRouter{})
	if err := s.apply(cfg.Defaults, 0); err != nil {
		tb.Fatal(err)
	}
	s.startWork()
	here, _ := net.Pipe()
	sock := &socket{Conn: here, srv: s}
	s.sockets.admit(sock, 10)
	m = &treadmill{frames: make(chan []byte), answers: make(chan int)}
	s.metrics.handshaking.Inc()
	s.startSession(sock, m)
	hello, err := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: clientID(1)})
	if err != nil {
		tb.Fatal(err)
	}
	m.frames <- hello
	<-m.answers
	auth := s.auth.(*fakeAuth)
	auth.mu.Lock()
	token := auth.devices[clientID(1)].cur
	auth.mu.Unlock()
	request, err = wire.Append(nil, wire.Version1, &wire.Request{
		ID: 1, Token: token, Service: "echo", Body: []byte(`{"meter":"0123456789","reading":12345.678,"unit":"kWh","ok":true}`),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return m, request, func() { close(m.frames); s.Kill() }
}

func BenchmarkRequest(b *testing.B) {
	m, request, stop := benchSession(b)
	defer stop()
	b.ReportAllocs()
	for b.Loop() {
		m.frames <- request
		<-m.answers
	}
}

// The gateway's own part of a request, without the backend link, allocates next to nothing.
func TestRequestAllocations(t *testing.T) {
	m, request, stop := benchSession(t)
	defer stop()
	n := testing.AllocsPerRun(1000, func() {
		m.frames <- request
		<-m.answers
	})
	if n > 1 {
		t.Errorf("allocations a request = %v, want at most 1", n)
	}
}

// bareBackend answers each request with its body, and allocates nothing for it: what a test counts beside it is the
// gateway's. It ends with the test.
func bareBackend(tb testing.TB) (addr string) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the listener, and then the link
		defer close(ended)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		_ = echoBare(nc)
	}()
	tb.Cleanup(func() { _ = ln.Close(); <-ended })
	return ln.Addr().String()
}

func echoBare(nc net.Conn) error {
	const before = 32 + 1 + len("echo") + 4 // of a REQUEST's body: client_id, service, deadline
	buf := make([]byte, 64<<10)
	out := make([]byte, 0, 64<<10)
	for {
		if _, err := io.ReadFull(nc, buf[:link.HeaderSize]); err != nil {
			return err
		}
		h, err := link.ParseHeader(buf[:link.HeaderSize], len(buf))
		if err != nil {
			return err
		}
		payload := buf[:h.Length]
		if _, err := io.ReadFull(nc, payload); err != nil {
			return err
		}
		switch h.Type {
		case link.TypeHello:
			out = link.AppendHello(out[:0], &link.Hello{MaxFrame: len(buf), MaxStreams: 64})
		case link.TypeRequest:
			out = link.AppendResponse(out[:0], h.Stream, payload[before:])
		default:
			continue
		}
		if _, err := nc.Write(out); err != nil {
			return err
		}
	}
}

// overLink is a device whose requests take the whole way: over loopback, in clear text, to a backend at the end of a
// link, and back. ask makes one.
func overLink(tb testing.TB) (ask func()) {
	tb.Helper()
	doc := testDoc()
	doc.DeviceLimit.Rate, doc.DeviceLimit.Burst = 1e9, 1e9 // asked, and never over
	w := newWorld(tb, doc)
	w.doc.Services = map[string]dynamic.Service{"echo": {Endpoints: []string{bareBackend(tb)}, Links: 1}}
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.TLS.Mode = tlsOff })
	w.settled(s)
	conn := dialRaw(tb, s.Addr())
	tb.Cleanup(func() { _ = conn.Close() })
	hello, err := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: clientID(1)})
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := conn.Write(hello); err != nil {
		tb.Fatal(err)
	}
	f, err := wire.NewReader(conn, wire.MaxPayload).Next()
	if err != nil {
		tb.Fatal(err)
	}
	var welcome wire.Welcome
	if err := expect(f, &welcome); err != nil {
		tb.Fatal(err)
	}
	body := []byte(`{"meter":"0123456789","reading":12345.678,"unit":"kWh","ok":1}`)
	request, err := wire.Append(nil, wire.Version1, &wire.Request{ID: 1, Token: welcome.Token, Service: "echo", Body: body})
	if err != nil {
		tb.Fatal(err)
	}
	want, err := wire.Append(nil, wire.Version1, &wire.Response{ID: 1, Body: body})
	if err != nil {
		tb.Fatal(err)
	}
	got := make([]byte, len(want))
	return func() {
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write(request); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
			tb.Fatalf("got %q (%v), want %q", got, err, want)
		}
	}
}

func BenchmarkRequestOverLink(b *testing.B) {
	ask := overLink(b)
	b.ReportAllocs()
	for b.Loop() {
		ask()
	}
}

// The whole way of a request, of version 1 and over a link, allocates four times at most.
func TestRequestAllocationsOverLink(t *testing.T) {
	ask := overLink(t)
	ask()
	n := testing.AllocsPerRun(2000, ask)
	t.Attr("allocations_a_request", fmt.Sprint(n))
	if n > 4 {
		t.Errorf("allocations a request = %v, want at most 4", n)
	}
}
