// Package stack runs the whole of GoShield in one process: Redis, auth-service,
// backends, gateways, load balancer and admin server, each from the very
// package that its own process runs. It is `goshield up`, and what the
// end-to-end tests break the parts of.
//
//	s, err := stack.Start(stack.Config{DataDir: dir, Listen: "127.0.0.1:8443", …})
//	if err != nil {
//		return err // nothing is left running
//	}
//	defer s.Shutdown(ctx)
//	dial(s.Addr(), s.CA())
//
// It is for one machine: what a fleet is run with are the services' own
// processes.
package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/lb/balancer"
)

// Config is what is run, and where it listens. Addresses may have port 0.
type Config struct {
	Listen    string // devices, TLS
	WebSocket string // devices, WebSocket over TLS
	MQTT      string // devices, MQTT over TLS
	Admin     string // metrics, health, pprof and the services' admin routes
	Push      string // push API of the first gateway
	Gateways  int
	Backends  int
	DataDir   string   // certificates and secrets; made if it does not exist
	Redis     []string // servers to use; none: an embedded one
	// RedisTimeout is of a dial, of a read and of a write; 0: what the services have for a Redis elsewhere, and a
	// second for the embedded one.
	RedisTimeout time.Duration

	// Document is the dynamic configuration in force until one is set in Redis. The services "echo" and
	// "push" that it does not have are the backends'.
	Document dynamic.Document
	// PerIP limits one address at the load balancer. Zero: no limit, since all
	// traffic of one machine comes from one address.
	PerIP balancer.PerIP

	// Rebalance has the load balancer even devices out over the gateways, and send
	// them away before it ends.
	Rebalance bool
	// DrainTimeout is how long what has to leave may take when a part ends; 0: 5 s.
	DrainTimeout time.Duration
	// DrainWindow is over how long devices are asked to leave when a gateway ends; 0: 1 s.
	DrainWindow time.Duration

	Log *zap.Logger

	// free gives an address to listen on for what nobody dials from outside; nil: anyPort. Tests, which
	// end parts and start them again, have ones that nobody takes meanwhile.
	free func() string
	// authFor is where a gateway finds the auth-service that listens at addr; nil: there. Tests put something between.
	authFor func(gateway, addr string) string
}

const defaultDrainWindow = time.Second

// Stack is what runs. Its parts can be ended and started one by one, by one
// goroutine at a time.
type Stack struct {
	cfg     Config
	reg     *prometheus.Registry
	secrets secretFiles
	paths   certs.Paths

	admin    *admin.Server
	redis    *redisdb.Embedded // nil: not embedded
	found    Found
	auth     *part
	backends []*backendPart
	gateways []*gatewayPart
	lb       *part
}

// anyPort is an address for what nobody dials from outside.
const anyPort = "127.0.0.1:0"

func (s *Stack) anyAddr() string {
	if s.cfg.free != nil {
		return s.cfg.free()
	}
	return anyPort
}

// Start makes what is missing in the data directory and starts every part. When it
// returns, a device can connect.
func Start(cfg Config) (_ *Stack, err error) {
	if cfg.Gateways < 1 || cfg.Backends < 1 {
		return nil, errors.New("at least one gateway and one backend are needed")
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 5 * time.Second
	}
	if cfg.DrainWindow == 0 {
		cfg.DrainWindow = defaultDrainWindow
	}
	s := &Stack{cfg: cfg, reg: service.NewRegistry()}
	s.lb = s.newPart("lb", cfg.Listen, s.newBalancer)
	defer func() {
		if err != nil {
			s.Kill()
		}
	}()
	service.RegisterBuildInfo(s.reg)
	if s.paths, err = certs.EnsureDir(cfg.DataDir); err != nil {
		return nil, err
	}
	if s.secrets, err = ensureSecrets(cfg.DataDir); err != nil {
		return nil, err
	}
	if err := s.startRedis(); err != nil {
		return nil, err
	}
	for _, start := range []func() error{s.startParts, s.startAdmin, s.lb.start} {
		if err := start(); err != nil {
			return nil, s.nameAddress(err)
		}
	}
	if err := s.awaitReady(); err != nil {
		return nil, err
	}
	return s, nil
}

