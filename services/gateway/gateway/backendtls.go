package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"os"

	"github.com/goshield/goshield/internal/config"
)

// open is the TLS of links; nil: they are plain TCP. Errors name the configuration's key.
func (c BackendTLS) open() (*tls.Config, error) {
	if !c.Enabled {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: c.ServerName}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, &config.Error{Key: "backend.tls.ca", Err: err}
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, config.Errorf("backend.tls.ca", "%s holds no certificate", c.CA)
		}
	}
	if c.Cert == "" {
		return t, nil
	}
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		return &pair, err
	}
	if _, err := load(nil); err != nil {
		return nil, &config.Error{Key: "backend.tls.cert", Err: err}
	}
	t.GetClientCertificate = load // links are few, and the next one is to show the certificate that is there then
	return t, nil
}
