package gateway

import (
	"errors"
	"strings"
	"testing"

	"github.com/goshield/goshield/internal/config"
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
