package balancer

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// upstreamStatus is one element of GET /api/upstreams.
type upstreamStatus struct {
	Address     string     `json:"address"`
	Pool        string     `json:"pool"` // "upstreams", or "upstreams of <listener>"
	Weight      int        `json:"weight"`
	Share       float64    `json:"share"`  // of the weight that counts: below 1 during slow start
	State       adminState `json:"state"`  // what an operator wants: ready, drain, down
	Health      string     `json:"health"` // starting, up, down; left: discovery no longer lists it
	Reason      string     `json:"reason"` // of Health
	Since       time.Time  `json:"since"`  // of Health
	EjectedFrom []string   `json:"ejected_from"`
	Connections int64      `json:"connections"`
	Total       uint64     `json:"connections_total"` // since the upstream joined
	ResponseMs  float64    `json:"response_ms"`       // moving average
	ProbeMs     float64    `json:"probe_ms"`          // the last check's duration
}

const maxAdminBody = 8 << 10

func (s *Server) registerAdmin(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/upstreams", s.listUpstreams)
	mux.HandleFunc("PUT /api/upstreams/{addr}", s.setUpstream)
	s.registerStatus(mux)
}

func (s *Server) listUpstreams(w http.ResponseWriter, _ *http.Request) {
	list := []upstreamStatus{}
	for _, p := range s.allPools() {
		list = append(list, p.status()...)
	}
	s.answer(w, http.StatusOK, map[string]any{"upstreams": list})
}

// setUpstream takes {"state": "ready" | "drain" | "down"}.
func (s *Server) setUpstream(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	key := s.secret
	s.mu.Unlock()
	if key == nil {
		s.problem(w, http.StatusForbidden, "read_only", "there is no admin_secret_file: this API is for reading only")
		return
	}
	if !key.MatchesBearer(r.Header.Get("Authorization")) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		s.problem(w, http.StatusUnauthorized, "unauthorized", "the admin secret is needed as a bearer token")
		return
	}
	addr, err := netip.ParseAddrPort(r.PathValue("addr"))
	if err != nil {
		s.problem(w, http.StatusBadRequest, "bad_address", fmt.Sprintf("the address must be ip:port, got %q", r.PathValue("addr")))
		return
	}
	var body struct {
		State string `json:"state"`
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&body); err != nil {
		s.problem(w, http.StatusBadRequest, "bad_body", err.Error())
		return
	}
	state, err := parseAdminState(body.State)
	if err != nil {
		s.problem(w, http.StatusBadRequest, "bad_state", err.Error())
		return
	}
	known := false
	for _, p := range s.allPools() {
		known = p.setAdmin(addr, state) || known
	}
	if !known {
		s.problem(w, http.StatusNotFound, "unknown_upstream", fmt.Sprintf("there is no upstream %s", addr))
		return
	}
	s.answer(w, http.StatusOK, map[string]any{"address": addr.String(), "state": state})
}

// problem answers with RFC 9457.
func (s *Server) problem(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	s.answer(w, status, map[string]any{"status": status, "code": code, "detail": detail})
}

func (s *Server) answer(w http.ResponseWriter, status int, body any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.log.Debug("admin answer not sent", zap.Error(err))
	}
}
