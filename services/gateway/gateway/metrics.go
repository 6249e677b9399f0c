package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/goshield/goshield/internal/transcode"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/lease"
)

// Reasons for closing a connection that are no code of the protocol. Codes
// are reasons, too.
const (
	closedBye          = "bye"           // the device said good-bye
	closedEOF          = "eof"           // it closed without
	closedReset        = "reset"         // its connection broke
	closedHandshake    = "handshake"     // no session came of it: TLS, PROXY header, HTTP upgrade
	closedFrameTimeout = "frame_timeout" // a frame that did not become complete
	closedWriteStalled = "write_stalled" // it does not read
	closedDrained      = "drained"       // sent away by a GOAWAY
	closedShutdown     = "shutdown"      // still there when the gateway ended
)

// Results of a handshake.
const (
	handshakeOK         = "ok"
	handshakeFailed     = "failed"     // TLS did not come about
	handshakeTimeout    = "timeout"    // not in time
	handshakeProxy      = "proxy"      // PROXY header missing, broken or from nobody trusted
	handshakeOverloaded = "overloaded" // over a cap
)

// unknownService is the label of every service that has no route: names that devices make up
// must not become series.
const unknownService = "unknown"

const codeOK = "ok"

// metrics are what a gateway counts. Children that the request path needs are
// resolved once.
type metrics struct {
	active, parked, handshaking prometheus.Gauge
	framesIn, framesOut         [wire.TypeBye + 1]prometheus.Counter
	closed                      *prometheus.CounterVec
	handshakes                  *prometheus.CounterVec
	requests                    *prometheus.CounterVec
	duration                    *prometheus.HistogramVec
	pushes                      *prometheus.CounterVec
	configVersion               prometheus.Gauge
	configRefused               prometheus.Counter
	deviceAllowed               prometheus.Counter
	deviceRejected              prometheus.Counter
	deviceWaited                prometheus.Counter
	gatewayRefused              prometheus.Counter
	serviceAllowed              prometheus.Counter
	serviceRejected             prometheus.Counter
	takeoversLost               prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		reg.MustRegister(g)
		return g
	}
	m := &metrics{
		closed:     counter("goshield_gateway_closed_total", "Device connections that ended, by reason.", "reason"),
		handshakes: counter("goshield_gateway_handshakes_total", "Handshakes of device connections, by result.", "result"),
		requests:   counter("goshield_gateway_requests_total", "Requests of devices that were answered, by service and code.", "service", "code"),
		pushes:     counter("goshield_gateway_pushes_total", "Messages to be pushed, by what became of them: each once, and each that was queued once more at its end.", "result"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "goshield_gateway_request_duration_seconds",
			Help:    "Time from a request's frame to its answer being queued.",
			Buckets: []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10},
		}, []string{"service"}),
	}
	reg.MustRegister(m.duration)
	conns := gauge("goshield_gateway_connections", "Device connections, by state.", "state")
	m.active, m.parked, m.handshaking = conns.WithLabelValues("active"), conns.WithLabelValues("parked"), conns.WithLabelValues("handshaking")
	m.configVersion = gauge("goshield_gateway_config_version", "Version of the dynamic configuration in force; 0: the defaults.").WithLabelValues()
	m.configRefused = counter("goshield_gateway_config_refused_total", "Dynamic documents in Redis that could not be put in force.").WithLabelValues()
	frames := counter("goshield_gateway_frames_total", "Frames of the device protocol, by direction and type.", "direction", "type")
	for t := wire.TypeHello; t <= wire.TypeBye; t++ {
		m.framesIn[t], m.framesOut[t] = frames.WithLabelValues("in", t.String()), frames.WithLabelValues("out", t.String())
	}
	decisions := counter("goshield_ratelimit_decisions_total", "What limits decided, by scope and result.", "scope", "result")
	m.deviceAllowed = decisions.WithLabelValues("device", "allow")
	m.deviceRejected = decisions.WithLabelValues("device", "reject")
	m.deviceWaited = decisions.WithLabelValues("device", "wait")
	m.serviceAllowed = decisions.WithLabelValues("service", "allow")
	m.serviceRejected = decisions.WithLabelValues("service", "reject")
	m.gatewayRefused = decisions.WithLabelValues("gateway", "reject")
	m.takeoversLost = counter("goshield_gateway_takeovers_failed_total", "Older sessions on another gateway that could not be ended there.").WithLabelValues()
	for _, r := range []string{handshakeOK, handshakeFailed, handshakeTimeout, handshakeProxy, handshakeOverloaded} {
		m.handshakes.WithLabelValues(r)
	}
	for _, r := range []string{closedBye, closedEOF, closedReset, closedHandshake, closedFrameTimeout, closedWriteStalled, closedDrained, closedShutdown} {
		m.closed.WithLabelValues(r)
	}
	for _, o := range []pushOutcome{pushQueued, pushQueueFull, pushRefused, pushNotConnected, pushUnavailable, pushAcked, pushNoAck, pushLost} {
		m.pushes.WithLabelValues(string(o))
	}
	return m
}

// serviceMetrics count one service's requests, limit them, and convert their bodies.
type serviceMetrics struct {
	limit    *lease.Limit          // nil: none
	body     *transcode.Transcoder // nil: bodies are handed on as they are
	duration prometheus.Observer
	ok       prometheus.Counter
	failed   map[wire.Code]prometheus.Counter // fixed after construction
}

// answerCodes are the errors that answer one request.
var answerCodes = [...]wire.Code{
	wire.CodeNoSuchService, wire.CodeBackendUnavailable, wire.CodeBackendTimeout, wire.CodeBackendError,
	wire.CodeRateLimited, wire.CodeShuttingDown, wire.CodeBadFrame,
}

func (m *metrics) service(name string) *serviceMetrics {
	s := &serviceMetrics{
		duration: m.duration.WithLabelValues(name),
		ok:       m.requests.WithLabelValues(name, codeOK),
		failed:   make(map[wire.Code]prometheus.Counter, len(answerCodes)),
	}
	for _, c := range answerCodes {
		s.failed[c] = m.requests.WithLabelValues(name, string(c))
	}
	return s
}

// fail counts a request that was answered with an error.
func (s *serviceMetrics) fail(c wire.Code) {
	if counter := s.failed[c]; counter != nil {
		counter.Inc()
	}
}
