package balancer

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/config"
)

// load reads a configuration as the process does.
func load(t *testing.T, yaml string, environ ...string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lb.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	err := config.Load(path, environ, &cfg)
	return cfg, err
}

const minimal = "upstreams: {static: ['127.0.0.1:9443']}\n"

func TestBadConfiguration(t *testing.T) {
	for _, tt := range []struct{ yaml, want string }{
		{"", "upstreams: must name upstreams: static, or dns"},
		{"health: {interval: 5ms}\n" + minimal, "health.interval: must be at least 100ms, got 5ms"},
		{"health: {timeout: 1ms}\n" + minimal, "health.timeout: must be at least 10ms, got 1ms"},
		{"health: {rise: 0}\n" + minimal, "health.rise: must be at least 1, got 0"},
		{"health: {fall: -1}\n" + minimal, "health.fall: must be at least 1, got -1"},
		{"health: {slow_start: -1s}\n" + minimal, "health.slow_start: must be at least 0s, got -1s"},
		{"health: {eject_after: -1}\n" + minimal, "health.eject_after: must be at least 0, got -1"},
		{"health: {http: 'ftp://{host}/'}\n" + minimal, `health.http: must be a URL with http, got "ftp://{host}/"`},
		{"health: {http: 'http://{hots}/'}\n" + minimal, `health.http: must be a URL such as http://{host}:9090/readyz, got "http://{hots}/"`},
		{"health: {http: 'http://{host}/', tcp: true}\n" + minimal, "health: must be one of http, tcp, send with expect"},
		{"health: {send: '00'}\n" + minimal, "health.expect: must not be empty where health.send is set"},
		{"health: {expect: 'PONG'}\n" + minimal, `health.expect: must be bytes in hex, got "PONG"`},
		{"algorithm: random\n" + minimal, `algorithm: unknown algorithm "random": must be one of round_robin, least_connections, least_inflight, least_response_time, source_hash`},
		{"max_connections: 0\n" + minimal, "max_connections: must be at least 1, got 0"},
		{"connect_timeout: 0s\n" + minimal, "connect_timeout: must be at least 10ms, got 0s"},
		{"idle_timeout: 1ms\n" + minimal, "idle_timeout: must be at least 100ms, got 1ms"},
		{"per_ip: {connections_per_second: -1}\n" + minimal, "per_ip.connections_per_second: must be at least 0, got -1"},
		{"per_ip: {burst: 5}\n" + minimal, "per_ip.burst: needs per_ip.connections_per_second"},
		{"per_ip: {max_connections: -1}\n" + minimal, "per_ip.max_connections: must be at least 0, got -1"},
		{"listeners: []\n" + minimal, "listeners: must name at least one"},
		{"listeners: [{address: ':1'}]\n" + minimal, "listeners[0].name: must not be empty"},
		{"listeners: [{name: a, address: ':1'}, {name: a, address: ':2'}]\n" + minimal, `listeners[1].name: "a" is taken by another listener`},
		{"listeners: [{name: a, address: '8443'}]\n" + minimal, `listeners[0].address: must be host:port or :port, got "8443"`},
		{"listeners: [{name: a, address: ':84433'}]\n" + minimal, `listeners[0].address: must have a port between 0 and 65535, got ":84433"`},
		{"listeners: [{name: a, address: ':1', port: 70000}]\n" + minimal, "listeners[0].port: must be between 0 and 65535, got 70000"},
		{"listeners: [{name: a, address: ':1', upstreams: {dns: gateway}}]\n", `listeners[0].upstreams.dns: must be host:port, got "gateway"`},
		{"listeners: [{name: a, address: ':1', upstreams: {}}]\n", "listeners[0].upstreams: must name upstreams: static, or dns"},
		{"upstreams: {static: [':9443']}\n", `upstreams.static[0]: must be host:port, got ":9443"`},
		{"upstreams: {static: ['a:1', 'b:0']}\n", `upstreams.static[1]: must have a port between 1 and 65535, got "b:0"`},
		{"upstreams: {static: ['a:1 weight=0']}\n", `upstreams.static[0]: must have a weight between 1 and 256, got "a:1 weight=0"`},
		{"upstreams: {static: ['a:1 wieght=2']}\n", `upstreams.static[0]: must be host:port or host:port weight=3, got "a:1 wieght=2"`},
		{"upstreams: {dns: 'gateway:http'}\n", `upstreams.dns: must have a port between 1 and 65535, got "gateway:http"`},
		{"upstreams: {dns: 'gateway:1', interval: 1ms}\n", "upstreams.interval: must be at least 100ms, got 1ms"},
		{"admin: '9090'\n" + minimal, `admin: must be host:port or :port, got "9090"`},
		{"vip: 10.0.0\n" + minimal, `vip: must be an IP address, got "10.0.0"`},
		{"drain: {window: -1s}\n" + minimal, "drain.window: must be at least 0s, got -1s"},
		{"drain: {window: 10s, timeout: 5s}\n" + minimal, "drain.timeout: must be at least 10s, got 5s"},
	} {
		_, err := load(t, tt.yaml)
		if want := "lb.yaml: " + tt.want; err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", tt.yaml, err, want)
		}
		var ce *config.Error
		if !errors.As(err, &ce) {
			t.Errorf("%s: %T, want a *config.Error", tt.yaml, err)
		}
	}
}

