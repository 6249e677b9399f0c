package gateway

import (
	"testing"

	"github.com/goshield/goshield/internal/configtest"
)

func TestConfigurationIsDocumented(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Documented(t, "gateway", &cfg)
}

func TestExampleConfigurationLoads(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Example(t, "../gateway.yaml", &cfg)
}

func TestConfigurationOfTheComposeFileLoads(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Example(t, "../../../compose/gateway.yaml", &cfg)
}
