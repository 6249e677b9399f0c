// Package auth is auth-service: the HTTP API (docs/PROTOCOL.md §2) by which
// gateways have tokens issued, verified and rotated, and administrators revoke
// them and register devices.
//
//	srv, err := auth.New(cfg, deps)
//	if err != nil { … }
//	if err := srv.Start(); err != nil { … }
//	defer srv.Shutdown(ctx)
//
// A request passes a bound on how many are worked on at once, the secret, and the limits on
// guessing; then one script in Redis decides (package token). The service keeps no state: run as
// many as you like. While Redis cannot be asked, answers are 503 auth_unavailable, within a second.
package auth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/auth-service/device"
	"github.com/goshield/goshield/services/auth-service/guess"
	"github.com/goshield/goshield/services/auth-service/token"
)

var _ service.Server = (*Server)(nil)

// Server is an auth-service. Make it with New; then Start once, and Shutdown or
// Kill, or both.
type Server struct {
	// Static after New.
	cfg           Config
	log           *zap.Logger
	audit         *auditor
	documents     documentMetrics
	health        *admin.Health
	gatewaySecret *secret.Secret
	adminSecret   *secret.Secret // nil: nothing is administered
	groupKey      *groupKey      // nil: no enrolment by key
	gate          *gate
	budget        time.Duration // of one request in Redis

	ending sync.Once // closes stop

	// Static after Start.
	ln      *listener
	http    *fasthttp.Server
	rdb     redis.UniversalClient
	store   *token.Store
	devices *device.Registry
	guesses *guess.Limiter
	pending *revocations

	document atomic.Pointer[dynamic.Document]

	stop   chan struct{} // closed by Shutdown and Kill
	served chan struct{} // closed when the HTTP server has ended
	tended chan struct{} // closed when tend has

	following sync.WaitGroup // the watch of the dynamic document
}

// New makes a server and reads its secrets; it touches the network in Start. Errors are
// *config.Error.
func New(cfg Config, deps service.Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: deps.Log,
		gate:   newGate(cfg.MaxInFlight),
		budget: requestBudget(cfg.Redis),
		stop:   make(chan struct{}), served: make(chan struct{}), tended: make(chan struct{}),
	}
	var err error
	if s.gatewaySecret, err = secret.Open(cfg.GatewaySecretFile); err != nil {
		return nil, &config.Error{Key: "gateway_secret_file", Err: err}
	}
	if cfg.AdminSecretFile != "" {
		if s.adminSecret, err = secret.Open(cfg.AdminSecretFile); err != nil {
			return nil, &config.Error{Key: "admin_secret_file", Err: err}
		}
	}
	if cfg.GroupKeyFile != "" {
		if s.groupKey, err = openGroupKey(cfg.GroupKeyFile); err != nil {
			return nil, &config.Error{Key: "group_key_file", Err: err}
		}
	}
	s.health = admin.NewHealth(deps.Metrics, redisDependency, replicaDependency, groupKeyDependency)
	s.audit = newAuditor(deps)
	s.documents = newDocumentMetrics(deps.Metrics)
	s.Apply(cfg.Defaults)
	return s, nil
}

// requestBudget is how long one request may be busy with Redis: two attempts that time out.
func requestBudget(cfg redisdb.Config) time.Duration {
	timeout := cfg.Timeout
	if timeout == 0 {
		timeout = redisdb.DefaultTimeout
	}
	return 5 * timeout / 2
}

// groupKeyDependency is what the group key is called in health and metrics.
const groupKeyDependency = "group_key"

// Apply puts a valid dynamic document into force. It may be called at any time.
func (s *Server) Apply(doc dynamic.Document) {
	old := s.document.Swap(&doc)
	open := doc.Enrolment == dynamic.EnrolOpen
	s.audit.open.Set(map[bool]float64{true: 1}[open])
	if open && (old == nil || old.Enrolment != doc.Enrolment) {
		s.log.Warn("enrolment is open: every well-formed client_id gets a token, and client_ids are no secret")
	}
	wrong := ""
	if doc.Enrolment == dynamic.EnrolKey && s.groupKey == nil {
		wrong = "enrolment is key, and group_key_file is not set: nobody can enrol"
	}
	if s.health.SetDegraded(groupKeyDependency, wrong) && wrong != "" {
		s.log.Error(wrong)
	}
}

