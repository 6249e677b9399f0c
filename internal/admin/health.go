package admin

import (
	"sort"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Health is whether a process is ready for traffic, and which of its
// dependencies it does without just now. The two are apart on purpose: a
// dependency's outage must not empty a load balancer. A Health is safe for
// concurrent use and begins not ready ("starting").
type Health struct {
	gauge *prometheus.GaugeVec

	mu       sync.Mutex
	notReady string            // reason; "" when ready
	degraded map[string]string // dependency → what is wrong
}

// NewHealth registers goshield_degraded{dependency} with reg. The
// dependencies are those it may be told of; each has a series from the start.
func NewHealth(reg prometheus.Registerer, dependencies ...string) *Health {
	h := &Health{notReady: "starting", degraded: map[string]string{}}
	h.gauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "goshield_degraded",
		Help: "1 while this process has to do without the dependency.",
	}, []string{"dependency"})
	reg.MustRegister(h.gauge)
	for _, d := range dependencies {
		h.gauge.WithLabelValues(d).Set(0)
	}
	return h
}

// SetReady says that the process takes traffic.
func (h *Health) SetReady() { h.SetNotReady("") }

// SetNotReady says that it does not, and why: "draining".
func (h *Health) SetNotReady(reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notReady = reason
}

// SetDegraded says what is wrong with a dependency; "" means nothing. It reports whether
// that changed between wrong and right, so that a caller can log it once.
func (h *Health) SetDegraded(dependency, wrong string) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, was := h.degraded[dependency]
	if wrong == "" {
		delete(h.degraded, dependency)
		h.gauge.WithLabelValues(dependency).Set(0)
		return was
	}
	h.degraded[dependency] = wrong
	h.gauge.WithLabelValues(dependency).Set(1)
	return !was
}

// Forget ends what is said of a dependency, and its series: the process has no more to do with it.
func (h *Health) Forget(dependency string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.degraded, dependency)
	h.gauge.DeleteLabelValues(dependency)
}

// Degraded is what is wrong with a dependency; "" means nothing.
func (h *Health) Degraded(dependency string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.degraded[dependency]
}

// Ready reports whether the process takes traffic, and the text that /readyz
// answers: "ready" or "not ready: draining", then a line for each dependency
// that is degraded.
func (h *Health) Ready() (ready bool, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	if h.notReady == "" {
		b.WriteString("ready\n")
	} else {
		b.WriteString("not ready: " + h.notReady + "\n")
	}
	names := make([]string, 0, len(h.degraded))
	for d := range h.degraded {
		names = append(names, d)
	}
	sort.Strings(names)
	for _, d := range names {
		b.WriteString("degraded: " + d + ": " + h.degraded[d] + "\n")
	}
	return h.notReady == "", b.String()
}
