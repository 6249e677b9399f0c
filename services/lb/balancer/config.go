package balancer

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/health"
)

// Config is the load balancer's configuration, with the keys of its file.
// Start from DefaultConfig.
type Config struct {
	Listeners       []Listener    `yaml:"listeners"`
	Admin           string        `yaml:"admin"`             // address of the admin server, which whoever starts the Server runs
	AdminSecretFile string        `yaml:"admin_secret_file"` // "": the admin API is for reading only
	Algorithm       string        `yaml:"algorithm"`         // see package balance
	ProxyProtocol   bool          `yaml:"proxy_protocol"`    // begin each upstream connection with a PROXY v2 header
	MaxConnections  int           `yaml:"max_connections"`   // at once, over all listeners
	ConnectTimeout  time.Duration `yaml:"connect_timeout"`   // of one attempt
	IdleTimeout     time.Duration `yaml:"idle_timeout"`      // without a byte in either direction
	PerIP           PerIP         `yaml:"per_ip"`
	Upstreams       Upstreams     `yaml:"upstreams"` // of listeners without their own
	Health          Health        `yaml:"health"`
	Rebalance       Rebalance     `yaml:"rebalance"`
	VIP             string        `yaml:"vip"` // exported as goshield_keepalived_master when it is on a local interface; when it leaves, its connections are reset
	Drain           Drain         `yaml:"drain"`
}

// Listener is one address that clients connect to.
type Listener struct {
	Name      string     `yaml:"name"` // a metric's label
	Address   string     `yaml:"address"`
	Port      int        `yaml:"port"`      // at the upstream; 0: the upstream's own
	Upstreams *Upstreams `yaml:"upstreams"` // nil: those that all share
}

// PerIP limits each client address; an IPv6 client is its /64. 0: no limit.
type PerIP struct {
	ConnectionsPerSecond float64 `yaml:"connections_per_second"`
	Burst                int     `yaml:"burst"` // new connections at once; 0: one second's worth
	MaxConnections       int     `yaml:"max_connections"`
}

// Upstreams says where connections can go.
type Upstreams struct {
	Static   []string      `yaml:"static"`   // "host:port" or "host:port weight=3"
	DNS      string        `yaml:"dns"`      // "name:port": every address behind the name
	Interval time.Duration `yaml:"interval"` // between resolutions; a listener's own: 0 is that of all
}

// Health says how upstreams are checked: with http, or send and expect, or by
// connecting (tcp, the default).
type Health struct {
	HTTP       string        `yaml:"http"` // a URL; {host} and {addr} stand for the upstream's
	TCP        bool          `yaml:"tcp"`
	Send       string        `yaml:"send"`   // bytes in hex
	Expect     string        `yaml:"expect"` // bytes in hex with which the answer begins
	Interval   time.Duration `yaml:"interval"`
	Timeout    time.Duration `yaml:"timeout"`
	Rise       int           `yaml:"rise"`
	Fall       int           `yaml:"fall"`
	SlowStart  time.Duration `yaml:"slow_start"`  // until an upstream that came up gets its whole share
	EjectAfter int           `yaml:"eject_after"` // connect failures in a row; 0: never
}

// Rebalance says whether gateways are asked to send devices away: when some have more than their share, and
// before this process ends. They are asked where health.http finds them, with the first secret of
// admin_secret_file.
type Rebalance struct {
	Enabled bool `yaml:"enabled"`
	Pace    int  `yaml:"pace"` // connections a second that are asked to move
}

// Drain says how Shutdown goes: for Window, or until the last connection has
// ended but at least for a few seconds, new connections are still
// taken, while readiness says that they should go elsewhere. Then the listeners
// close, and what is left may end until Timeout after the beginning.
type Drain struct {
	Window  time.Duration `yaml:"window"`
	Timeout time.Duration `yaml:"timeout"`
}

