// Package gateway is the part that devices talk to: it terminates TLS, speaks the
// device protocol (docs/PROTOCOL.md §1), enforces tokens and limits, sends requests
// to backends over shared links and delivers pushes.
//
//	srv, err := gateway.New(cfg, service.Deps{Log: log, Metrics: reg})
//	if err != nil {
//		return err
//	}
//	if err := srv.Start(); err != nil { // serves when it returns
//		return err
//	}
//	...
//	err = srv.Shutdown(ctx) // sends the devices away first
//
// One request, by file: a connection comes in through listener.go (caps, proxy.go, tls.go, or
// websocket.go, or mqtt.go), opens its session in hello.go, and from then on its reader
// (session.go) takes one frame at a time: limit.go, verdict.go, request.go. Answers and
// pushes leave through outbound.go. All of a session's times are in deadline.go, all sessions
// in table.go.
//
// A gateway keeps nothing that outlives it. It does not decide about tokens (auth-service
// does), stores no messages, and talks to other gateways only to hand on a push or to end
// a session that a newer one has replaced.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/internal/wheel"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/authclient"
	"github.com/goshield/goshield/services/gateway/backend"
	"github.com/goshield/goshield/services/gateway/lease"
	"github.com/goshield/goshield/services/gateway/parking"
	"github.com/goshield/goshield/services/gateway/registry"
)

// Names of dependencies in goshield_degraded.
const (
	dependencyAuth  = "auth"
	dependencyRedis = "redis"
	// With tls.client_ca and backend.tls.ca: their files.
	dependencyClientCA  = "client_ca"
	dependencyBackendCA = "backend_ca"
)

// routes is the router as the server needs it; see package backend.
type routes interface {
	router
	Apply(services map[string]dynamic.Service) error
	Shutdown(ctx context.Context) error
}

// directory is what gateways know of each other; see package registry.
type directory interface {
	Locate(ctx context.Context, id wire.ClientID) (registry.Owner, error)
	Lookup(ctx context.Context, name string) (registry.Node, error)
	Nodes(ctx context.Context) ([]registry.NamedNode, error)
	Records(ctx context.Context, ids []wire.ClientID) ([]registry.Record, error)
}

// Server is a gateway. It implements service.Server; its methods are safe for concurrent
// use once Start has returned.
type Server struct {
	// Static after New.
	cfg         Config
	log         *zap.Logger
	metrics     *metrics
	health      *admin.Health
	timings     timings
	proxies     []netip.Prefix
	tls, webTLS *tls.Config // nil: plain
	auth        authority
	router      routes
	peers       *peers // nil: there is no push API, so none is called either
	adminSecret *secret.Secret
	pushSecret  *secret.Secret
	wheel       *wheel.Wheel
	lot         *parking.Lot // nil: readers stay
	bootID      uint64

	// Static after Start.
	registry  directory
	authHTTP  *authclient.Client // nil in tests that bring an authority
	directory *registry.Registry // nil in tests that bring a directory
	leases    *lease.Leases      // nil in tests that have no Redis
	followed  *followed          // nil in tests that have no Redis
	listeners []deviceListener
	web       *web
	push      *http.Server
	pushLn    net.Listener

	// Safe for concurrent use by themselves.
	settings   atomic.Pointer[settings]
	serial     atomic.Uint32
	draining   atomic.Bool
	leaveFrom  atomic.Int64 // before draining is set: when the first device may leave
	sockets    *sockets
	table      *table
	handshakes gate
	releases   *releases
	buffers    buffers
	requests   requests
	sheds      chan struct{}
	farewells  chan struct{} // of devices that are told to come later
	memoryFull atomic.Bool
	suspects   *suspects
	unsure     *unsure

	ctx    context.Context // of everything that runs; ends last
	cancel context.CancelFunc
	work   sync.WaitGroup // every goroutine and every session

	mu      sync.Mutex
	running bool // the timer wheel turns
	ended   bool // nothing new begins
}

// New makes a gateway. The secrets and the certificate must be there; auth-service,
// Redis and backends need not be. Errors name the configuration's key.
func New(cfg Config, deps service.Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s, err := newServer(cfg, deps, defaultTimings())
	if err != nil {
		return nil, err
	}
	backendSecret, err := openSecret("backend.secret_file", cfg.Backend.SecretFile)
	if err != nil {
		return nil, err
	}
	authSecret, err := openSecret("auth.secret_file", cfg.Auth.SecretFile)
	if err != nil {
		return nil, err
	}
	s.authHTTP, err = authclient.New(authclient.Config{URL: cfg.Auth.URL, Secret: authSecret, OnState: s.dependencyChanged(dependencyAuth)})
	if err != nil {
		return nil, &config.Error{Key: "auth.url", Err: err}
	}
	backendTLS, err := s.openBackendTLS()
	if err != nil {
		return nil, err
	}
	s.use(s.authHTTP, backend.NewRouter(backend.Config{
		Node: cfg.Node, Secret: backendSecret, TLS: backendTLS, ServerName: cfg.Backend.TLS.ServerName, Log: s.log.Named("backend"), Metrics: deps.Metrics, OnPush: s.pushFromBackend,
	}))
	return s, nil
}

