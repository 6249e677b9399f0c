// Package certs is a small certificate authority for development and tests:
//
//	ca, err := certs.NewCA("my tests", time.Hour)
//	certPEM, keyPEM, err := ca.Issue(certs.Leaf{DNS: []string{"localhost"}, ValidFor: time.Hour})
//	pair, err := tls.X509KeyPair(certPEM, keyPEM)
//	server := &tls.Config{Certificates: []tls.Certificate{pair}}
//	device := &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}
//
// EnsureDir keeps one on disk. Keys are ECDSA P-256, in PKCS #8. It revokes nothing, and its
// key lies unencrypted beside the certificates: it is not for production.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"
)

// backdate lets a peer whose clock is behind accept a certificate at once.
const backdate = time.Hour

// CA signs certificates. It does not change after construction and is safe for concurrent use.
type CA struct {
	cert    *x509.Certificate
	key     crypto.Signer
	certPEM []byte
	keyPEM  []byte
}

// NewCA makes an authority whose subject is name and which is valid from an
// hour ago until validFor from now.
func NewCA(name string, validFor time.Duration) (*CA, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{ // without a serial number: one is drawn at random
		Subject:               pkix.Name{CommonName: name, Organization: []string{"GoShield development"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validFor),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // signs leaves, no other authority
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the authority's own certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key, certPEM: encodeCert(der), keyPEM: keyPEM}, nil
}

// LoadCA makes an authority of what PEM and KeyPEM gave. The key must be the certificate's.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM) // checks that they belong together
	if err != nil {
		return nil, err
	}
	if !pair.Leaf.IsCA {
		return nil, errors.New("the certificate is not an authority's")
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	return &CA{cert: pair.Leaf, key: key, certPEM: encodeCert(pair.Leaf.Raw), keyPEM: keyPEM}, nil
}

// PEM is the authority's certificate: what the other side trusts.
func (ca *CA) PEM() []byte { return ca.certPEM }

// KeyPEM is the authority's key. Whoever has it can be any server.
func (ca *CA) KeyPEM() []byte { return ca.keyPEM }

// NotAfter is when the authority ends.
func (ca *CA) NotAfter() time.Time { return ca.cert.NotAfter }

// Pool holds the authority's certificate alone: a tls.Config's RootCAs or
// ClientCAs.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// Leaf says what a certificate is for. Servers are checked against DNS and IPs,
// clients are known by CommonName or a URI.
type Leaf struct {
	CommonName string
	DNS        []string
	IPs        []net.IP
	URIs       []*url.URL
	ValidFor   time.Duration // at most as long as the authority; may be past, to test expiry
	Client     bool          // authenticates a client; otherwise a server
	Peer       bool          // authenticates both: a server that its like connect to
}

var peerUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}

// Issue makes a key and signs a certificate for it.
func (ca *CA) Issue(leaf Leaf) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	switch {
	case leaf.Peer:
		usages = peerUsages
	case leaf.Client:
		usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	now := time.Now()
	notBefore, notAfter := now.Add(-backdate), now.Add(leaf.ValidFor)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	if !notBefore.Before(notAfter) {
		notBefore = notAfter.Add(-backdate)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: leaf.CommonName},
		NotBefore:   notBefore,
		NotAfter:    notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usages,
		DNSNames:    leaf.DNS,
		IPAddresses: leaf.IPs,
		URIs:        leaf.URIs,

		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign a certificate for %q: %w", leaf.CommonName, err)
	}
	return encodeCert(der), keyPEM, nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