func TestUnknownKeysAreRefused(t *testing.T) {
	for _, yaml := range []string{"heath: {}\n", "health: {intervall: 1s}\n", "listeners: [{name: a, addr: ':1'}]\n"} {
		if _, err := load(t, yaml+minimal); err == nil {
			t.Errorf("%s was accepted", yaml)
		}
	}
}

func TestConfigurationIsRead(t *testing.T) {
	cfg, err := load(t, `
listeners:
  - {name: device, address: "127.0.0.1:1"}
  - {name: own, address: ":2", upstreams: {static: ["[::1]:5 weight=7"]}}
upstreams: {dns: "gateway:8443", interval: 3s}
health: {http: "http://{host}:9090/readyz"}
`, "GOSHIELD_HEALTH_INTERVAL=2s", "GOSHIELD_ALGORITHM=source_hash", "GOSHIELD_UPSTREAMS_STATIC=a:1, b:2 weight=3")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Listeners = []Listener{
		{Name: "device", Address: "127.0.0.1:1"},
		{Name: "own", Address: ":2", Upstreams: &Upstreams{Static: []string{"[::1]:5 weight=7"}}},
	}
	want.Upstreams = Upstreams{Static: []string{"a:1", "b:2 weight=3"}, DNS: "gateway:8443", Interval: 3 * time.Second}
	want.Health.HTTP = "http://{host}:9090/readyz"
	want.Health.Interval = 2 * time.Second
	want.Algorithm = "source_hash"
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("configuration:\n got %+v\nwant %+v", cfg, want)
	}
	if got := cfg.upstreamsOf(cfg.Listeners[1]).Interval; got != 3*time.Second {
		t.Errorf("interval of a listener's own upstreams = %s, want that of all, 3s", got)
	}
}

// Every configuration of a load balancer in the repository loads.
func TestCommittedConfigurations(t *testing.T) {
	var found int
	for _, pattern := range []string{"../*.yaml", "../../../lb*.yaml", "../../../*/lb*.yaml", "../../../*/*/lb*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			found++
			cfg := DefaultConfig()
			if err := config.Load(path, nil, &cfg); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if found == 0 {
		t.Error("no configuration found")
	}
}

func TestBadSecretFile(t *testing.T) {
	cfg := testConfig("127.0.0.1:1")
	cfg.AdminSecretFile = filepath.Join(t.TempDir(), "missing")
	_, err := New(cfg, discard())
	var ce *config.Error
	if !errors.As(err, &ce) || ce.Key != "admin_secret_file" {
		t.Errorf("New = %v, want an error of admin_secret_file", err)
	}
}
