package balancer

import (
	"testing"

	"github.com/goshield/goshield/internal/configtest"
)

func TestConfigurationIsDocumented(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Documented(t, "lb", &cfg)
}

func TestConfigurationOfTheComposeFileLoads(t *testing.T) {
	cfg := DefaultConfig()
	if cfg.Rebalance.Enabled {
		t.Error("rebalance.enabled is on by default, want it off: it needs a secret of the gateways'")
	}
	configtest.Example(t, "../../../compose/lb.yaml", &cfg)
	if !cfg.Rebalance.Enabled {
		t.Error("rebalance.enabled is off in the example, want it on")
	}
}
