package balancer

import (
	"testing"

	"github.com/goshield/goshield/internal/configtest"
)

func TestConfigurationForKubernetesLoads(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Example(t, "../../../deploy/kubernetes/base/config/lb.yaml", &cfg)
	if !cfg.Rebalance.Enabled {
		t.Error("rebalance.enabled is off in the example, want it on")
	}
}
