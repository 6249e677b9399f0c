package stack

import (
	"syscall"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/auth-service/auth"
	"github.com/goshield/goshield/services/echo-backend/echo"
	"github.com/goshield/goshield/services/gateway/gateway"
	"github.com/goshield/goshield/services/lb/balancer"
)

// How each service is configured: what is said here differs from the
// service's defaults because all run in one process on one machine.

// The load balancer's listeners.
const (
	deviceListener    = "device"
	websocketListener = "websocket"
	mqttListener      = "mqtt"
)

// echoServices are the services that the echo backends answer to, and how they
// are reached: some echo, some push back.
var echoServices = map[string]string{
	"echo": "link", "echo-http": "http", "echo-grpc": "grpc",
	"push": "link", "push-grpc": "grpc",
}

// embeddedTimeout is longer than that for a Redis of its own: one in this
// process is slow only when the whole process is, and then giving up and asking
// again would make it slower.
const embeddedTimeout = time.Second

func (s *Stack) redisConfig() redisdb.Config {
	cfg := redisdb.DefaultConfig()
	cfg.Addresses = s.cfg.Redis
	if s.redis != nil {
		cfg = s.redis.Config()
		cfg.Timeout = embeddedTimeout
	}
	if s.cfg.RedisTimeout != 0 {
		cfg.Timeout, cfg.DialTimeout = s.cfg.RedisTimeout, s.cfg.RedisTimeout
	}
	return cfg
}

func (s *Stack) newAuth(addr string, deps service.Deps) (server, error) {
	cfg := auth.DefaultConfig()
	cfg.Listen = addr
	cfg.Redis = s.redisConfig()
	cfg.GatewaySecretFile = s.secrets.Gateway
	cfg.AdminSecretFile = s.secrets.Admin
	cfg.GroupKeyFile = s.secrets.GroupKey
	cfg.Guessing.PerAddress = 0 // all traffic of one machine comes from one address
	cfg.Defaults = s.document()
	cfg.Drain.Timeout = s.cfg.DrainTimeout
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return auth.New(cfg, deps)
}

// backendPart is a backend with the addresses that it keeps over restarts.
type backendPart struct {
	*part
	http, grpc string
}

func (s *Stack) newBackendPart(name string) *backendPart {
	b := &backendPart{http: s.anyAddr(), grpc: s.anyAddr()}
	b.part = s.newPart(name, s.anyAddr(), func(addr string, deps service.Deps) (server, error) {
		cfg := echo.DefaultConfig()
		cfg.Listen, cfg.HTTP, cfg.GRPC = addr, b.http, b.grpc
		cfg.SecretFile = s.secrets.Backend
		if err := cfg.Validate(); err != nil {
			return nil, err
		}
		return echo.New(cfg, deps)
	})
	return b
}

// start shadows part.start to keep the other addresses too.
func (b *backendPart) start() error {
	if err := b.part.start(); err != nil {
		return err
	}
	srv := b.server.(*echo.Server)
	b.http, b.grpc = srv.HTTPAddr(), srv.GRPCAddr()
	return nil
}

// address is where the backend is reached by a protocol.
func (b *backendPart) address(protocol string) string {
	switch protocol {
	case "http":
		return b.http
	case "grpc":
		return b.grpc
	}
	return b.addr
}

// document is the dynamic configuration with the echo services, unless it has services of those
// names, at the backends that run.
func (s *Stack) document() dynamic.Document {
	doc := s.cfg.Document
	doc.Services = map[string]dynamic.Service{}
	for name, svc := range s.cfg.Document.Services {
		doc.Services[name] = svc
	}
	for name, protocol := range echoServices {
		svc := doc.Services[name]
		if len(svc.Endpoints) > 0 || svc.DNS != "" {
			continue
		}
		svc.Protocol = protocol
		for _, b := range s.backends {
			svc.Endpoints = append(svc.Endpoints, b.address(protocol))
		}
		doc.Services[name] = svc
	}
	return doc
}

// gatewayPart is a gateway with the addresses that it keeps over restarts.
type gatewayPart struct {
	*part
	websocket, mqtt, push string
}

