package gateway

import (
	"context"
	"time"

	"github.com/goshield/goshield/internal/bucket"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/configdb"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/transcode"
	"github.com/goshield/goshield/services/gateway/lease"
)

// settings are a dynamic document made ready for use. They are never changed:
// new ones replace them. What a device was told in its WELCOME (heartbeat, idle
// timeout, longest frame) holds for its session; everything else holds from the next frame on.
type settings struct {
	doc     dynamic.Document
	version int64 // 0: the defaults
	frames  bucket.Limit
	bytes   bucket.Limit

	services map[string]*serviceMetrics
	unknown  *serviceMetrics
	bodies   map[string]*transcode.Transcoder // of services whose bodies are converted
}

// newSettings takes the services' limits from leases, which may be nil: there are none then.
func newSettings(doc dynamic.Document, version int64, m *metrics, leases *lease.Leases) *settings {
	set := &settings{
		doc:      doc,
		version:  version,
		frames:   bucket.NewLimit(doc.DeviceLimit.Rate, doc.DeviceLimit.Burst),
		bytes:    bucket.NewLimit(doc.DeviceLimit.Bytes.Rate, doc.DeviceLimit.Bytes.Burst),
		services: make(map[string]*serviceMetrics, len(doc.Services)),
		bodies:   make(map[string]*transcode.Transcoder),
		unknown:  m.service(unknownService),
	}
	for name, cfg := range doc.Services {
		service := m.service(name)
		if body, err := transcode.New(cfg.Body); err == nil && body != nil { // Validate has seen that it can be made
			set.bodies[name], service.body = body, body
		}
		if leases != nil {
			service.limit = leases.Limit(name)
		}
		set.services[name] = service
	}
	return set
}

// rulesOf are the limits of services that have one.
func rulesOf(services map[string]dynamic.Service) map[string]lease.Rule {
	rules := map[string]lease.Rule{}
	for name, s := range services {
		if s.Limit.Rate > 0 {
			rules[name] = lease.Rule{Rate: s.Limit.Rate, Burst: s.Limit.Burst}
		}
	}
	return rules
}

// service is where requests of that name are counted.
func (s *settings) service(name string) *serviceMetrics {
	if m := s.services[name]; m != nil {
		return m
	}
	return s.unknown
}

// apply puts a document in force: for new sessions, for limits, and for routes. An error (a
// *config.Error) leaves the old one in force. Accepted connections stay as they
// are.
func (s *Server) apply(doc dynamic.Document, version int64) error {
	if err := doc.Validate(); err != nil {
		return err
	}
	if doc.Enrolment == dynamic.EnrolMTLS && s.cfg.TLS.ClientCA == "" {
		return config.Errorf("enrolment", "this gateway has no tls.client_ca to check certificates with")
	}
	if err := s.router.Apply(doc.Services); err != nil {
		return err
	}
	if s.leases != nil {
		s.leases.Apply(rulesOf(doc.Services))
	}
	s.settings.Store(newSettings(doc, version, s.metrics, s.leases))
	s.handshakes.setLimit(doc.GatewayLimit.MaxHandshakes)
	s.metrics.configVersion.Set(float64(version))
	return nil
}

// followed is the following of the document in Redis.
type followed struct {
	stop  context.CancelFunc
	ended chan struct{}
}

// end returns when no document will be put in force any more. The router must go on until then: it takes none once it
// is shut down.
func (f *followed) end() {
	if f != nil {
		f.stop()
		<-f.ended
	}
}

// firstDocument is how long Start waits for what Redis has, so as not to serve by the defaults first. Without Redis
// they are in force then.
const firstDocument = time.Second

// followDocument puts what Redis has in force, now and whenever it changes.
func (s *Server) followDocument() {
	if s.directory == nil {
		return // a test has no Redis
	}
	watcher := configdb.NewWatcher(configdb.WatchConfig{
		Redis: s.directory.Client, Defaults: s.cfg.Defaults, ShareDefaults: true,
		Apply: s.apply, Refused: s.metrics.configRefused.Inc, Log: s.log.Named("config"),
	})
	ctx, stop := context.WithCancel(s.ctx)
	s.followed = &followed{stop: stop, ended: make(chan struct{})}
	s.work.Go(func() { // ends with followed.end, or the gateway
		defer close(s.followed.ended)
		watcher.Run(ctx)
	})
	patience := time.NewTimer(firstDocument)
	defer patience.Stop()
	select {
	case <-watcher.Settled():
	case <-patience.C:
	case <-s.ctx.Done():
	}
}
