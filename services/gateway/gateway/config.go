package gateway

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
)

// Config is what a gateway must know before it reaches Redis. Everything that may change while
// devices are connected is in Defaults, the dynamic document in force while
// Redis has none.
type Config struct {
	Listen    string `yaml:"listen"`    // devices: TLS, or plain TCP with tls.mode off
	WebSocket string `yaml:"websocket"` // devices by WebSocket; "": none
	// WebSocketOrigins are the hosts, as patterns of path.Match, whose pages may connect besides the
	// host that is connected to.
	WebSocketOrigins []string `yaml:"websocket_origins"`
	WebSocketPage    bool     `yaml:"websocket_page"` // true: its "/" is a page with which a browser becomes a device
	MQTT             string   `yaml:"mqtt"`           // devices that speak MQTT; "": none
	Push             string   `yaml:"push"`           // the push API; "": none, and no takeover across gateways
	Admin            string   `yaml:"admin"`          // the process's admin server
	// Advertise is the host under which other gateways reach Push and Admin where those name none; "": the
	// address of this machine on the network towards Redis.
	Advertise string `yaml:"advertise"`

	TLS            TLS      `yaml:"tls"`
	TrustedProxies []string `yaml:"trusted_proxies"` // CIDRs; set: every connection must bring a PROXY v2 header from one of them

	Auth            Auth           `yaml:"auth"`
	PushSecretFile  string         `yaml:"push_secret_file"`
	AdminSecretFile string         `yaml:"admin_secret_file"` // "": no /api/shed
	Backend         Backend        `yaml:"backend"`
	Redis           redisdb.Config `yaml:"redis"`

	Node     string           `yaml:"node"` // this gateway's name, unique among them; no "/"
	Drain    Drain            `yaml:"drain"`
	Defaults dynamic.Document `yaml:"defaults"`
}

// TLS is how devices are served. The files are read again when they change.
type TLS struct {
	Mode string `yaml:"mode"` // on or off
	Cert string `yaml:"cert"` // PEM: the certificate and its chain
	Key  string `yaml:"key"`
	// ClientCA, PEM, signs the certificates that devices enrol with in mode mtls. Set: a device may show
	// one.
	ClientCA string `yaml:"client_ca"`
	// TicketKeysFile holds the keys of session tickets, the same for all gateways: one a line, 64 hex digits, the first in
	// use, all accepted. "": a device resumes its TLS session at the same gateway only.
	TicketKeysFile string `yaml:"ticket_keys_file"`
	// ChannelBinding is what a proof of the device key is bound to on the listener for devices: the TLS
	// connection, or nothing, for clients that cannot read an exporter. WebSocket and plain
	// TCP have nothing to bind to in any case.
	ChannelBinding string `yaml:"channel_binding"` // "": tls-exporter; or none
}

// Auth is where auth-service is: http(s)://host:port; every address behind the host is used.
type Auth struct {
	URL        string `yaml:"url"`
	SecretFile string `yaml:"secret_file"`
}

// Backend is what backends are shown, and how they are reached.
type Backend struct {
	SecretFile string     `yaml:"secret_file"`
	TLS        BackendTLS `yaml:"tls"`
}

// BackendTLS is for links over TLS, of all services. The files are PEM.
type BackendTLS struct {
	Enabled    bool   `yaml:"enabled"`
	CA         string `yaml:"ca"`          // who signs backends' certificates; "": the system's. Read again when it changes
	Cert       string `yaml:"cert"`        // shown to backends; "": none. Read for each link
	Key        string `yaml:"key"`         // of Cert
	ServerName string `yaml:"server_name"` // in backends' certificates; "": the host of each endpoint, or of the service's DNS name
}

// Drain is how a gateway leaves: devices are asked to go over the window, and
// what is left at the timeout is closed.
type Drain struct {
	Window  time.Duration `yaml:"window"`
	Timeout time.Duration `yaml:"timeout"`
}

// The values of TLS.Mode.
const (
	tlsOn  = "on"
	tlsOff = "off"
)

// The values of TLS.ChannelBinding; the first is RFC 9266's name.
const (
	bindingExporter = "tls-exporter"
	bindingNone     = "none"
)

// DefaultConfig is the configuration where a file says nothing else. Secrets
// and certificates have no default.
func DefaultConfig() Config {
	host, err := os.Hostname()
	if err != nil {
		host = "" // Validate asks for a name
	}
	return Config{
		Listen:    ":8443",
		WebSocket: ":8444",
		MQTT:      ":8883",
		Push:      ":9400",
		Admin:     ":9090",
		TLS:       TLS{Mode: tlsOn, ChannelBinding: bindingExporter},
		Auth:      Auth{URL: "http://127.0.0.1:8000"},
		Redis:     redisdb.DefaultConfig(),
		Node:      host,
		Drain:     Drain{Window: 20 * time.Second, Timeout: 40 * time.Second},
		Defaults:  dynamic.Default(),
	}
}

