package backend_test

// The link over mutual TLS.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
)

// selfSigned is a certificate for 127.0.0.1 and the pool that trusts it.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "test"},
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestMutualTLS(t *testing.T) {
	cert, pool := selfSigned(t)
	srv := &backend.Server{
		Handler:   echo,
		Authorize: func(string) bool { return true }, // the certificate decides
		TLS:       &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool},
	}
	addr := start(t, srv)
	open := func(cfg *tls.Config) (*link.Conn, error) {
		nc, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			return nil, err
		}
		return link.Open(context.Background(), nc, link.Config{Node: "gw"})
	}
	if conn, err := open(&tls.Config{RootCAs: pool}); err == nil {
		conn.Close()
		t.Error("a gateway without certificate was taken")
	}
	conn, err := open(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	if err := conn.Request(2, &link.Request{Service: "echo", Body: []byte("over TLS")}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Serve(func(f link.Frame) error { got = string(f.Payload); conn.Finish(); return nil }); err != link.ErrClosed || got != "over TLS" {
		t.Errorf("got %q and %v, want the echo and ErrClosed", got, err)
	}
}