// Start implements service.Server. Redis need not be there yet (see redisdb.Open).
func (s *Server) Start() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if s.rdb, err = redisdb.Open(ctx, s.cfg.Redis); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return errors.Join(&config.Error{Key: "listen", Err: err}, s.rdb.Close())
	}
	s.ln = newListener(ln, s.log)
	s.store = token.NewStore(s.rdb, s.log)
	s.devices = device.NewRegistry(s.rdb)
	s.guesses = guess.NewLimiter(s.rdb, s.cfg.Guessing)
	s.pending = newRevocations()
	s.http = s.newHTTPServer()
	s.followDocument()
	go s.serve()
	go s.tend()
	s.health.SetReady()
	s.log.Info("listening", zap.String("address", s.Addr()), zap.String("enrolment", string(s.document.Load().Enrolment)))
	return nil
}

// Addr is where the API listens, after Start.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// InFlight is how many requests are being worked on.
func (s *Server) InFlight() int { return len(s.gate.slots) }

// Health implements service.Server.
func (s *Server) Health() *admin.Health { return s.health }

// RegisterAdmin implements service.Server; there is nothing to add.
func (s *Server) RegisterAdmin(*http.ServeMux) {}

// serve ends when the HTTP server is shut down or closed.
func (s *Server) serve() {
	defer close(s.served)
	if err := s.http.Serve(s.ln); err != nil { // nil: the listener was closed
		s.log.Error("the HTTP server ended", zap.Error(err))
	}
}

// Shutdown implements service.Server: requests under way are finished.
func (s *Server) Shutdown(ctx context.Context) error {
	s.health.SetNotReady("draining")
	if s.http == nil {
		return nil
	}
	_ = s.ln.Close() // fasthttp does not know it before serve has come as far
	err := s.http.ShutdownWithContext(ctx)
	switch {
	case errors.Is(err, net.ErrClosed):
		err = nil // as was meant
	case err != nil:
		s.ln.cutAll()
		err = fmt.Errorf("requests under way were cut off: %w", err)
	}
	return errors.Join(err, s.end())
}

// Kill ends the server at once, as the process's death would look from outside.
func (s *Server) Kill() {
	s.health.SetNotReady("killed")
	if s.http == nil {
		return
	}
	s.ln.cutAll() // whatever it was doing is lost, as meant
	_ = s.end()
}

// end stops what runs in the background, and closes Redis's connections, which ends requests
// that are cut off.
func (s *Server) end() error {
	s.ending.Do(func() { close(s.stop) })
	<-s.served
	<-s.tended
	s.following.Wait()
	if err := s.rdb.Close(); !errors.Is(err, redis.ErrClosed) {
		return err
	}
	return nil
}

// tend looks after Redis and after unfinished revocations, once a second, until the server ends.
func (s *Server) tend() {
	defer close(s.tended)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		s.watchRedis(ctx)
		s.watchReplicas(ctx)
		s.finishRevocations(ctx)
	}
}

// watchRedis asks every primary whether it is there.
func (s *Server) watchRedis(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.budget)
	defer cancel()
	var err error
	if c, ok := s.rdb.(*redis.ClusterClient); ok {
		err = c.ForEachMaster(ctx, func(ctx context.Context, m *redis.Client) error { return m.Ping(ctx).Err() })
	} else {
		err = s.rdb.Ping(ctx).Err()
	}
	wrong := ""
	if err != nil {
		wrong = "no answer: " + err.Error()
	}
	if s.health.SetDegraded(redisDependency, wrong) {
		if err != nil {
			s.log.Warn("redis is away: enrolment, resume and rotation are refused", zap.Error(err))
		} else {
			s.log.Info("redis is back")
		}
	}
}

// replicaDependency is what the replicas of Redis are called in health and metrics.
const replicaDependency = "redis_replica"

// watchReplicas says so while writes have no replica to confirm them.
func (s *Server) watchReplicas(ctx context.Context) {
	if s.health.Degraded(redisDependency) != "" {
		return // that is known, and nothing can be asked
	}
	ctx, cancel := context.WithTimeout(ctx, s.budget)
	defer cancel()
	wrong := ""
	if alone := s.store.Unconfirmed(ctx); len(alone) > 0 {
		wrong = "no replica confirms writes at " + strings.Join(alone, ", ") + ": rotation pauses, revocations fail"
	}
	if s.health.SetDegraded(replicaDependency, wrong) {
		if wrong != "" {
			s.log.Warn(wrong)
		} else {
			s.log.Info("replicas of redis confirm writes again")
		}
	}
}
