package balancer

import (
	"testing"

	"github.com/goshield/goshield/internal/configtest"
)

func TestConfigurationForKubernetesLoads(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Example(t, "../../../deploy/kubernetes/base/config/lb.yaml", &cfg)
}