// startRedis starts the embedded Redis, or looks whether the one to be used is there: the services
// would wait for it.
func (s *Stack) startRedis() (err error) {
	if len(s.cfg.Redis) == 0 {
		s.redis, err = redisdb.StartEmbedded(anyPort)
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	rdb, err := redisdb.Open(ctx, s.redisConfig())
	if err != nil {
		return err
	}
	if err := rdb.Ping(ctx).Err(); err != nil {
		return &config.Error{Key: "redis.addresses", Err: errors.Join(err, rdb.Close())}
	}
	return rdb.Close()
}

func (s *Stack) startParts() error {
	for i := range s.cfg.Backends { // first: the configuration names them
		b := s.newBackendPart(fmt.Sprintf("backend-%d", i+1))
		s.backends = append(s.backends, b)
		if err := b.start(); err != nil {
			return err
		}
	}
	s.mendDocument()
	s.auth = s.newPart("auth", s.anyAddr(), s.newAuth)
	if err := s.auth.start(); err != nil {
		return err
	}
	for i := range s.cfg.Gateways {
		push := s.cfg.Push
		if i > 0 {
			push = s.anyAddr()
		}
		g := s.newGatewayPart(fmt.Sprintf("gateway-%d", i+1), push)
		s.gateways = append(s.gateways, g)
		if err := g.start(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stack) startAdmin() error {
	parts := s.parts()
	readiness := make([]admin.Readiness, len(parts))
	for i, p := range parts {
		readiness[i] = p
	}
	s.admin = admin.New(s.cfg.Admin, s.reg, s.cfg.Log.Named("admin"), readiness...)
	for _, path := range []string{"/api/", "/status", "/status/"} {
		s.admin.Mux().Handle(path, s.lb)
	}
	for _, g := range s.gateways {
		// Each gateway has /api/shed and a readiness of its own, so each gets a prefix of its own: its
		// name for people, the addresses that it is an upstream by for the load balancer.
		for _, prefix := range []string{"/" + g.name, upstreamPages + g.addr, upstreamPages + g.websocket, upstreamPages + g.mqtt} {
			s.admin.Mux().Handle(prefix+"/", http.StripPrefix(prefix, g))
		}
	}
	return s.admin.Start()
}

// upstreamPages begins the paths under which the load balancer finds a gateway's admin pages.
const upstreamPages = "/upstreams/"

// parts are those that have been made, in the order in which they start.
func (s *Stack) parts() []*part {
	var all []*part
	for _, b := range s.backends {
		all = append(all, b.part)
	}
	if s.auth != nil {
		all = append(all, s.auth)
	}
	for _, g := range s.gateways {
		all = append(all, g.part)
	}
	return append(all, s.lb)
}

// nameAddress turns "address already in use" into an error that names the
// setting with that address.
func (s *Stack) nameAddress(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Addr == nil {
		return err
	}
	for _, a := range []struct{ flag, addr string }{
		{"listen", s.cfg.Listen}, {"websocket", s.cfg.WebSocket}, {"mqtt", s.cfg.MQTT}, {"admin", s.cfg.Admin}, {"push", s.cfg.Push},
	} {
		resolved, resolveErr := net.ResolveTCPAddr("tcp", a.addr)
		if resolveErr == nil && resolved.String() == op.Addr.String() {
			return &AddressError{Flag: a.flag, Addr: a.addr, Err: op.Err}
		}
	}
	return err
}

// AddressError is an address of the Config that cannot be listened on.
type AddressError struct {
	Flag string // the field's name in lower case, which is the flag's
	Addr string
	Err  error
}

// Error implements error.
func (e *AddressError) Error() string {
	return fmt.Sprintf("--%s %s: %v", e.Flag, e.Addr, e.Err)
}

// Unwrap implements errors.Unwrap.
func (e *AddressError) Unwrap() error { return e.Err }

// Shutdown drains load balancer and gateways first, then ends the rest. What is not
// done when ctx ends is closed.
func (s *Stack) Shutdown(ctx context.Context) error {
	front := []*part{s.lb}
	for _, g := range s.gateways {
		front = append(front, g.part)
	}
	errs := shutdownAll(ctx, front)
	back := []*part{s.auth}
	for _, b := range s.backends {
		back = append(back, b.part)
	}
	errs = append(errs, shutdownAll(ctx, back)...)
	errs = append(errs, s.admin.Shutdown(ctx))
	if s.redis != nil {
		s.redis.Close()
	}
	return errors.Join(errs...)
}

func shutdownAll(ctx context.Context, parts []*part) []error {
	var wg sync.WaitGroup
	errs := make([]error, len(parts))
	for i, p := range parts {
		wg.Go(func() { errs[i] = p.shutdown(ctx) })
	}
	wg.Wait()
	return errs
}

// Kill ends everything at once, as a crash would look from outside.
func (s *Stack) Kill() {
	parts := s.parts()
	for i := len(parts) - 1; i >= 0; i-- {
		parts[i].kill()
	}
	if s.admin != nil {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.admin.Shutdown(ended)
	}
	if s.redis != nil {
		s.redis.Close()
	}
}

// Addr is where devices connect.
func (s *Stack) Addr() string { return s.lb.addr }

// MQTTAddr is where devices connect that speak MQTT.
func (s *Stack) MQTTAddr() string {
	return s.lb.running().(balancerServer).Server.Addr(mqttListener)
}

// WebSocketAddr is where devices connect by WebSocket.
func (s *Stack) WebSocketAddr() string {
	return s.lb.running().(balancerServer).Server.Addr(websocketListener)
}

// AdminAddr is where the admin server listens.
func (s *Stack) AdminAddr() string { return s.admin.Addr() }

// PushAddr is where the first gateway's push API listens.
func (s *Stack) PushAddr() string { return s.gateways[0].push }

// AuthAddr is where auth-service's HTTP API listens.
func (s *Stack) AuthAddr() string { return s.auth.addr }

// RedisAddrs is where Redis is.
func (s *Stack) RedisAddrs() []string { return s.redisConfig().Addresses }

// CAFile is the development CA's certificate.
func (s *Stack) CAFile() string { return s.paths.CA }

// Gateways is how many gateways there are.
func (s *Stack) Gateways() int { return len(s.gateways) }

// KillGateway ends gateway i at once; StartGateway brings it back at the same
// address. So for the other parts.
func (s *Stack) KillGateway(i int) { s.gateways[i].kill() }

// StartGateway starts gateway i again.
func (s *Stack) StartGateway(i int) error { return s.gateways[i].start() }

// DrainGateway shuts gateway i down as SIGTERM would.
func (s *Stack) DrainGateway(ctx context.Context, i int) error { return s.gateways[i].shutdown(ctx) }

// KillBackend ends backend i at once.
func (s *Stack) KillBackend(i int) { s.backends[i].kill() }

// StartBackend starts backend i again.
func (s *Stack) StartBackend(i int) error { return s.backends[i].start() }

// KillAuth ends auth-service at once.
func (s *Stack) KillAuth() { s.auth.kill() }

// StartAuth starts auth-service again.
func (s *Stack) StartAuth() error { return s.auth.start() }