// DefaultConfig is what holds where the file says nothing. It lacks upstreams.
func DefaultConfig() Config {
	return Config{
		Listeners:      []Listener{{Name: "device", Address: ":8443"}},
		Admin:          ":9090",
		Algorithm:      balance.RoundRobin,
		ProxyProtocol:  true,
		MaxConnections: 50_000,
		ConnectTimeout: 2 * time.Second,
		IdleTimeout:    10 * time.Minute,
		Upstreams:      Upstreams{Interval: time.Second},
		Health: Health{
			Interval:   time.Second,
			Timeout:    500 * time.Millisecond,
			Rise:       2,
			Fall:       3,
			SlowStart:  10 * time.Second,
			EjectAfter: 5,
		},
		Rebalance: Rebalance{Pace: 50},
		Drain:     Drain{Window: 30 * time.Second, Timeout: 50 * time.Second},
	}
}

// Validate returns the first value that cannot be used, as a *config.Error.
func (c Config) Validate() error {
	checks := []func() error{
		c.validateListeners,
		func() error { return checkAddress("admin", c.Admin) },
		func() error {
			if _, err := balance.New(c.Algorithm); err != nil {
				return config.Errorf("algorithm", "%w", err)
			}
			return nil
		},
		func() error { return atLeast("max_connections", c.MaxConnections, 1) },
		func() error { return atLeast("connect_timeout", c.ConnectTimeout, 10*time.Millisecond) },
		func() error { return atLeast("idle_timeout", c.IdleTimeout, 100*time.Millisecond) },
		c.PerIP.validate,
		c.validateUpstreams,
		c.Health.validate,
		c.validateRebalance,
		c.validateVIP,
		func() error { return atLeast("drain.window", c.Drain.Window, 0) },
		func() error { return atLeast("drain.timeout", c.Drain.Timeout, c.Drain.Window) },
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// atLeast is the message that all lower bounds share.
func atLeast[T int | float64 | time.Duration](key string, got, least T) error {
	if got < least {
		return config.Errorf(key, "must be at least %v, got %v", least, got)
	}
	return nil
}

func (c Config) validateListeners() error {
	if len(c.Listeners) == 0 {
		return config.Errorf("listeners", "must name at least one")
	}
	names := map[string]bool{}
	for i, l := range c.Listeners {
		key := fmt.Sprintf("listeners[%d].", i)
		switch {
		case l.Name == "":
			return config.Errorf(key+"name", "must not be empty")
		case names[l.Name]:
			return config.Errorf(key+"name", "%q is taken by another listener", l.Name)
		case l.Port < 0 || l.Port > 65535:
			return config.Errorf(key+"port", "must be between 0 and 65535, got %d", l.Port)
		}
		names[l.Name] = true
		if err := checkAddress(key+"address", l.Address); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) validateUpstreams() error {
	shared := false
	for i, l := range c.Listeners {
		if l.Upstreams == nil {
			shared = true
			continue
		}
		if err := c.upstreamsOf(l).validate(fmt.Sprintf("listeners[%d].upstreams", i)); err != nil {
			return err
		}
	}
	if !shared && len(c.Upstreams.Static) == 0 && c.Upstreams.DNS == "" {
		return nil // each listener has its own
	}
	return c.Upstreams.validate("upstreams")
}

// upstreamsOf is where a listener's connections can go.
func (c Config) upstreamsOf(l Listener) Upstreams {
	if l.Upstreams == nil {
		return c.Upstreams
	}
	own := *l.Upstreams
	if own.Interval == 0 {
		own.Interval = c.Upstreams.Interval
	}
	return own
}

func (u Upstreams) validate(key string) error {
	if len(u.Static) == 0 && u.DNS == "" {
		return config.Errorf(key, "must name upstreams: static, or dns")
	}
	for i, s := range u.Static {
		if _, _, err := parseStatic(s); err != nil {
			return config.Errorf(fmt.Sprintf("%s.static[%d]", key, i), "%w", err)
		}
	}
	if u.DNS != "" {
		if _, err := parseEndpoint(u.DNS); err != nil {
			return config.Errorf(key+".dns", "%w", err)
		}
	}
	return atLeast(key+".interval", u.Interval, 100*time.Millisecond)
}

func (p PerIP) validate() error {
	if err := atLeast("per_ip.connections_per_second", p.ConnectionsPerSecond, 0); err != nil {
		return err
	}
	if err := atLeast("per_ip.burst", p.Burst, 0); err != nil {
		return err
	}
	if p.Burst > 0 && p.ConnectionsPerSecond == 0 {
		return config.Errorf("per_ip.burst", "needs per_ip.connections_per_second")
	}
	return atLeast("per_ip.max_connections", p.MaxConnections, 0)
}

func (h Health) validate() error {
	exchange := h.Send != "" || h.Expect != ""
	kinds := 0
	for _, set := range []bool{h.HTTP != "", exchange, h.TCP} {
		if set {
			kinds++
		}
	}
	if kinds > 1 {
		return config.Errorf("health", "must be one of http, tcp, send with expect")
	}
	if h.HTTP != "" {
		if err := health.CheckTemplate(h.HTTP); err != nil {
			return config.Errorf("health.http", "%w", err)
		}
	}
	if exchange && h.Expect == "" {
		return config.Errorf("health.expect", "must not be empty where health.send is set")
	}
	for key, text := range map[string]string{"health.send": h.Send, "health.expect": h.Expect} {
		if _, err := hex.DecodeString(text); err != nil {
			return config.Errorf(key, "must be bytes in hex, got %q", text)
		}
	}
	for _, err := range []error{
		atLeast("health.interval", h.Interval, 100*time.Millisecond),
		atLeast("health.timeout", h.Timeout, 10*time.Millisecond),
		atLeast("health.rise", h.Rise, 1),
		atLeast("health.fall", h.Fall, 1),
		atLeast("health.slow_start", h.SlowStart, 0),
		atLeast("health.eject_after", h.EjectAfter, 0),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func (c Config) validateRebalance() error {
	switch {
	case !c.Rebalance.Enabled:
	case c.Health.HTTP == "":
		return config.Errorf("rebalance.enabled", "needs health.http, beside which gateways are asked")
	case c.AdminSecretFile == "":
		return config.Errorf("rebalance.enabled", "needs admin_secret_file, with a secret of the gateways'")
	case c.Algorithm == balance.SourceHash:
		return config.Errorf("rebalance.enabled", "cannot be with algorithm source_hash, which gives each client one place")
	}
	return atLeast("rebalance.pace", c.Rebalance.Pace, 1)
}

func (c Config) validateVIP() error {
	if c.VIP == "" {
		return nil
	}
	if _, err := netip.ParseAddr(c.VIP); err != nil {
		return config.Errorf("vip", "must be an IP address, got %q", c.VIP)
	}
	return nil
}

func checkAddress(key, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return config.Errorf(key, "must be host:port or :port, got %q", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return config.Errorf(key, "must have a port between 0 and 65535, got %q", addr)
	}
	return nil
}

// endpoint is a host, by name or address, and a port.
type endpoint struct {
	host string
	port uint16
}

func (e endpoint) String() string { return net.JoinHostPort(e.host, strconv.Itoa(int(e.port))) }

func parseEndpoint(text string) (endpoint, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" {
		return endpoint{}, fmt.Errorf("must be host:port, got %q", text)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return endpoint{}, fmt.Errorf("must have a port between 1 and 65535, got %q", text)
	}
	return endpoint{host: host, port: uint16(n)}, nil
}

// parseStatic reads "host:port" or "host:port weight=3".
func parseStatic(text string) (e endpoint, weight int, err error) {
	fields := strings.Fields(text)
	if len(fields) == 0 || len(fields) > 2 {
		return e, 0, fmt.Errorf("must be host:port or host:port weight=3, got %q", text)
	}
	if e, err = parseEndpoint(fields[0]); err != nil {
		return e, 0, err
	}
	if len(fields) == 1 {
		return e, 1, nil
	}
	value, ok := strings.CutPrefix(fields[1], "weight=")
	if !ok {
		return e, 0, fmt.Errorf("must be host:port or host:port weight=3, got %q", text)
	}
	weight, err = strconv.Atoi(value)
	if err != nil || weight < 1 || weight > balance.MaxWeight {
		return e, 0, fmt.Errorf("must have a weight between 1 and %d, got %q", balance.MaxWeight, text)
	}
	return e, weight, nil
}
