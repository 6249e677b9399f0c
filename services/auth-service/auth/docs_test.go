package auth

import (
	"testing"

	"github.com/goshield/goshield/internal/configtest"
)

func TestConfigurationIsDocumented(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Documented(t, "auth-service", &cfg)
}

func TestExampleConfigurationLoads(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Example(t, "../auth-service.yaml", &cfg)
}

func TestConfigurationOfTheComposeFileLoads(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Example(t, "../../../compose/auth-service.yaml", &cfg)
}
