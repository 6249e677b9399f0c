package auth

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/logging"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/token"
)

// operation is what a request asks for, as metrics and the audit log name it.
type operation string

const (
	opIssue        operation = "issue"
	opVerify       operation = "verify"
	opRotate       operation = "rotate"
	opRelease      operation = "release"
	opRevoke       operation = "revoke"
	opShow         operation = "show"
	opDevicePut    operation = "device_put"
	opDeviceRemove operation = "device_remove"
	opDeviceList   operation = "device_list"
)

// auditor counts every operation and writes a line for each.
//
// A line's fields are a contract with those who search for them: operation, result ("ok",
// "promoted", "previous", or the code of the error), request_id, duration (seconds), and where
// they are known client_id, gen (the record's, after the operation), gateway, remote_ip; for
// release, which is about many, sessions and released. Never a token, a key or a secret.
type auditor struct {
	log         *zap.Logger
	operations  *prometheus.CounterVec
	unconfirmed *prometheus.CounterVec
	quarantined prometheus.Counter
	duration    *prometheus.HistogramVec
	open        prometheus.Gauge
}

func newAuditor(deps service.Deps) *auditor {
	a := &auditor{
		log: logging.Unsampled(deps.Log).Named("audit"),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "goshield_auth_operations_total",
			Help: "Operations, by their result: ok, promoted, previous, or the code of the error.",
		}, []string{"operation", "result"}),
		unconfirmed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "goshield_auth_unconfirmed_total",
			Help: "Writes that no replica had confirmed in time.",
		}, []string{"operation"}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "goshield_auth_quarantined_total",
			Help: "Sessions refused to devices that went from one connection to another too often.",
		}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "goshield_auth_operation_duration_seconds",
			Help:    "Time from the request's arrival to its answer.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2},
		}, []string{"operation"}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "goshield_auth_enrolment_open",
			Help: "1 while every well-formed client_id is enrolled.",
		}),
	}
	// The results that alerts look at exist from the start: a counter's first step is no increase.
	for op, results := range map[operation][]string{
		opIssue:  {"ok", "unknown_client", "bad_proof", "rate_limited", "auth_unavailable"},
		opVerify: {"ok", "promoted", "previous", "bad_token", "token_expired", "token_reused", "revoked", "rate_limited", "auth_unavailable"},
		opRotate: {"ok", "not_current", "token_reused", "auth_unavailable"},
		opRevoke: {"ok", "auth_unavailable"},
	} {
		for _, r := range results {
			a.operations.WithLabelValues(string(op), r)
		}
	}
	for _, op := range []operation{opIssue, opRotate, opRevoke} {
		a.unconfirmed.WithLabelValues(string(op))
	}
	deps.Metrics.MustRegister(a.operations, a.unconfirmed, a.quarantined, a.duration, a.open)
	return a
}

// entry is what will stand in the audit line of one request. It is filled by the request's own
// goroutine as things become known.
type entry struct {
	operation operation
	requestID string
	start     time.Time
	result    string // "" for ok; an error's code wins

	clientID wire.ClientID
	gen      int64
	gateway  string
	remoteIP string
	batch    *batch
}

// batch is what a release was about.
type batch struct{ sessions, released int }

// by notes the gateway in "node/session".
func (e *entry) by(owner string) { e.gateway, _, _ = strings.Cut(owner, "/") }

// write counts the operation and logs it. err is what it failed with, p what err was answered with.
func (a *auditor) write(e *entry, err error, p authapi.Problem) {
	result := e.result
	switch {
	case err != nil:
		result = string(p.Code)
	case result == "":
		result = "ok"
	}
	took := time.Since(e.start)
	a.operations.WithLabelValues(string(e.operation), result).Inc()
	a.duration.WithLabelValues(string(e.operation)).Observe(took.Seconds())
	fields := make([]zap.Field, 0, 10)
	fields = append(fields, zap.String("operation", string(e.operation)), zap.String("result", result),
		zap.String("request_id", e.requestID), zap.Duration("duration", took))
	if e.clientID != (wire.ClientID{}) {
		fields = append(fields, zap.Stringer("client_id", e.clientID))
	}
	if refused := (*token.Refusal)(nil); errors.As(err, &refused) {
		e.gen = refused.Generation
	}
	if e.gen != 0 {
		fields = append(fields, zap.Int64("gen", e.gen))
	}
	if e.gateway != "" {
		fields = append(fields, zap.String("gateway", e.gateway))
	}
	if e.remoteIP != "" {
		fields = append(fields, zap.String("remote_ip", e.remoteIP))
	}
	if e.batch != nil {
		fields = append(fields, zap.Int("sessions", e.batch.sessions), zap.Int("released", e.batch.released))
	}
	if p.Status == http.StatusServiceUnavailable {
		fields = append(fields, zap.Error(err))
	}
	a.log.Info("operation", fields...)
}

// countUnconfirmed counts a write that no replica had.
func (a *auditor) countUnconfirmed(op operation) { a.unconfirmed.WithLabelValues(string(op)).Inc() }
