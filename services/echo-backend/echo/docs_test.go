package echo

import (
	"testing"

	"github.com/goshield/goshield/internal/configtest"
)

func TestConfigurationIsDocumented(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Documented(t, "echo-backend", &cfg)
}

func TestConfigurationOfTheComposeFileLoads(t *testing.T) {
	cfg := DefaultConfig()
	configtest.Example(t, "../../../compose/echo-backend.yaml", &cfg)
}
