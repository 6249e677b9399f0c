package gateway

import (
	"crypto/tls"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
)

// certificate serves a certificate and reads it again when its files change. Files that do not fit
// together, as while they are being replaced, leave the old one in force.
type certificate struct {
	log *zap.Logger

	mu      sync.Mutex
	current *tls.Certificate
	files   followedFiles // the certificate's and the key's
}

func openCertificate(cfg TLS, log *zap.Logger) (*certificate, error) {
	c := &certificate{log: log, files: followedFiles{paths: []string{cfg.Cert, cfg.Key}}}
	contents, err := c.files.changed()
	if err != nil {
		return nil, &config.Error{Key: "tls", Err: err}
	}
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, &config.Error{Key: "tls.cert", Err: err}
	}
	c.current = &pair
	return c, nil
}

// get is the certificate to use now.
func (c *certificate) get() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	contents, err := c.files.changed()
	if contents == nil && err == nil {
		return c.current
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.X509KeyPair(contents[0], contents[1])
	}
	if err != nil {
		c.log.Warn("the new certificate cannot be used; the old one stays", zap.Error(err))
		return c.current
	}
	c.current = &pair
	c.log.Info("the certificate was replaced", zap.Time("not_after", pair.Leaf.NotAfter))
	return c.current
}

// register exports how long the certificate is good for.
func (c *certificate) register(reg prometheus.Registerer) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "goshield_tls_certificate_expiry_seconds",
		Help: "Seconds until the certificate shown to devices expires.",
	}, func() float64 { return time.Until(c.get().Leaf.NotAfter).Seconds() }))
}

// serverConfig is the TLS of devices. clientCA checks their certificates; nil: they are asked for none. protocols are for ALPN; nil:
// none.
func (c *certificate) serverConfig(clientCA *authorities, protocols []string) *tls.Config {
	cfg := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(), nil },
		// Frames are small and leave in one batch: records that grow step by step would only cut it.
		DynamicRecordSizingDisabled: true,
	}
	if clientCA != nil {
		cfg.ClientAuth = tls.VerifyClientCertIfGiven // whoever resumes needs none
		t := &trusting{clientCA: clientCA, base: cfg.Clone()}
		cfg.GetConfigForClient = t.config
	}
	return cfg
}

// trusting makes a listener's configuration anew when the file of clientCA changes. crypto/tls holds what a ticket says of a
// device's certificate against ClientCAs, too: nobody resumes with one of an authority that is gone. The keys of tickets are
// the listener's own all the while: crypto/tls takes them from there because base, and so what is made of it, has none.
type trusting struct {
	clientCA *authorities
	base     *tls.Config // never changes; without ClientCAs

	mu      sync.Mutex
	current *tls.Config // nil: none was needed yet
}

// config is what handshakes go by from now on (tls.Config.GetConfigForClient).
func (t *trusting) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pool := t.clientCA.get(); t.current == nil || t.current.ClientCAs != pool {
		t.current = t.base.Clone()
		t.current.ClientCAs = pool
	}
	return t.current, nil
}
