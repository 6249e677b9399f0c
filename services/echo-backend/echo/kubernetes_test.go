package echo

import (
	"testing"

	"github.com/goshield/goshield/internal/configtest"
)

func TestConfigurationForKubernetesLoads(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Example(t, "../../../deploy/kubernetes/base/config/echo-backend.yaml", &cfg)
}
