package auth

import (
	"errors"
	"time"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/services/auth-service/guess"
)

// Config is auth-service's configuration.
type Config struct {
	Listen            string           `yaml:"listen"`              // the HTTP API
	Admin             string           `yaml:"admin"`               // metrics and health
	Redis             redisdb.Config   `yaml:"redis"`               //
	GatewaySecretFile string           `yaml:"gateway_secret_file"` // for tokens and sessions
	AdminSecretFile   string           `yaml:"admin_secret_file"`   // for everything; "": nothing is administered
	GroupKeyFile      string           `yaml:"group_key_file"`      // 64 hex digits; for enrolment by key
	Guessing          guess.Limits     `yaml:"guessing"`            // wrong tokens and proofs a minute
	MaxTakeovers      int              `yaml:"max_takeovers"`       // of one device, a minute; 0: any number
	MaxInFlight       int              `yaml:"max_in_flight"`       // requests worked on at once; four times as many wait
	Defaults          dynamic.Document `yaml:"defaults"`            // token and enrolment of it apply
	Drain             Drain            `yaml:"drain"`
}

// Drain is how long requests under way have to finish at the end.
type Drain struct {
	Timeout time.Duration `yaml:"timeout"`
}

// DefaultConfig is complete but for gateway_secret_file.
func DefaultConfig() Config {
	return Config{
		Listen:       ":8000",
		Admin:        ":9090",
		Redis:        redisdb.DefaultConfig(),
		Guessing:     guess.DefaultLimits(),
		MaxTakeovers: 15,
		MaxInFlight:  256,
		Defaults:     dynamic.Default(),
		Drain:        Drain{Timeout: 10 * time.Second},
	}
}

// Validate checks every value; the error is a *config.Error.
func (c *Config) Validate() error {
	if err := c.Redis.Validate(); err != nil {
		return err
	}
	if err := c.Defaults.Validate(); err != nil {
		if ce := (*config.Error)(nil); errors.As(err, &ce) {
			return &config.Error{Key: "defaults." + ce.Key, Err: ce.Err}
		}
		return err
	}
	checks := []struct {
		key  string
		ok   bool
		want string
	}{
		{"listen", c.Listen != "", "must be set"},
		{"admin", c.Admin != "", "must be set"},
		{"gateway_secret_file", c.GatewaySecretFile != "", "must be set"},
		{"group_key_file", c.GroupKeyFile != "" || c.Defaults.Enrolment != dynamic.EnrolKey, "must be set where enrolment is key"},
		{"guessing.per_pair", c.Guessing.PerPair >= 0, "must not be negative"},
		{"guessing.per_address", c.Guessing.PerAddress >= 0, "must not be negative"},
		{"max_takeovers", c.MaxTakeovers >= 0, "must not be negative"},
		{"max_in_flight", c.MaxInFlight >= 1 && c.MaxInFlight <= 100_000, "must be from 1 to 100000"},
		{"drain.timeout", c.Drain.Timeout >= 0, "must not be negative"},
	}
	for _, check := range checks {
		if !check.ok {
			return config.Errorf(check.key, "%s", check.want)
		}
	}
	return nil
}
