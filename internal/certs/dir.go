package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	caValidFor     = 5 * 365 * 24 * time.Hour
	serverValidFor = 90 * 24 * time.Hour
	// A certificate with less than this left is made anew.
	renewBefore = 30 * 24 * time.Hour
)

// defaultHosts are the names and addresses that EnsureDir's server certificate
// always stands for.
var defaultHosts = []string{"localhost", "127.0.0.1", "::1"}

// Paths are the files that EnsureDir keeps, and what it did.
type Paths struct {
	CA        string // ca.pem: what devices trust
	CAKey     string // ca-key.pem
	Server    string // server.pem
	ServerKey string // server-key.pem

	Hosts    []string  // what server.pem stands for: names, then addresses
	NotAfter time.Time // of server.pem
	// NewCA: the authority was made now, whoever trusted another does not trust this one.
	// NewServer: server.pem was made now.
	NewCA, NewServer bool
}

// EnsureDir makes sure that dir holds a development authority and a server
// certificate of it for localhost, 127.0.0.1, ::1 and the hosts given (names
// or addresses), making only what is missing, near its end, or short of a host. A certificate that
// is made anew keeps the hosts of the one it replaces. Key files are
// readable by their owner only. It refuses to overwrite an authority that it cannot read.
func EnsureDir(dir string, hosts ...string) (Paths, error) { return ensureDir(dir, false, hosts) }

// EnsurePeerDir is EnsureDir for servers that also show their certificate as clients, to each other: the nodes of
// Redis Cluster do.
func EnsurePeerDir(dir string, hosts ...string) (Paths, error) { return ensureDir(dir, true, hosts) }

func ensureDir(dir string, peer bool, hosts []string) (Paths, error) {
	p := Paths{
		CA:        filepath.Join(dir, "ca.pem"),
		CAKey:     filepath.Join(dir, "ca-key.pem"),
		Server:    filepath.Join(dir, "server.pem"),
		ServerKey: filepath.Join(dir, "server-key.pem"),
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others may read the certificates
		return p, err
	}
	ca, err := p.ensureCA()
	if err != nil {
		return p, err
	}
	old, err := tls.LoadX509KeyPair(p.Server, p.ServerKey)
	if err == nil && serves(old.Leaf, ca, peer, slices.Concat(defaultHosts, hosts)) {
		p.Hosts, p.NotAfter = hostsOf(old.Leaf), old.Leaf.NotAfter
		return p, nil
	}
	// Whatever is wrong with it, it is made anew.
	hosts = slices.Concat(defaultHosts, hosts)
	if err == nil {
		hosts = append(hosts, hostsOf(old.Leaf)...)
	}
	return p, p.issueServer(ca, peer, hosts)
}

func (p *Paths) ensureCA() (*CA, error) {
	certPEM, certErr := os.ReadFile(p.CA)
	keyPEM, keyErr := os.ReadFile(p.CAKey)
	noCert, noKey := errors.Is(certErr, fs.ErrNotExist), errors.Is(keyErr, fs.ErrNotExist)
	switch {
	case noCert && noKey:
	case noKey:
		return nil, fmt.Errorf("%s is there, its key %s is not: remove the first or bring back the second", p.CA, p.CAKey)
	case noCert:
		return nil, fmt.Errorf("%s is there, its certificate %s is not: remove the first or bring back the second", p.CAKey, p.CA)
	case certErr != nil || keyErr != nil:
		return nil, errors.Join(certErr, keyErr)
	default:
		ca, err := LoadCA(certPEM, keyPEM)
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", p.CA, p.CAKey, err)
		}
		if time.Until(ca.NotAfter()) > renewBefore {
			return ca, nil
		}
	}
	ca, err := NewCA("GoShield development CA", caValidFor)
	if err != nil {
		return nil, err
	}
	p.NewCA = true
	return ca, writePair(p.CA, ca.PEM(), p.CAKey, ca.KeyPEM())
}

// serves reports whether cert stands for hosts, under ca, for some time to come.
func serves(cert *x509.Certificate, ca *CA, peer bool, hosts []string) bool {
	for _, host := range hosts {
		if cert.VerifyHostname(host) != nil {
			return false
		}
	}
	if peer && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return false
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool()})
	return err == nil && time.Until(cert.NotAfter) > renewBefore
}

func hostsOf(cert *x509.Certificate) []string {
	hosts := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

func (p *Paths) issueServer(ca *CA, peer bool, hosts []string) error {
	leaf := Leaf{CommonName: hosts[0], ValidFor: serverValidFor, Peer: peer}
	for _, host := range hosts {
		ip := net.ParseIP(host)
		switch {
		case ip == nil && !slices.Contains(leaf.DNS, host):
			leaf.DNS = append(leaf.DNS, host)
		case ip != nil && !slices.ContainsFunc(leaf.IPs, ip.Equal):
			leaf.IPs = append(leaf.IPs, ip)
		}
	}
	certPEM, keyPEM, err := ca.Issue(leaf)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return err
	}
	p.NewServer, p.NotAfter, p.Hosts = true, pair.Leaf.NotAfter, hostsOf(pair.Leaf)
	return writePair(p.Server, certPEM, p.ServerKey, keyPEM)
}

// writePair replaces both files, each at once: a reader sees the old or the new
// one, never half of it. Between the two a reader can see a pair that does not fit, and has to
// keep what it had.
func writePair(certPath string, certPEM []byte, keyPath string, keyPEM []byte) error {
	if err := replaceFile(keyPath, keyPEM, 0o600); err != nil {
		return err
	}
	return replaceFile(certPath, certPEM, 0o644)
}

func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.ReadFrom(bytes.NewReader(data))
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