// newServer makes a server without what it talks to; see use.
func newServer(cfg Config, deps service.Deps, t timings) (*Server, error) {
	s := &Server{
		cfg: cfg, log: deps.Log, timings: t,
		metrics: newMetrics(deps.Metrics),
		health:  admin.NewHealth(deps.Metrics, dependencyAuth, dependencyRedis),
		wheel:   wheel.New(t.tick, wheelSlots),
		sockets: newSockets(), table: newTable(),
		sheds: make(chan struct{}, shedsMax), farewells: make(chan struct{}, farewellsMax), suspects: newSuspects(), unsure: newUnsure(),
		bootID: uint64(rand.Uint32()),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var err error
	if s.proxies, err = cfg.trustedProxies(); err != nil {
		return nil, err
	}
	if cfg.TLS.Mode == tlsOn {
		if err := s.openTLS(deps.Metrics); err != nil {
			return nil, err
		}
	}
	if cfg.AdminSecretFile != "" {
		if s.adminSecret, err = openSecret("admin_secret_file", cfg.AdminSecretFile); err != nil {
			return nil, err
		}
	}
	if cfg.Push != "" {
		if s.pushSecret, err = openSecret("push_secret_file", cfg.PushSecretFile); err != nil {
			return nil, err
		}
		s.peers = newPeers(cfg.Node, s.pushSecret)
	}
	s.settings.Store(newSettings(cfg.Defaults, 0, s.metrics, nil))
	s.handshakes.setLimit(cfg.Defaults.GatewayLimit.MaxHandshakes)
	return s, nil
}

// openTLS reads what devices are served with.
func (s *Server) openTLS(reg prometheus.Registerer) error {
	cfg := s.cfg.TLS
	cert, err := openCertificate(cfg, s.log)
	if err != nil {
		return err
	}
	cert.register(reg)
	var clientCA *authorities
	if cfg.ClientCA != "" {
		if clientCA, err = openAuthorities("tls.client_ca", cfg.ClientCA, s.authoritiesRead(dependencyClientCA)); err != nil {
			return err
		}
	}
	s.tls, s.webTLS = cert.serverConfig(clientCA, nil), cert.serverConfig(clientCA, []string{"http/1.1"})
	if cfg.TicketKeysFile == "" {
		return nil
	}
	_, err = openTickets(cfg.TicketKeysFile, s.log, s.tls, s.webTLS)
	return err
}

func openSecret(key, path string) (*secret.Secret, error) {
	sec, err := secret.Open(path)
	if err != nil {
		return nil, &config.Error{Key: key, Err: err}
	}
	return sec, nil
}

// use says what the server talks to.
func (s *Server) use(auth authority, r routes) {
	s.auth, s.router = auth, r
	s.releases = &releases{auth: auth, log: s.log}
}

// Health implements service.Server.
func (s *Server) Health() *admin.Health { return s.health }

// RegisterAdmin implements service.Server.
func (s *Server) RegisterAdmin(mux *http.ServeMux) {
	if s.adminSecret != nil {
		mux.Handle("POST /api/shed", authorized(s.adminSecret, http.HandlerFunc(s.serveShed)))
	}
}

// now is the time of all deadlines: nanoseconds on a monotonic clock.
func (s *Server) now() int64 { return s.wheel.Now() }

// begin counts a goroutine that is about to start; false if it must not.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.work.Add(1)
	}
	return !s.ended
}

// Start implements service.Server. A server whose Start failed is of no more use.
func (s *Server) Start() (err error) {
	defer func() {
		if err != nil {
			s.Kill()
		}
	}()
	if err := s.bind(); err != nil {
		return err
	}
	s.startParking()
	s.startWork()
	s.startRegistry()
	if err := s.apply(s.cfg.Defaults, 0); err != nil {
		return prefixed("defaults", err)
	}
	s.followDocument()
	for _, ln := range s.listeners {
		s.work.Add(1)
		go s.acceptFrom(ln.Listener, ln.kind)
	}
	s.health.SetReady()
	s.log.Info("gateway serves", zap.String("node", s.cfg.Node), zap.String("listen", s.Addr()),
		zap.String("websocket", s.WebSocketAddr()), zap.String("mqtt", s.MQTTAddr()), zap.String("push", s.PushAddr()), zap.String("tls", s.cfg.TLS.Mode))
	return nil
}

// bind opens every listener.
func (s *Server) bind() error {
	for _, l := range []struct {
		key, address string
		kind         listenerKind
	}{{"listen", s.cfg.Listen, deviceKind}, {"websocket", s.cfg.WebSocket, websocketKind}, {"mqtt", s.cfg.MQTT, mqttKind}} {
		if l.address == "" {
			continue
		}
		ln, err := listen(l.key, l.address)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, deviceListener{ln, l.kind})
		if l.kind == websocketKind {
			s.web = newWeb(s, s.cfg.WebSocketOrigins, s.cfg.WebSocketPage, ln.Addr())
		}
	}
	if s.cfg.Push != "" {
		var err error
		if s.pushLn, err = listen("push", s.cfg.Push); err != nil {
			return err
		}
		s.push = admin.NewHTTPServer(s.pushHandler(s.pushSecret), s.log.Named("push"))
	}
	return nil
}

