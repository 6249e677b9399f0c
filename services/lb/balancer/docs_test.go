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
	configtest.Example(t, "../../../compose/lb.yaml", &cfg)
}
