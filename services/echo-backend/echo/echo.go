// Package echo is the example backend: it answers each request with its own
// body, and pushes to devices that ask for it. Gateways reach it by links, by HTTP
// or by gRPC.
//
//	srv, err := echo.New(cfg, deps)
//	if err != nil {
//		return err
//	}
//	if err := srv.Start(); err != nil { // srv.Addr() tells where it listens
//		return err
//	}
//	...
//	err = srv.Shutdown(ctx)
//
// Whatever the service's name, the answer is the request's body, after
// Config.Delay; a part of the requests, Config.FailureRate, is answered
// backend_error instead. Only the service "push", and those whose names begin
// with "push-", do something else:
//
//	{"after_ms": 500, "body": {"any": "JSON"}}
//
// is answered {"pushing": true} at once, and half a second later the device gets
// a PUSH of that service with that body.
//
// The service is what its few lines show: what a backend of one's own needs is in sdk/backend.
package echo

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/logging"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/wire"
)

// Server is the echo backend. Make it with New; the maker calls Start once, and
// Shutdown or Kill once.
type Server struct {
	// Static after New.
	cfg     Config
	log     *zap.Logger
	health  *admin.Health
	metrics *metrics
	secret  *secret.Secret
	pusher  *pusher

	backend            *backend.Server
	ln                 net.Listener  // after Start
	http               *httpServer   // after Start; nil: not configured
	grpc               *grpcServer   // after Start; nil: not configured
	httpAddr, grpcAddr string        // after Start
	served             chan struct{} // closed when serve has ended
}

// New makes a server and reads its secret; it touches the network in Start. Errors are
// *config.Error.
func New(cfg Config, deps service.Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	sec, err := secret.Open(cfg.SecretFile)
	if err != nil {
		return nil, &config.Error{Key: "secret_file", Err: err}
	}
	s := &Server{cfg: cfg, log: deps.Log, secret: sec, served: make(chan struct{})}
	s.backend = &backend.Server{
		Handler: func(ctx context.Context, req backend.Request) (backend.Response, error) {
			return s.handle(ctx, req, s.backend.Push)
		},
		Authorize: s.secret.Matches,
		Log:       logging.Slog(s.log),
	}
	s.pusher = newPusher(s)
	s.health = admin.NewHealth(deps.Metrics)
	s.metrics = newMetrics(deps.Metrics, s)
	return s, nil
}

// Start binds the addresses and serves gateways. An error is a *config.Error; nothing
// is bound then.
func (s *Server) Start() error {
	var bound []net.Listener
	bind := func(key, address string) (net.Listener, error) {
		if address == "" {
			return nil, nil
		}
		ln, err := net.Listen("tcp", address)
		if err != nil {
			for _, l := range bound {
				_ = l.Close()
			}
			return nil, &config.Error{Key: key, Err: err}
		}
		bound = append(bound, ln)
		return ln, nil
	}
	ln, err := bind("listen", s.cfg.Listen)
	if err != nil {
		return err
	}
	overHTTP, err := bind("http", s.cfg.HTTP)
	if err != nil {
		return err
	}
	overGRPC, err := bind("grpc", s.cfg.GRPC)
	if err != nil {
		return err
	}
	if overHTTP != nil {
		s.http = s.serveHTTP(overHTTP)
		s.httpAddr = overHTTP.Addr().String()
	}
	if overGRPC != nil {
		s.grpc = s.serveGRPC(overGRPC)
		s.grpcAddr = overGRPC.Addr().String()
	}
	host, _ := os.Hostname() // only for people
	s.backend.Node = host + " " + ln.Addr().String()
	s.ln = ln
	go s.serve() // ends with Shutdown or Kill, which wait for it
	s.health.SetReady()
	s.log.Info("serving gateways", zap.Stringer("address", ln.Addr()))
	return nil
}

func (s *Server) serve() {
	defer close(s.served)
	if err := s.backend.Serve(s.ln); !errors.Is(err, backend.ErrServerClosed) {
		s.health.SetNotReady("the listener failed")
		s.log.Error("gateways are no longer served", zap.Error(err))
	}
}

// Addr is where gateways' links reach it, after Start.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// HTTPAddr is where gateways reach it by HTTP, after Start; "" where it is not
// configured.
func (s *Server) HTTPAddr() string { return s.httpAddr }

// GRPCAddr is where gateways reach it by gRPC, as HTTPAddr.
func (s *Server) GRPCAddr() string { return s.grpcAddr }

// Shutdown answers what is in flight, until ctx ends, and ends everything.
func (s *Server) Shutdown(ctx context.Context) error {
	s.health.SetNotReady("draining")
	s.pusher.stop()
	if s.ln == nil {
		return nil // never started
	}
	err := errors.Join(s.backend.Shutdown(ctx), s.stopOthers(ctx))
	<-s.served
	return err
}

// stopOthers ends what serves HTTP and gRPC.
func (s *Server) stopOthers(ctx context.Context) (err error) {
	if s.http != nil {
		err = s.http.stop(ctx)
	}
	if s.grpc != nil {
		err = errors.Join(err, s.grpc.stop(ctx))
	}
	return err
}

// Kill ends the server at once, as the process's death would look from outside.
func (s *Server) Kill() {
	s.health.SetNotReady("killed")
	if s.ln != nil {
		s.backend.Close()
		at, cancel := context.WithCancel(context.Background())
		cancel() // at once
		_ = s.stopOthers(at)
		<-s.served
	}
	s.pusher.stop()
}

// links is how many links gateways have open.
func (s *Server) links() float64 { return float64(s.backend.Links()) }

// Health is the readiness that the admin server shows.
func (s *Server) Health() *admin.Health { return s.health }

// RegisterAdmin adds nothing: there is nothing to operate.
func (s *Server) RegisterAdmin(*http.ServeMux) {}

// handle answers one request. push is how messages are sent where it came from;
// nil: not at all.
func (s *Server) handle(ctx context.Context, req backend.Request, push pushFunc) (backend.Response, error) {
	resp, err := s.answer(ctx, req, push)
	switch {
	case err == nil:
		s.metrics.answered.Inc()
	case ctx.Err() != nil:
		s.metrics.cancelled.Inc()
	default:
		s.metrics.failed.Inc()
	}
	return resp, err
}

func (s *Server) answer(ctx context.Context, req backend.Request, push pushFunc) (backend.Response, error) {
	if err := pause(ctx, s.cfg.Delay); err != nil {
		return backend.Response{}, err
	}
	if s.cfg.FailureRate > 0 && rand.Float64() < s.cfg.FailureRate {
		return backend.Response{}, wire.Errorf(wire.CodeBackendError, "failed on purpose, as failure_rate says")
	}
	if req.Service == pushService || strings.HasPrefix(req.Service, pushService+"-") {
		return s.pusher.begin(req, push)
	}
	return backend.Response{Body: req.Body}, nil
}

// pause waits, or returns ctx's error when it ends first.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
