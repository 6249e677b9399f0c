package gateway

import (
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/sdk/wire"
)

// A health check that only connects is no failed handshake; one that has begun to speak is.
func TestBareConnectionsAreSilent(t *testing.T) {
	for _, tt := range []struct {
		name  string
		send  []byte
		reset bool
		want  float64 // failed handshakes
	}{
		{"closed", nil, false, 0},
		{"reset", nil, true, 0},
		{"closed after some bytes", recordClientHello(t)[:3], false, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, testDoc())
			s := w.gateway("gw-1", nil)
			for _, addr := range []string{s.Addr(), s.WebSocketAddr()} {
				conn := dialRaw(t, addr)
				if _, err := conn.Write(tt.send); err != nil {
					t.Fatal(err)
				}
				if tt.reset {
					_ = conn.(*net.TCPConn).SetLinger(0)
				}
				_ = conn.Close()
			}
			w.dial(s).hello(clientID(1), wire.Token{}) // these were accepted after the others
			w.browser(s).hello(clientID(2))
			eventually(t, "the others are gone", func() bool {
				s.sockets.mu.Lock()
				defer s.sockets.mu.Unlock()
				return len(s.sockets.all) == 2
			})
			if got := testutil.ToFloat64(s.metrics.handshakes.WithLabelValues(handshakeFailed)); got != tt.want {
				t.Errorf("handshakes_total{failed} = %v, want %v", got, tt.want)
			}
			if got := testutil.ToFloat64(s.metrics.closed.WithLabelValues(closedHandshake)); got != tt.want {
				t.Errorf("closed_total{handshake} = %v, want %v", got, tt.want)
			}
		})
	}
}
