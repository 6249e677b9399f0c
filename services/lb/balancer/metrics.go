package balancer

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/goshield/goshield/services/lb/relay"
)

// metrics are the balancer's series; the names are in docs/ARCHITECTURE.md.
type metrics struct {
	connections *prometheus.GaugeVec
	total       *prometheus.CounterVec
	up          *prometheus.GaugeVec
	ejected     *prometheus.GaugeVec
	rejected    map[refusal]prometheus.Counter
	closed      map[relay.Reason]prometheus.Counter
	connect     prometheus.Histogram
	moved       prometheus.Counter
	ipAllowed   prometheus.Counter
	ipRejected  prometheus.Counter
	vip         vipCollector

	mu    sync.Mutex
	lines map[seriesKey]*series
}

// series are those of one listener and one upstream. Several routes may use them, one after the
// other; the last one to let go deletes them.
type series struct {
	connections prometheus.Gauge
	total       prometheus.Counter
	ejected     prometheus.Gauge
	users       int // guarded by metrics.mu
}

type seriesKey struct{ listener, upstream string }

// newMetrics registers everything with reg; stats are read at each scrape.
func newMetrics(reg prometheus.Registerer, stats func() relay.Stats) *metrics {
	m := &metrics{
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "goshield_lb_connections", Help: "Connections that are relayed now.",
		}, []string{"listener", "upstream"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "goshield_lb_connections_total", Help: "Connections that were relayed.",
		}, []string{"listener", "upstream"}),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "goshield_lb_upstream_up", Help: "1 while health checks of the upstream succeed.",
		}, []string{"upstream"}),
		ejected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "goshield_lb_upstream_ejected", Help: "1 while the upstream gets no connections of the listener because too many in a row failed.",
		}, []string{"listener", "upstream"}),
		rejected: map[refusal]prometheus.Counter{},
		closed:   map[relay.Reason]prometheus.Counter{},
		moved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "goshield_lb_rebalance_moved_total", Help: "Devices that gateways were made to ask to reconnect, so that connections even out.",
		}),
		lines: map[seriesKey]*series{},
		connect: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "goshield_lb_connect_duration_seconds",
			Help:    "Time to connect to an upstream.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
	}
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "goshield_lb_rejected_total", Help: "Connections that were refused.",
	}, []string{"reason"})
	for _, r := range refusals {
		m.rejected[r] = rejected.WithLabelValues(string(r))
	}
	closed := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "goshield_lb_closed_total", Help: "Connections that ended, by what ended them.",
	}, []string{"reason"})
	for r := relay.Finished; r <= relay.Cut; r++ {
		m.closed[r] = closed.WithLabelValues(r.String())
	}
	decisions := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "goshield_ratelimit_decisions_total", Help: "What limits decided, by scope and result.",
	}, []string{"scope", "result"})
	m.ipAllowed, m.ipRejected = decisions.WithLabelValues("ip", "allow"), decisions.WithLabelValues("ip", "reject")
	counter := func(name, help string, labels prometheus.Labels, value func(relay.Stats) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(value(stats())) })
	}
	const bytesHelp = "Bytes relayed, without PROXY headers."
	reg.MustRegister(m.connections, m.total, m.up, m.ejected, rejected, closed, m.connect, m.moved, decisions, &m.vip,
		counter("goshield_lb_bytes_total", bytesHelp, prometheus.Labels{"direction": "to_upstream"},
			func(s relay.Stats) uint64 { return s.ToUpstream }),
		counter("goshield_lb_bytes_total", bytesHelp, prometheus.Labels{"direction": "to_client"},
			func(s relay.Stats) uint64 { return s.ToClient }),
		counter("goshield_lb_accept_errors_total", "Failures to accept a connection; each is followed by a pause.", nil,
			func(s relay.Stats) uint64 { return s.AcceptErrors }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "goshield_lb_backlog_bytes", Help: "Memory taken by what waits for clients and upstreams that are slow to read.",
		}, func() float64 { return float64(stats().Held) }),
	)
	return m
}

// perIP hears of the per-address rate's decisions.
func (m *metrics) perIP(allowed bool) {
	if allowed {
		m.ipAllowed.Inc()
	} else {
		m.ipRejected.Inc()
	}
}

// series returns those of a listener and an upstream; release must follow.
func (m *metrics) series(listener, upstream string) *series {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := seriesKey{listener, upstream}
	s := m.lines[key]
	if s == nil {
		s = &series{
			connections: m.connections.WithLabelValues(listener, upstream),
			total:       m.total.WithLabelValues(listener, upstream),
			ejected:     m.ejected.WithLabelValues(listener, upstream),
		}
		m.lines[key] = s
	}
	s.users++
	return s
}

func (m *metrics) release(listener, upstream string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := seriesKey{listener, upstream}
	s := m.lines[key]
	if s.users--; s.users > 0 {
		return
	}
	delete(m.lines, key)
	m.connections.DeleteLabelValues(listener, upstream)
	m.total.DeleteLabelValues(listener, upstream)
	m.ejected.DeleteLabelValues(listener, upstream)
}
