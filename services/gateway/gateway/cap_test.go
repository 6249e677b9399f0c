package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/sdk/wire"
)

// A gateway takes as many connections and handshakes as gateway_limit says.

// connections is how many the gateway has.
func (s *Server) connections() int {
	s.sockets.mu.Lock()
	defer s.sockets.mu.Unlock()
	return len(s.sockets.all)
}

func TestConnectionsAreCapped(t *testing.T) {
	for _, tt := range []struct {
		name  string
		tls   string
		proxy bool // through a load balancer
	}{
		{"TLS", tlsOn, false},
		{"plain", tlsOff, false},
		{"through a load balancer", tlsOff, true},
		{"TLS through a load balancer", tlsOn, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := testDoc()
			doc.GatewayLimit.MaxConnections = 2
			w := newWorld(t, doc)
			s := w.gateway("gw-1", func(cfg *Config, times *timings) {
				times.linger = patience // who is refused has the time to hear of it
				cfg.TLS.Mode = tt.tls
				if tt.proxy {
					cfg.TrustedProxies = []string{"127.0.0.0/8"}
				}
			})
			first := dialRaw(t, s.Addr()) // both listeners count
			dialRaw(t, s.WebSocketAddr())
			eventually(t, "two connections are there", func() bool { return s.connections() == 2 })
			conn := dialRaw(t, s.Addr())
			if tt.proxy {
				if _, err := conn.Write(proxyHeader(t, proxyproto.PROXY, "203.0.113.9")); err != nil {
					t.Fatal(err)
				}
			}
			if tt.tls == tlsOn {
				conn = tls.Client(conn, w.clientTLS())
			}
			wantRetry(t, newDevice(t, conn).wantClosed(wire.CodeOverloaded).RetryAfter)
			if n := testutil.ToFloat64(s.metrics.handshakes.WithLabelValues(handshakeOverloaded)); n != 1 {
				t.Errorf("handshakes_total{overloaded} = %v, want 1", n)
			}
			if n := testutil.ToFloat64(s.metrics.gatewayRefused); n != 1 {
				t.Errorf(`ratelimit_decisions_total{scope="gateway",result="reject"} = %v, want 1`, n)
			}
			_ = first.Close()
			eventually(t, "there is room again", func() bool { return s.connections() == 1 })
			dialRaw(t, s.Addr())
			eventually(t, "the next one is taken", func() bool { return s.connections() == 2 })
		})
	}
}

func wantRetry(t *testing.T, after time.Duration) {
	t.Helper()
	if after < overloadRetry || after > 2*overloadRetry {
		t.Errorf("told to come again after %v, want from %v to %v", after, overloadRetry, 2*overloadRetry)
	}
}

// A lower cap closes nobody; whoever comes is refused until enough have gone.
func TestCapIsLowered(t *testing.T) {
	doc := testDoc()
	bubble(t, doc, func(t *testing.T, r *rig) {
		devices := []*device{r.enrolled(t, clientID(1)), r.enrolled(t, clientID(2)), r.enrolled(t, clientID(3))}
		doc.GatewayLimit.MaxConnections = 2
		if err := r.apply(doc, 1); err != nil {
			t.Fatal(err)
		}
		for _, d := range devices {
			d.roundTrip(1)
		}
		for _, d := range devices[:2] {
			here, there := net.Pipe()
			refused := newDevice(t, here) // reads already: unlike a socket, a pipe keeps nothing
			r.accepted(there, deviceKind)
			refused.wantClosed(wire.CodeOverloaded)
			_ = d.conn.Close()
			r.closed(closedEOF)
		}
		r.enrolled(t, clientID(4)).roundTrip(1)
	})
}

// A connection that is accepted while the gateway ends is closed, not forgotten.
func TestNothingIsAdmittedAfterTheEnd(t *testing.T) {
	c := newSockets()
	if !c.admit(&socket{}, 1) {
		t.Fatal("admit = false, want true")
	}
	if left := c.end(); len(left) != 1 {
		t.Errorf("connections at the end = %d, want 1", len(left))
	}
	if c.admit(&socket{}, 10) {
		t.Error("admit after the end = true, want false")
	}
}

// Handshakes for which there is no place at the gate are refused and counted; when there is, devices are
// served again.
func TestHandshakesAreCapped(t *testing.T) {
	doc := testDoc()
	doc.GatewayLimit.MaxHandshakes = 2
	w := newWorld(t, doc)
	s := w.gateway("gw-1", nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 { // as many as may compute
		if err := s.handshakes.enter(ctx); err != nil {
			t.Fatal(err)
		}
	}
	gone := make(chan error)
	const waiting = 2 * gateQueue
	for range waiting {
		go func() { gone <- s.handshakes.enter(ctx) }() // until cancel
	}
	eventually(t, "the queue is full", func() bool {
		s.handshakes.mu.Lock()
		defer s.handshakes.mu.Unlock()
		return len(s.handshakes.queue) == waiting
	})
	conn := dialRaw(t, s.Addr())
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(recordClientHello(t)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || isTimeout(err) {
		t.Errorf("read = %d, %v, want to be closed without a word", n, err)
	}
	eventually(t, "the refusal is counted", func() bool {
		return testutil.ToFloat64(s.metrics.handshakes.WithLabelValues(handshakeOverloaded)) == 1
	})
	cancel()
	for range waiting {
		if err := <-gone; err == nil {
			t.Error("a place at the gate was given, want none to be left")
		}
	}
	s.handshakes.leave()
	w.enrolled(s, clientID(1))
	more := doc
	more.Services = w.doc.Services
	more.GatewayLimit.MaxHandshakes = 3
	if err := s.apply(more, 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 { // besides the one that is still there
		if err := s.handshakes.enter(ctx); err != nil {
			t.Errorf("enter with a higher cap = %v, want nil", err)
		}
	}
}

// RELIABILITY row 16: where memory runs short, who comes is told to come later, and who is there is served.
func TestMemoryRunsShort(t *testing.T) {
	const room, ballastSize = 64 << 20, 128 << 20
	runtime.GC()
	needed := inUse(memorySamples())
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(int64((needed + room) / memoryShare)))
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	w.settled(s)
	d := w.enrolled(s, clientID(1))
	d.roundTrip(1)

	func() {
		ballast := make([]byte, ballastSize)
		runtime.GC()
		eventually(t, "memory runs short", s.full)
		w.dial(s).wantClosed(wire.CodeOverloaded)
		d.roundTrip(2)
		runtime.KeepAlive(ballast)
	}()

	runtime.GC()
	eventually(t, "there is room again", func() bool { return !s.full() })
	w.enrolled(s, clientID(2)).roundTrip(1)
}
