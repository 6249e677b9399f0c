package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
)

// certificateCheck is how often, at most, the certificate's files are looked at.
const certificateCheck = time.Second

// certificate serves a certificate and reads it again when its files change. Files that do not fit
// together, as while they are being replaced, leave the old one in force.
type certificate struct {
	certFile, keyFile string
	clientCA          *x509.CertPool // nil: devices are asked for no certificate
	log               *zap.Logger

	mu       sync.Mutex
	current  *tls.Certificate
	checked  time.Time
	modified [2]time.Time // of the files that current, or the last failure, came from
}

func openCertificate(cfg TLS, log *zap.Logger) (*certificate, error) {
	c := &certificate{certFile: cfg.Cert, keyFile: cfg.Key, log: log}
	modified, err := c.modTimes()
	if err != nil {
		return nil, &config.Error{Key: "tls", Err: err}
	}
	pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, &config.Error{Key: "tls.cert", Err: err}
	}
	c.current, c.modified, c.checked = &pair, modified, time.Now()
	if cfg.ClientCA != "" {
		pem, err := os.ReadFile(cfg.ClientCA)
		if err != nil {
			return nil, &config.Error{Key: "tls.client_ca", Err: err}
		}
		c.clientCA = x509.NewCertPool()
		if !c.clientCA.AppendCertsFromPEM(pem) {
			return nil, config.Errorf("tls.client_ca", "%s holds no certificate", cfg.ClientCA)
		}
	}
	return c, nil
}

func (c *certificate) modTimes() (times [2]time.Time, err error) {
	for i, f := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(f)
		if err != nil {
			return times, err
		}
		times[i] = info.ModTime()
	}
	return times, nil
}

// get is the certificate to use now.
func (c *certificate) get() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) < certificateCheck {
		return c.current
	}
	c.checked = time.Now()
	modified, err := c.modTimes()
	if err != nil || modified == c.modified {
		return c.current
	}
	c.modified = modified
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
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

// serverConfig is the TLS of devices. protocols are for ALPN; nil: none.
func (c *certificate) serverConfig(protocols []string) *tls.Config {
	ask := tls.NoClientCert
	if c.clientCA != nil {
		ask = tls.VerifyClientCertIfGiven // whoever resumes needs none
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		ClientAuth:     ask,
		ClientCAs:      c.clientCA,
		NextProtos:     protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(), nil },
		// Frames are small and leave in one batch: records that grow step by step would only cut it.
		DynamicRecordSizingDisabled: true,
	}
}
