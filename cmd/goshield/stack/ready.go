package stack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"
)

const (
	connectLimit = 30 * time.Second // for a device to get through to a gateway
	linkLimit    = 3 * time.Second  // for the gateways to reach the echo backends
	readyPoll    = 10 * time.Millisecond
)

// awaitReady returns when a device can connect: balancer, a gateway and its
// certificate answer. It also gives the gateways a moment to reach the
// backends, so that the first request does not find them still dialling.
func (s *Stack) awaitReady() error {
	ca, err := os.ReadFile(s.paths.CA)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	ctx, cancel := context.WithTimeout(context.Background(), connectLimit)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	for {
		conn, err := dialer.DialContext(ctx, "tcp", s.Addr())
		if err == nil {
			_ = conn.Close()
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no device could connect within %v: %w", connectLimit, err)
		}
		time.Sleep(readyPoll)
	}
	for until := time.Now().Add(linkLimit); !s.linked() && time.Now().Before(until); {
		time.Sleep(readyPoll)
	}
	return nil
}

// linked reports whether every gateway has links to every backend.
func (s *Stack) linked() bool {
	families, err := s.reg.Gather()
	if err != nil {
		return false
	}
	for _, f := range families {
		if f.GetName() != "goshield_backend_up" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetGauge().GetValue() != 1 {
				return false
			}
		}
		return len(f.GetMetric()) > 0
	}
	return false
}
