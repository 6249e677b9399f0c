package backend

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the package's series. Gauges are read from the links when they
// are asked for, so that a request pays nothing for them.
type metrics struct {
	registry prometheus.Registerer
	router   *Router

	links    *prometheus.Desc
	inFlight *prometheus.Desc
	up       *prometheus.Desc

	dropped         *prometheus.CounterVec
	ejections       *prometheus.CounterVec
	refusals        *prometheus.CounterVec
	retries         *prometheus.CounterVec
	resolveFailures *prometheus.CounterVec
}

// Why an endpoint had no room.
const (
	refusedInFlight = "in_flight"
	refusedQueue    = "queue"
)

func newMetrics(reg prometheus.Registerer, r *Router) *metrics {
	labels := []string{"service", "endpoint"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry: reg,
		router:   r,
		links:    prometheus.NewDesc("goshield_backend_links", "Links that take requests. Services at the same endpoint share them.", labels, nil),
		inFlight: prometheus.NewDesc("goshield_backend_inflight", "Requests sent and not answered.", labels, nil),
		up:       prometheus.NewDesc("goshield_backend_up", "1 while requests may be sent to the endpoint.", labels, nil),

		dropped: counter("goshield_backend_dropped_answers_total",
			"Answers that were for no request in flight: late (it had timed out or was cancelled), or unknown (a wrong stream id).", "endpoint", "reason"),
		ejections: counter("goshield_backend_ejections_total", "Times an endpoint was taken out after failures in a row.", labels...),
		refusals: counter("goshield_backend_refusals_total",
			"Requests that an endpoint had no room for (in_flight: as many as it takes; queue: as many bytes wait for it), each time one was tried.",
			append(labels[:2:2], "reason")...),
		retries: counter("goshield_backend_retries_total",
			"Requests of idempotent services that were lost: sent again, or not (over_budget, no_endpoint).", "service", "result"),
		resolveFailures: counter("goshield_backend_resolve_failures_total", "Look-ups of a service's name that failed.", "service"),
	}
	for _, c := range m.collectors() {
		reg.MustRegister(c)
	}
	return m
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m, m.dropped, m.ejections, m.refusals, m.retries, m.resolveFailures}
}

// unregister takes the series out, so that a router of the same name can
// follow this one.
func (m *metrics) unregister() {
	for _, c := range m.collectors() {
		m.registry.Unregister(c)
	}
}

// Counters begin at 0 when what they count faults of comes, so that the first fault is a step and no
// new series, which rate() does not see.

func (m *metrics) addService(name string) {
	m.resolveFailures.WithLabelValues(name)
	for _, result := range []string{"sent", "over_budget", "no_endpoint"} {
		m.retries.WithLabelValues(name, result)
	}
}

func (m *metrics) addEndpoint(e *endpoint) {
	m.ejections.WithLabelValues(e.service.name, e.address())
	for _, reason := range []string{refusedInFlight, refusedQueue} {
		m.refusals.WithLabelValues(e.service.name, e.address(), reason)
	}
}

func (m *metrics) addAddress(address string) {
	for _, reason := range []string{"late", "unknown"} {
		m.dropped.WithLabelValues(address, reason)
	}
}

// forget drops the counters of an endpoint that is gone: addresses come and go.
func (m *metrics) forget(e *endpoint) {
	m.ejections.DeleteLabelValues(e.service.name, e.address())
	m.refusals.DeletePartialMatch(prometheus.Labels{"service": e.service.name, "endpoint": e.address()})
}

// forgetAddress drops those of links that are gone.
func (m *metrics) forgetAddress(address string) {
	m.dropped.DeletePartialMatch(prometheus.Labels{"endpoint": address})
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.links
	ch <- m.inFlight
	ch <- m.up
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for name, s := range *m.router.table.Load() {
		for address, n := range s.status() {
			ch <- prometheus.MustNewConstMetric(m.links, prometheus.GaugeValue, float64(n.links), name, address)
			ch <- prometheus.MustNewConstMetric(m.inFlight, prometheus.GaugeValue, float64(n.inFlight), name, address)
			ch <- prometheus.MustNewConstMetric(m.up, prometheus.GaugeValue, float64(n.up), name, address)
		}
	}
}

// status is what the gauges show of one address.
type status struct {
	links, up int
	inFlight  int64
}

// status is that of each address: one that left and came back while it drained is
// twice among the endpoints.
func (s *service) status() map[string]status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]status, len(s.endpoints))
	for _, e := range s.endpoints {
		n := all[e.address()]
		if !e.ended {
			n.links += len(*e.pool.live.Load())
		}
		n.inFlight += e.target.InFlight()
		if e.up.Load() {
			n.up = 1
		}
		all[e.address()] = n
	}
	return all
}
