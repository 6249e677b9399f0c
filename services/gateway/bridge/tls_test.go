package bridge

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/goshield/goshield/internal/certs"
)

// service is one over TLS, whose certificate can be replaced. It has a name that is not its address.
type service struct {
	net.Listener
	cert atomic.Pointer[tls.Certificate]
	ca   atomic.Pointer[certs.CA] // that cert is of

	mu    sync.Mutex
	conns []net.Conn
}

func newService(t *testing.T) *service {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &service{Listener: ln}
	s.certify(t)
	return s
}

// certify gives it a certificate of a new CA, and ends its connections.
func (s *service) certify(t *testing.T) {
	t.Helper()
	ca, err := certs.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, key, err := ca.Issue(certs.Leaf{CommonName: "service", DNS: []string{"service"}, ValidFor: 30 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, key)
	if err != nil {
		t.Fatal(err)
	}
	s.ca.Store(ca)
	s.cert.Store(&cert)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		_ = conn.Close()
	}
	s.conns = nil
}

// Accept implements net.Listener.
func (s *service) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err == nil {
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		s.mu.Unlock()
	}
	return conn, err
}

func (s *service) serverTLS(protocol string) *tls.Config {
	return &tls.Config{
		NextProtos:     []string{protocol},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cert.Load(), nil },
	}
}

// Each connection of a bridge goes by the CA of that moment, and the service must have the name that Config.TLS says.
func TestConnectionsGoByTheCAOfTheMoment(t *testing.T) {
	for _, tt := range []struct {
		name, alpn string
		protocol   Protocol
		http2      bool
	}{{"HTTP 1.1", "http/1.1", HTTP, false}, {"HTTP 2", "h2", HTTP, true}, {"gRPC", "h2", GRPC, false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			if tt.protocol == GRPC {
				srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(s.serverTLS(tt.alpn))))
				go func() { _ = srv.Serve(s) }() // until Stop
				t.Cleanup(srv.Stop)
			} else {
				major := map[bool]int{false: 1, true: 2}[tt.http2]
				srv := &http.Server{
					TLSConfig: s.serverTLS(tt.alpn), ReadHeaderTimeout: time.Minute,
					Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						if r.ProtoMajor != major {
							t.Errorf("asked in HTTP/%d, want %d", r.ProtoMajor, major)
						}
					}),
				}
				go func() { _ = srv.ServeTLS(s, "", "") }() // until Close
				t.Cleanup(func() { _ = srv.Close() })
			}
			c, err := newCaller(Config{
				Protocol: tt.protocol, HTTP2: tt.http2, HealthPath: "/healthz", Address: s.Addr().String(), Node: "gw-1",
				Secret: func() string { return "secret" }, Log: zap.NewNop(),
				TLS: func() *tls.Config {
					return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.ca.Load().Pool(), ServerName: "service"}
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			for _, what := range []string{"the first CA", "the second"} {
				// A connection that just broke may be taken for a good one once more.
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				for err = c.probe(ctx); err != nil && ctx.Err() == nil; err = c.probe(ctx) {
					time.Sleep(10 * time.Millisecond)
				}
				cancel()
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				s.certify(t)
			}
		})
	}
}
