package balancer

import (
	"embed"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/goshield/goshield/internal/service"
)

// statusFiles are the status page and what it loads: nothing from elsewhere.
//
//go:embed status
var statusFiles embed.FS

// statusPolicy lets the page load and call what this server has, and nothing else.
const statusPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

// balancerStatus is the answer of GET /api/status: what the status page shows. Totals are since the start.
type balancerStatus struct {
	Version          string             `json:"version"`
	Started          time.Time          `json:"started"`
	Now              time.Time          `json:"now"`
	Ready            bool               `json:"ready"`
	Readiness        string             `json:"readiness"` // as /readyz answers
	Writable         bool               `json:"writable"`  // there is an admin secret
	Connections      int                `json:"connections"`
	MaxConnections   int                `json:"max_connections"`
	ConnectionsTotal uint64             `json:"connections_total"` // admitted
	Bytes            bytesStatus        `json:"bytes"`
	Rejected         map[refusal]uint64 `json:"rejected"` // by reason
	Closed           map[string]uint64  `json:"closed"`   // by reason
	Rebalancing      []string           `json:"rebalancing"`
	Listeners        []listenerStatus   `json:"listeners"`
	Upstreams        []upstreamStatus   `json:"upstreams"`
}

type bytesStatus struct {
	ToUpstream uint64 `json:"to_upstream"`
	ToClient   uint64 `json:"to_client"`
}

type listenerStatus struct {
	Name        string `json:"name"`
	Address     string `json:"address"`
	Connections int64  `json:"connections"`
}

func (s *Server) registerStatus(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		s.answer(w, http.StatusOK, s.status())
	})
	files := map[string]string{
		"/status":            "status/index.html",
		"/status/status.css": "status/status.css",
		"/status/status.js":  "status/status.js",
	}
	for path, file := range files {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Security-Policy", statusPolicy)
			h.Set("X-Content-Type-Options", "nosniff")
			h.Set("Referrer-Policy", "no-referrer")
			h.Set("Cache-Control", "no-cache")
			http.ServeFileFS(w, r, statusFiles, file)
		})
	}
}

func (s *Server) status() balancerStatus {
	s.mu.Lock()
	cfg, writable, listeners := s.cfg, s.secret != nil, slices.Clone(s.listeners)
	s.mu.Unlock()
	stats := s.engine.Stats()
	st := balancerStatus{
		Version:          service.VersionString(),
		Started:          s.began,
		Now:              time.Now(),
		Writable:         writable,
		Connections:      s.engine.Connections(),
		MaxConnections:   cfg.MaxConnections,
		ConnectionsTotal: s.gate.admitted.Load(),
		Bytes:            bytesStatus{ToUpstream: stats.ToUpstream, ToClient: stats.ToClient},
		Rejected:         map[refusal]uint64{},
		Closed:           map[string]uint64{},
		Rebalancing:      []string{},
		Listeners:        []listenerStatus{},
		Upstreams:        []upstreamStatus{},
	}
	st.Ready, st.Readiness = s.health.Ready()
	for reason, c := range s.metrics.rejected {
		st.Rejected[reason] = valueOf(c)
	}
	for reason, c := range s.metrics.closed {
		st.Closed[reason.String()] = valueOf(c)
	}
	for _, l := range listeners {
		f := l.front.Load()
		st.Listeners = append(st.Listeners, listenerStatus{Name: f.name, Address: l.bound.String(), Connections: f.open.Load()})
	}
	for _, p := range s.allPools() {
		st.Upstreams = append(st.Upstreams, p.status()...)
		if p.levelling.Load() {
			st.Rebalancing = append(st.Rebalancing, p.name)
		}
	}
	return st
}

// valueOf reads a counter.
func valueOf(c prometheus.Counter) uint64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		return 0
	}
	return uint64(m.GetCounter().GetValue())
}