func (s *Stack) newGatewayPart(name, push string) *gatewayPart {
	g := &gatewayPart{websocket: s.anyAddr(), mqtt: s.anyAddr(), push: push}
	g.part = s.newPart(name, s.anyAddr(), func(addr string, deps service.Deps) (server, error) {
		cfg := gateway.DefaultConfig()
		cfg.Node = name
		cfg.Listen, cfg.WebSocket, cfg.MQTT, cfg.Push = addr, g.websocket, g.mqtt, g.push
		cfg.WebSocketPage = true
		cfg.TLS.Cert, cfg.TLS.Key, cfg.TLS.TicketKeysFile = s.paths.Server, s.paths.ServerKey, s.secrets.TicketKeys
		if s.cfg.Document.Enrolment == dynamic.EnrolMTLS {
			cfg.TLS.ClientCA = s.paths.CA
		}
		cfg.TrustedProxies = []string{"127.0.0.0/8", "::1/128"}
		cfg.Auth.URL = "http://" + s.authOf(name)
		cfg.Auth.SecretFile = s.secrets.Gateway
		cfg.PushSecretFile = s.secrets.Push
		cfg.AdminSecretFile = s.secrets.Admin
		cfg.Backend.SecretFile = s.secrets.Backend
		cfg.Redis = s.redisConfig()
		cfg.Drain = gateway.Drain{Window: s.cfg.DrainWindow, Timeout: s.cfg.DrainTimeout}
		cfg.Defaults = s.document()
		if err := cfg.Validate(); err != nil {
			return nil, err
		}
		return gateway.New(cfg, deps)
	})
	return g
}

// authOf is where a gateway finds auth-service.
func (s *Stack) authOf(gateway string) string {
	if s.cfg.authFor != nil {
		return s.cfg.authFor(gateway, s.auth.addr)
	}
	return s.auth.addr
}

// start shadows part.start to keep the other addresses too.
func (g *gatewayPart) start() error {
	if err := g.part.start(); err != nil {
		return err
	}
	srv := g.server.(*gateway.Server)
	g.websocket, g.mqtt, g.push = srv.WebSocketAddr(), srv.MQTTAddr(), srv.PushAddr()
	return nil
}

// balancerServer gives a load balancer the one address that a part has: its
// first listener's.
type balancerServer struct{ *balancer.Server }

// Addr is where devices connect.
func (b balancerServer) Addr() string { return b.Server.Addr(deviceListener) }

// maxConnections is how many devices the descriptors of this process suffice
// for: each takes two at the balancer and one at its gateway. An eighth is for
// connections that one of them has given up and the other not yet.
func maxConnections(wanted int) int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return wanted
	}
	return min(wanted, connectionsWithin(int(min(limit.Cur, 1<<30))))
}

// connectionsWithin is maxConnections for so many descriptors.
func connectionsWithin(descriptors int) int {
	const each, others = 3, 512
	return max(descriptors-descriptors/8-others, each) / each
}

func (s *Stack) newBalancer(addr string, deps service.Deps) (server, error) {
	cfg := s.balancerConfig(addr)
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	srv, err := balancer.New(cfg, deps)
	if err != nil {
		return nil, err
	}
	return balancerServer{srv}, nil
}

func (s *Stack) balancerConfig(addr string) balancer.Config {
	cfg := balancer.DefaultConfig()
	var websockets, mqtts balancer.Upstreams
	for _, g := range s.gateways {
		cfg.Upstreams.Static = append(cfg.Upstreams.Static, g.addr)
		websockets.Static = append(websockets.Static, g.websocket)
		mqtts.Static = append(mqtts.Static, g.mqtt)
	}
	cfg.Listeners = []balancer.Listener{
		{Name: deviceListener, Address: addr},
		{Name: websocketListener, Address: s.cfg.WebSocket, Upstreams: &websockets},
		{Name: mqttListener, Address: s.cfg.MQTT, Upstreams: &mqtts},
	}
	cfg.AdminSecretFile = s.secrets.Admin
	cfg.MaxConnections = maxConnections(cfg.MaxConnections)
	cfg.PerIP = s.cfg.PerIP
	cfg.Health.HTTP = "http://" + s.admin.Addr() + upstreamPages + "{addr}/readyz"
	cfg.Health.SlowStart = 0
	cfg.Rebalance.Enabled = s.cfg.Rebalance
	cfg.Drain = balancer.Drain{Window: 0, Timeout: s.cfg.DrainTimeout + s.cfg.DrainWindow}
	return cfg
}
