package echo

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/goshield/goshield/sdk/link"
)

// metrics are the package's series.
type metrics struct {
	answered, failed, cancelled prometheus.Counter
	pushes                      *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *Server) *metrics {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "goshield_echo_requests_total",
		Help: "Requests by result: answered, failed, or cancelled (nobody waited any more, or the deadline passed).",
	}, []string{"result"})
	pushes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "goshield_echo_pushes_total",
		Help: "Messages pushed to devices by result; unknown: no gateway could be asked, or its answer was lost.",
	}, []string{"result"})
	for _, r := range []link.PushResult{link.PushAcknowledged, link.PushNotConnected, link.PushQueueFull, link.PushTimedOut} {
		pushes.WithLabelValues(r.String())
	}
	pushes.WithLabelValues("unknown")
	links := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "goshield_echo_links",
		Help: "Links that gateways have open.",
	}, s.links)
	reg.MustRegister(requests, pushes, links)
	return &metrics{
		answered:  requests.WithLabelValues("answered"),
		failed:    requests.WithLabelValues("failed"),
		cancelled: requests.WithLabelValues("cancelled"),
		pushes:    pushes,
	}
}
