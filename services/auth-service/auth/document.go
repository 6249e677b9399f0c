package auth

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/configdb"
	"github.com/goshield/goshield/internal/dynamic"
)

// firstDocument is how long Start waits for what Redis has, so as not to serve by the defaults first. Without Redis
// they are in force then.
const firstDocument = time.Second

// documentMetrics tell which document is in force.
type documentMetrics struct {
	version prometheus.Gauge
	refused prometheus.Counter
}

func newDocumentMetrics(reg prometheus.Registerer) documentMetrics {
	m := documentMetrics{
		version: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "goshield_auth_config_version",
			Help: "Version of the dynamic configuration in force; 0: the defaults.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "goshield_auth_config_refused_total",
			Help: "Dynamic documents in Redis that could not be put in force.",
		}),
	}
	reg.MustRegister(m.version, m.refused)
	return m
}

// followDocument puts what Redis has in force, now and whenever it changes, until the server ends.
func (s *Server) followDocument() {
	watcher := configdb.NewWatcher(configdb.WatchConfig{
		Redis:    func() (redis.UniversalClient, error) { return s.rdb, nil },
		Defaults: s.cfg.Defaults,
		Apply:    s.applyVersion, Refused: s.documents.refused.Inc, Log: s.log.Named("config"),
	})
	ctx, cancel := context.WithCancel(context.Background())
	s.following.Go(func() { <-s.stop; cancel() })
	s.following.Go(func() { watcher.Run(ctx) })
	patience := time.NewTimer(firstDocument)
	defer patience.Stop()
	select {
	case <-watcher.Settled():
	case <-patience.C:
	}
}

// applyVersion puts a document from Redis in force. It refuses none that is valid: where enrolment by key is asked for
// and there is no group key, going on by the rules before could let in whom the new ones keep out, so nobody is enrolled.
func (s *Server) applyVersion(doc dynamic.Document, version int64) error {
	s.Apply(doc)
	s.documents.version.Set(float64(version))
	return nil
}
