package gateway

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/sdk/wire"
)

// proxyHeader is a PROXY v2 header of that source.
func proxyHeader(t *testing.T, command proxyproto.ProtocolVersionAndCommand, source string) []byte {
	t.Helper()
	h := &proxyproto.Header{
		Version: 2, Command: command, TransportProtocol: proxyproto.TCPv4,
		SourceAddr:      &net.TCPAddr{IP: net.ParseIP(source), Port: 1234},
		DestinationAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8443},
	}
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dialRaw(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestProxyHeaderTellsTheDevicesAddress(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.TrustedProxies = []string{"10.0.0.0/8", "127.0.0.1"} })
	conn := dialRaw(t, s.Addr())
	if _, err := conn.Write(proxyHeader(t, proxyproto.PROXY, "203.0.113.9")); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, tls.Client(conn, w.clientTLS()))
	d.hello(clientID(1), wire.Token{})
	w.auth.set(func() {
		if w.auth.lastIP != "203.0.113.9" {
			t.Errorf("auth-service was told %q, want 203.0.113.9", w.auth.lastIP)
		}
	})
	if got := s.table.find(clientID(1)).sock.peer.String(); got != "127.0.0.1" {
		t.Errorf("peer = %s, want 127.0.0.1: the load balancer", got)
	}
}

// A header that arrives byte by byte, glued to the ClientHello or not, is one header.
func TestProxyHeaderInPieces(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.TrustedProxies = []string{"127.0.0.0/8"} })
	conn := dialRaw(t, s.Addr())
	for _, b := range proxyHeader(t, proxyproto.PROXY, "203.0.113.9") {
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	newDevice(t, tls.Client(conn, w.clientTLS())).hello(clientID(1), wire.Token{})
}

// RELIABILITY row 13.
func TestProxyRefusals(t *testing.T) {
	v1 := []byte("PROXY TCP4 203.0.113.9 127.0.0.1 1234 8443\r\n")
	good := proxyHeader(t, proxyproto.PROXY, "203.0.113.9")
	long := append([]byte(nil), good...)
	long[14], long[15] = 0xff, 0xff
	unix := append([]byte(nil), good...)
	unix[13] = 0x31
	for _, tt := range []struct {
		name    string
		trusted string
		send    []byte
		finish  bool // close the sending side after it
		counted bool
	}{
		{"no header, TLS at once", "127.0.0.0/8", recordClientHello(t), false, true},
		{"version 1", "127.0.0.0/8", v1, false, true},
		{"cut", "127.0.0.0/8", good[:20], true, true},
		{"cut within the signature", "127.0.0.0/8", good[:5], true, true},
		{"too long", "127.0.0.0/8", long, false, true},
		{"no TCP address", "127.0.0.0/8", unix, true, true},
		{"from an untrusted address", "10.0.0.0/8", good, false, true},
		{"never comes", "127.0.0.0/8", nil, false, true},
		{"LOCAL: a health check", "127.0.0.0/8", proxyHeader(t, proxyproto.LOCAL, "127.0.0.1"), false, false},
		{"nothing, then the end: a health check", "127.0.0.0/8", nil, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, testDoc())
			s := w.gateway("gw-1", func(cfg *Config, times *timings) {
				cfg.TrustedProxies = []string{tt.trusted}
				if len(tt.send) == 0 && !tt.finish {
					times.proxyHeader = time.Second
				}
			})
			for _, addr := range []string{s.Addr(), s.WebSocketAddr()} {
				conn := dialRaw(t, addr)
				_, _ = conn.Write(tt.send) // an untrusted one may be closed before
				if tt.finish {
					_ = conn.(*net.TCPConn).CloseWrite()
				}
				_ = conn.SetReadDeadline(time.Now().Add(patience))
				if got, err := io.ReadAll(conn); len(got) > 0 || isTimeout(err) {
					t.Errorf("got %q, %v, want to be closed without a word", got, err)
				}
			}
			want := 0.0
			if tt.counted {
				want = 2
			}
			eventually(t, "the refusal is counted, or not", func() bool {
				return testutil.ToFloat64(s.metrics.handshakes.WithLabelValues(handshakeProxy)) == want && testutil.ToFloat64(s.metrics.handshaking) == 0
			})
		})
	}
}
