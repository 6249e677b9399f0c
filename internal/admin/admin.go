// Package admin is the HTTP server that every process has for operators and
// for Prometheus: /metrics, /healthz, /readyz, /debug/pprof, and what a
// service adds.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// Server serves the admin pages of one process. Make it with New; the maker
// calls Start once and Shutdown once.
type Server struct {
	mux      *http.ServeMux
	http     *http.Server
	ln       *net.TCPListener
	done     chan struct{} // closed when nobody accepts any more
	arrivals arrivals
	silence  time.Duration
}

// Readiness is whether a part takes traffic, and what to say of it; see
// Health.Ready.
type Readiness interface {
	Ready() (ready bool, text string)
}

// New makes a server for addr with the metrics of g and the readiness of all
// the given parts: ready when each of them is.
func New(addr string, g prometheus.Gatherer, log *zap.Logger, parts ...Readiness) *Server {
	mux := http.NewServeMux()
	s := &Server{mux: mux, done: make(chan struct{}), http: NewHTTPServer(mux, log), silence: silence}
	s.arrivals.watch(s.http)
	s.http.Addr = addr
	s.http.WriteTimeout = 90 * time.Second // a CPU profile takes 30 s
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{ErrorLog: zap.NewStdLog(log), MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { WriteReadiness(w, parts...) })
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return s
}

// NewHTTPServer is an http.Server with the timeouts and bounds that every
// server of this project has.
func NewHTTPServer(h http.Handler, log *zap.Logger) *http.Server {
	return &http.Server{
		Handler: h,
		// As long as the rest: a process that the machine left alone for a while would else reset connections whose
		// request has long been there.
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(log),
	}
}

// WriteReadiness answers what /readyz does of parts: 200 if each of them is ready, else 503, and what each has
// to say.
func WriteReadiness(w http.ResponseWriter, parts ...Readiness) {
	status, body := http.StatusOK, ""
	for _, p := range parts {
		ready, text := p.Ready()
		if !ready {
			status = http.StatusServiceUnavailable
		}
		body += text
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprint(w, body)
}

// Mux takes further routes, before Start.
func (s *Server) Mux() *http.ServeMux { return s.mux }

// Start binds the address and serves.
func (s *Server) Start() error {
	ln, err := net.Listen("tcp", s.http.Addr)
	if err != nil {
		return err
	}
	s.StartOn(ln.(*net.TCPListener))
	return nil
}

// StartOn serves at ln, which is the server's from now on.
func (s *Server) StartOn(ln *net.TCPListener) {
	s.ln = ln
	go s.serve()
}

func (s *Server) serve() {
	defer close(s.done)
	_ = s.http.Serve(s.ln) // an error that says that ln is closed
}

// Addr is where it listens, after Start.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Listener is its socket, after Start. It stays the server's.
func (s *Server) Listener() *net.TCPListener { return s.ln }

// Shutdown ends it; requests under way have until ctx ends, and who has just connected may ask yet.
func (s *Server) Shutdown(ctx context.Context) error {
	if s.ln == nil {
		return nil
	}
	_ = s.ln.Close()
	<-s.done
	s.arrivals.wait(ctx, s.silence)
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = s.http.Close()
	}
	return err
}