// startWork starts everything that runs besides the connections.
func (s *Server) startWork() {
	s.mu.Lock()
	s.running = true
	s.mu.Unlock()
	go s.wheel.Run()
	s.work.Go(func() { s.releases.run(s.ctx) })
	s.work.Go(s.watchAuth)
	s.work.Go(s.compareSessions)
	s.work.Go(s.watchMemory)
	if s.web != nil {
		s.work.Add(1)
		go s.web.serve()
	}
	if s.push != nil {
		s.work.Go(func() { _ = s.push.Serve(s.pushLn) }) // http.ErrServerClosed, always
	}
}

// startRegistry makes this node known and follows revocations.
func (s *Server) startRegistry() {
	if s.registry != nil {
		return // a test brought one
	}
	self := registry.Node{Admin: s.cfg.advertised(s.cfg.Admin), Boot: strconv.FormatUint(s.bootID, 16), NoClientCA: s.cfg.TLS.ClientCA == ""}
	if s.pushLn != nil {
		self.Push = s.cfg.advertised(s.pushLn.Addr().String())
	}
	s.directory = registry.New(registry.Config{
		Node: s.cfg.Node, Self: self,
		Open: func(ctx context.Context) (redis.UniversalClient, error) {
			return redisdb.Open(ctx, s.cfg.Redis)
		},
		Recheck:   func() time.Duration { return s.settings.Load().doc.Token.Recheck.D() },
		OnRevoked: s.revoked, OnGap: s.sessionsMayBeLost,
		OnState: s.dependencyChanged(dependencyRedis),
		Log:     s.log.Named("registry"),
	})
	s.registry = s.directory
	s.leases = lease.New(lease.Config{Node: s.cfg.Node, Source: lease.Redis(s.directory.Client)})
	s.directory.Start()
}

// dependencyChanged notes that a dependency went away, or is back.
func (s *Server) dependencyChanged(name string) func(error) {
	return func(err error) {
		if err != nil {
			s.health.SetDegraded(name, "unavailable")
			s.log.Warn("going on without "+name, zap.Error(err))
			return
		}
		s.health.SetDegraded(name, "")
		s.log.Info(name + " is available again")
	}
}

// watchAuth asks an auth-service that went away whether it is back: no device
// may come to find out. It ends with the gateway.
func (s *Server) watchAuth() {
	if s.authHTTP == nil {
		return
	}
	for s.sleep(time.Second) {
		if s.authHTTP.Down() {
			_ = s.authHTTP.Ping(s.ctx) // the client tells dependencyChanged
		}
	}
}

// Shutdown implements service.Server: it sends the devices away and waits for them, at most for the
// configured drain.timeout.
func (s *Server) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Drain.Timeout)
	defer cancel()
	err := s.drain(ctx)
	cut := s.endConnections(closedShutdown)
	if err != nil {
		err = fmt.Errorf("drain: %d connections were closed before they had gone: %w", cut, err)
	}
	flush, cancelFlush := context.WithTimeout(context.WithoutCancel(ctx), lastReleases)
	s.releases.flush(flush)
	cancelFlush()
	s.followed.end()
	routerErr := s.router.Shutdown(ctx)
	s.endWork()
	if s.directory != nil {
		s.directory.Close(context.WithoutCancel(ctx))
	}
	return errors.Join(err, routerErr)
}

// Kill ends the gateway at once, as its death would look from outside. Every goroutine has ended when it returns.
func (s *Server) Kill() {
	s.health.SetNotReady("killed")
	s.cancel()
	s.followed.end()
	s.endConnections(closedShutdown)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.router.Shutdown(ended) // what it cuts short is the point
	s.endWork()
	if s.directory != nil {
		s.directory.Kill()
	}
}

// endConnections closes the listeners and every connection, and returns how
// many there were.
func (s *Server) endConnections(reason string) int {
	for _, ln := range s.listeners {
		_ = ln.Close() // only new connections are lost
	}
	if s.push != nil {
		_ = s.push.Close() // callers see a broken connection and try another gateway
		_ = s.pushLn.Close()
	}
	for _, ses := range s.table.all() {
		ses.abort(reason)
	}
	left := s.sockets.end()
	for _, sock := range left {
		_ = sock.Close() // its goroutines find out
	}
	if s.web != nil {
		s.web.close()
	}
	return len(left)
}

// endWork ends every goroutine and waits for them.
func (s *Server) endWork() {
	s.mu.Lock()
	s.ended = true
	running := s.running
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	if s.leases != nil {
		s.leases.Close()
	}
	if running {
		s.wheel.Close()
	}
	if s.lot != nil {
		s.lot.Close()
	}
	if s.authHTTP != nil {
		s.authHTTP.Close()
	}
	if s.peers != nil {
		s.peers.client.CloseIdleConnections()
	}
}
