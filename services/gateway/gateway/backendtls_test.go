package gateway

import (
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/dynamic"
	sdkbackend "github.com/goshield/goshield/sdk/backend"
)

// secured is a backend that asks gateways for a certificate.
type secured struct {
	net.Listener
	w    *world
	cert atomic.Pointer[tls.Certificate]

	mu    sync.Mutex
	links []net.Conn
}

// Accept implements net.Listener.
func (b *secured) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err == nil {
		b.mu.Lock()
		b.links = append(b.links, conn)
		b.mu.Unlock()
	}
	return conn, err
}

// breakLinks ends all that are open.
func (b *secured) breakLinks() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, conn := range b.links {
		_ = conn.Close()
	}
	b.links = nil
}

// certify gives it a certificate of that CA, from the next link on.
func (b *secured) certify(ca *certs.CA) {
	b.w.t.Helper()
	certPEM, key, err := ca.Issue(certs.Leaf{CommonName: "backend", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, ValidFor: 30 * time.Minute})
	if err != nil {
		b.w.t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, key)
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.cert.Store(&cert)
}

// secureBackend makes the world's backend one that asks gateways for a certificate.
func (w *world) secureBackend() *secured {
	w.t.Helper()
	b := &secured{Listener: listenAt(w.t, "127.0.0.1:0"), w: w}
	b.certify(w.ca)
	srv := &sdkbackend.Server{
		Secrets: []string{testSecret}, Handler: w.handle, Log: slog.New(slog.DiscardHandler),
		TLS: &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return b.cert.Load(), nil },
			ClientAuth:     tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Pool(),
		},
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(b) }()
	w.t.Cleanup(func() { srv.Close(); <-served })
	w.doc.Services = map[string]dynamic.Service{"echo": {Endpoints: []string{b.Addr().String()}}}
	w.write("ca.pem", w.ca.PEM())
	shown, key, err := w.ca.Issue(certs.Leaf{CommonName: "gw-1", Client: true, ValidFor: 30 * time.Minute})
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("client.pem", shown)
	w.write("client-key.pem", key)
	return b
}

// Links over mutual TLS, as the configuration says.
func TestLinksOverMutualTLS(t *testing.T) {
	w := newWorld(t, testDoc())
	w.secureBackend()
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) {
		cfg.Backend.TLS = BackendTLS{Enabled: true, CA: w.path("ca.pem"), Cert: w.path("client.pem"), Key: w.path("client-key.pem")}
	})
	w.settled(s)
	w.enrolled(s, clientID(1)).roundTrip(1)
}

func TestBackendTLSIsChecked(t *testing.T) {
	w := newWorld(t, testDoc())
	w.write("empty.pem", nil)
	for _, tt := range []struct {
		tls  BackendTLS
		want string
	}{
		{BackendTLS{Enabled: true, CA: w.path("none")}, "backend.tls.ca: "},
		{BackendTLS{Enabled: true, CA: w.path("empty.pem")}, "backend.tls.ca: "},
		{BackendTLS{Enabled: true, Cert: w.path("cert.pem")}, "backend.tls.cert: "},
		{BackendTLS{Enabled: true, Cert: w.path("cert.pem"), Key: w.path("empty.pem")}, "backend.tls.cert: "},
		{BackendTLS{CA: w.path("ca.pem")}, "backend.tls.enabled: "},
	} {
		_, err := w.tryGateway("gw-1", func(cfg *Config, _ *timings) { cfg.Backend.TLS = tt.tls })
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: error = %v, want one of %s", tt.tls, err, tt.want)
		}
	}
}
