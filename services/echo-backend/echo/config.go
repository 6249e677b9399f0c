package echo

import (
	"net"
	"time"

	"github.com/goshield/goshield/internal/config"
)

// Config is the echo backend's configuration, with the keys of its file. Start
// from DefaultConfig.
type Config struct {
	Listen      string        `yaml:"listen"`       // for gateways' links
	HTTP        string        `yaml:"http"`         // for gateways' HTTP; "": not served
	GRPC        string        `yaml:"grpc"`         // for gateways' gRPC; "": not served
	Admin       string        `yaml:"admin"`        // address of the admin server, which whoever starts the Server runs
	SecretFile  string        `yaml:"secret_file"`  // what gateways have to show
	Delay       time.Duration `yaml:"delay"`        // before each answer
	FailureRate float64       `yaml:"failure_rate"` // this part of the requests, 0 to 1, is answered backend_error
}

// DrainTimeout is how long Shutdown should be given: more than any gateway waits for an
// answer by default.
const DrainTimeout = 10 * time.Second

// DefaultConfig is the configuration where nothing else is said. It lacks the
// secret's file.
func DefaultConfig() Config {
	return Config{Listen: ":9000", HTTP: ":9001", GRPC: ":9002", Admin: ":9090"}
}

// Validate checks every value. The error is a *config.Error that names the key.
func (c Config) Validate() error {
	for _, a := range []struct{ key, address string }{{"listen", c.Listen}, {"http", c.HTTP}, {"grpc", c.GRPC}, {"admin", c.Admin}} {
		if a.address == "" && (a.key == "http" || a.key == "grpc") {
			continue
		}
		if _, _, err := net.SplitHostPort(a.address); err != nil {
			return config.Errorf(a.key, "must be an address of the form host:port or :port, got %q", a.address)
		}
	}
	switch {
	case c.SecretFile == "":
		return config.Errorf("secret_file", "must name the file with the gateways' secret")
	case c.Delay < 0 || c.Delay > 10*time.Minute:
		return config.Errorf("delay", "must be from 0s to 10m, got %v", c.Delay)
	case !(c.FailureRate >= 0 && c.FailureRate <= 1):
		return config.Errorf("failure_rate", "must be from 0 to 1, got %v", c.FailureRate)
	}
	return nil
}
