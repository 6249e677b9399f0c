package gateway

import (
	"errors"
	"strings"
	"testing"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
)

// An admin address that is none would bind a port that nobody knows.
func TestAdminAddressIsChecked(t *testing.T) {
	w := newWorld(t, testDoc())
	for _, addr := range []string{"", "9090", "127.0.0.1:"} {
		_, err := w.tryGateway("gw-1", func(cfg *Config, _ *timings) { cfg.Admin = addr })
		var e *config.Error
		if !errors.As(err, &e) || e.Key != "admin" || !strings.Contains(err.Error(), ":9090") {
			t.Errorf("admin %q: error = %v, want one that names the key and an example", addr, err)
		}
	}
}

// A backend's address that is none is found by --check-config, not by a gateway that starts.
func TestDefaultsAreChecked(t *testing.T) {
	w := newWorld(t, testDoc())
	for key, svc := range map[string]dynamic.Service{
		"defaults.services.echo.endpoints": {Endpoints: []string{"localhost"}},
		"defaults.services.echo.dns":       {DNS: "echo-backend"},
	} {
		cfg := w.config("gw-1")
		cfg.Defaults.Services = map[string]dynamic.Service{"echo": svc}
		var e *config.Error
		if err := cfg.Validate(); !errors.As(err, &e) || e.Key != key {
			t.Errorf("error = %v, want one that names %s", err, key)
		}
	}
}

// `goshield config` goes by this before it has devices show certificates.
func TestNodeSaysThatItHasNoClientCA(t *testing.T) {
	w := newWorld(t, testDoc())
	w.write("devices.pem", w.ca.PEM())
	with := w.gateway("gw-with", func(cfg *Config, _ *timings) { cfg.TLS.ClientCA = w.path("devices.pem") })
	w.gateway("gw-without", nil)
	awaitNodes(t, with, "gw-with", "gw-without")
	for name, want := range map[string]bool{"gw-with": false, "gw-without": true} {
		if node, err := with.registry.Lookup(t.Context(), name); err != nil || node.NoClientCA != want {
			t.Errorf("%s: %+v, %v, want no_client_ca %v", name, node, err, want)
		}
	}
}
