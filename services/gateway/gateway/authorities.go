package gateway

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
)

// authorities are the certificates of a PEM file by which those of others are checked. The file is read again when it
// changes; one that cannot be used leaves the old certificates in force. It is safe for concurrent use.
type authorities struct {
	told func(error) // of each file that is new, with mu held: nil, or why it cannot be used

	mu   sync.Mutex
	pool *x509.CertPool // never changes; another file is another pool
	file followedFiles
}

// openAuthorities reads the file that the configuration's key names.
func openAuthorities(key, path string, told func(error)) (*authorities, error) {
	a := &authorities{told: told, file: followedFiles{paths: []string{path}}}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.load(); err != nil {
		return nil, &config.Error{Key: key, Err: err}
	}
	return a, nil
}

// get is the certificates to use now. While the file stays the same they are the same pool.
func (a *authorities) get() *x509.CertPool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if changed, err := a.load(); changed {
		a.told(err)
	}
	return a.pool
}

// load reads the file if it has changed. mu is held.
func (a *authorities) load() (changed bool, err error) {
	contents, err := a.file.changed()
	if contents == nil {
		return err != nil, err
	}
	pool, err := parseAuthorities(contents[0])
	if err != nil {
		return true, fmt.Errorf("%s %w", a.file.paths[0], err)
	}
	a.pool = pool
	return true, nil
}

// parseAuthorities takes a file's text. Unlike x509.CertPool.AppendCertsFromPEM it passes over no certificate: half a file must
// not be taken for one that leaves somebody out.
func parseAuthorities(text []byte) (*x509.CertPool, error) {
	const kind = "CERTIFICATE"
	pool, n := x509.NewCertPool(), 0
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != kind {
			continue
		}
		n++
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("holds a certificate, the %d. one, that cannot be read: %w", n, err)
		}
		pool.AddCert(cert)
	}
	switch begun := bytes.Count(text, []byte("-----BEGIN "+kind+"-----")); {
	case begun != n:
		return nil, fmt.Errorf("holds a certificate that is not whole: %d of %d can be read", n, begun)
	case n == 0:
		return nil, errors.New("holds no certificate")
	}
	return pool, nil
}

// authoritiesRead says what becomes of a CA's file that was replaced: the dependency of that name is degraded while it
// cannot be used.
func (s *Server) authoritiesRead(dependency string) func(error) {
	s.health.SetDegraded(dependency, "")
	return func(err error) {
		if err == nil {
			s.health.SetDegraded(dependency, "")
			s.log.Info("the certificates of a CA were read again", zap.String("of", dependency))
			return
		}
		if s.health.SetDegraded(dependency, "the new file cannot be used, the old certificates stay") {
			s.log.Warn("the new certificates of a CA cannot be used; the old ones stay", zap.String("of", dependency), zap.Error(err))
		}
	}
}