// Validate checks every value. The error is a *config.Error that names the key.
func (c *Config) Validate() error {
	checks := []struct {
		key  string
		ok   bool
		want string
	}{
		{"listen", isAddress(c.Listen), "must be an address such as :8443"},
		{"websocket", c.WebSocket == "" || isAddress(c.WebSocket), "must be an address such as :8444, or empty"},
		{"mqtt", c.MQTT == "" || isAddress(c.MQTT), "must be an address such as :8883, or empty"},
		{"push", c.Push == "" || isAddress(c.Push), "must be an address such as :9400, or empty"},
		{"admin", isAddress(c.Admin), "must be an address such as :9090"},
		{"tls.mode", c.TLS.Mode == tlsOn || c.TLS.Mode == tlsOff, `must be "on" or "off"`},
		{"tls.cert", c.TLS.Mode == tlsOff || c.TLS.Cert != "", "name the certificate's file"},
		{"tls.key", c.TLS.Mode == tlsOff || c.TLS.Key != "", "name the key's file"},
		{"tls.channel_binding", c.TLS.ChannelBinding == "" || c.TLS.ChannelBinding == bindingExporter || c.TLS.ChannelBinding == bindingNone, `must be "tls-exporter" or "none"`},
		{"tls.client_ca", c.TLS.ClientCA == "" || c.TLS.Mode == tlsOn, "needs tls.mode on"},
		{"tls.client_ca", c.TLS.ClientCA != "" || c.Defaults.Enrolment != dynamic.EnrolMTLS, "must be set where enrolment is mtls"},
		{"tls.ticket_keys_file", c.TLS.TicketKeysFile == "" || c.TLS.Mode == tlsOn, "needs tls.mode on"},
		{"auth.url", c.Auth.URL != "", "name auth-service: http://host:8000"},
		{"auth.secret_file", c.Auth.SecretFile != "", "name the file with the gateways' secret"},
		{"push_secret_file", c.Push == "" || c.PushSecretFile != "", "name the file with the push API's secret"},
		{"backend.secret_file", c.Backend.SecretFile != "", "name the file with the backends' secret"},
		{"backend.tls.cert", (c.Backend.TLS.Cert == "") == (c.Backend.TLS.Key == ""), "cert and key belong together"},
		{"backend.tls.enabled", c.Backend.TLS.Enabled || c.Backend.TLS == BackendTLS{}, "must be true where tls has other keys"},
		{"node", c.Node != "" && !strings.ContainsAny(c.Node, "/ \t\n"), `must be a name without "/" and spaces`},
		{"drain.window", c.Drain.Window >= 0, "must not be negative"},
		{"drain.timeout", c.Drain.Timeout > c.Drain.Window, "must be longer than drain.window"},
	}
	for _, k := range checks {
		if !k.ok {
			return config.Errorf(k.key, "%s", k.want)
		}
	}
	if _, err := c.trustedProxies(); err != nil {
		return err
	}
	if err := c.Redis.Validate(); err != nil {
		return err
	}
	if err := c.Defaults.Validate(); err != nil {
		return prefixed("defaults", err)
	}
	return nil
}

func isAddress(a string) bool {
	_, port, err := net.SplitHostPort(a)
	return err == nil && port != ""
}

// prefixed puts a key before the key that an error names.
func prefixed(key string, err error) error {
	var e *config.Error
	if errors.As(err, &e) {
		return &config.Error{Key: key + "." + e.Key, Err: e.Err}
	}
	return &config.Error{Key: key, Err: err}
}

// trustedProxies are the CIDRs; a bare address stands for itself.
func (c *Config) trustedProxies() ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(c.TrustedProxies))
	for _, text := range c.TrustedProxies {
		p, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, config.Errorf("trusted_proxies", "%q is no CIDR such as 10.0.0.0/8", text)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, nil
}

// advertised is addr as others reach it: a host that means "every address" is
// replaced by c.Advertise, or by this machine's address towards Redis.
func (c *Config) advertised(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); host != "" && (err != nil || !ip.IsUnspecified()) {
		return addr
	}
	if c.Advertise != "" {
		return net.JoinHostPort(c.Advertise, port)
	}
	// A UDP socket that is "connected" sends nothing, and has the address that
	// packets to that peer would carry.
	probe, err := net.DialTimeout("udp", c.Redis.Addresses[0], time.Second)
	if err != nil {
		return net.JoinHostPort(c.Node, port)
	}
	defer probe.Close()
	return net.JoinHostPort(probe.LocalAddr().(*net.UDPAddr).IP.String(), port)
}
