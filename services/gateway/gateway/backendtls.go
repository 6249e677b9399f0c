package gateway

import (
	"crypto/tls"

	"github.com/goshield/goshield/internal/config"
)

// openBackendTLS is the TLS of connections to backends (backend.Config.TLS); nil: they are plain TCP. Errors name the
// configuration's key.
func (s *Server) openBackendTLS() (func() *tls.Config, error) {
	c := s.cfg.Backend.TLS
	if !c.Enabled {
		return nil, nil
	}
	base := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.Cert != "" {
		load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
			return &pair, err
		}
		if _, err := load(nil); err != nil {
			return nil, &config.Error{Key: "backend.tls.cert", Err: err}
		}
		base.GetClientCertificate = load // links are few, and the next one is to show the certificate that is there then
	}
	if c.CA == "" {
		return base.Clone, nil
	}
	ca, err := openAuthorities("backend.tls.ca", c.CA, s.authoritiesRead(dependencyBackendCA))
	if err != nil {
		return nil, err
	}
	return func() *tls.Config {
		t := base.Clone()
		t.RootCAs = ca.get()
		return t
	}, nil
}
