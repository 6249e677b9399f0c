package gateway

import (
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/dynamic"
	sdkbackend "github.com/goshield/goshield/sdk/backend"
)

// secureBackend makes the world's backend one that asks gateways for a certificate.
func (w *world) secureBackend() {
	w.t.Helper()
	cert, err := tls.LoadX509KeyPair(w.path("cert.pem"), w.path("key.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	srv := &sdkbackend.Server{
		Secrets: []string{testSecret}, Handler: w.handle, Log: slog.New(slog.DiscardHandler),
		TLS: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Pool()},
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(ln) }()
	w.t.Cleanup(func() { srv.Close(); <-served })
	w.doc.Services = map[string]dynamic.Service{"echo": {Endpoints: []string{ln.Addr().String()}}}
	w.write("ca.pem", w.ca.PEM())
	shown, key, err := w.ca.Issue(certs.Leaf{CommonName: "gw-1", Client: true, ValidFor: 30 * time.Minute})
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("client.pem", shown)
	w.write("client-key.pem", key)
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
