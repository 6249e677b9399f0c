package auth_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/auth-service/auth"
)

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth-service.yaml")
	text := `
listen: "127.0.0.1:8000"
redis: {addresses: ["a:7000", "b:7000"], timeout: 300ms}
gateway_secret_file: /run/secrets/gateway
group_key_file: /run/secrets/group
guessing: {per_pair: 5, per_address: 0}
defaults: {enrolment: key, token: {ttl: 1h, grace: 0s}}
drain: {timeout: 3s}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := auth.DefaultConfig()
	env := []string{"GOSHIELD_ADMIN=127.0.0.1:9999", "GOSHIELD_REDIS_ADDRESSES=c:7000,d:7000", "GOSHIELD_GUESSING_PER_PAIR=6"}
	if err := config.Load(path, env, &cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.Admin != "127.0.0.1:9999" || strings.Join(cfg.Redis.Addresses, ",") != "c:7000,d:7000" || cfg.Redis.Timeout != 300*time.Millisecond ||
		cfg.Guessing.PerPair != 6 || cfg.Guessing.PerAddress != 0 || cfg.Drain.Timeout != 3*time.Second ||
		cfg.Defaults.Enrolment != dynamic.EnrolKey || cfg.Defaults.Token.TTL.D() != time.Hour || cfg.Defaults.Token.Grace != 0 ||
		cfg.Defaults.Heartbeat.Missed != dynamic.Default().Heartbeat.Missed {
		t.Errorf("loaded %+v", cfg)
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(*auth.Config)
		want   string // the key; "" for valid
	}{
		{"complete", func(*auth.Config) {}, ""},
		{"no listen", func(c *auth.Config) { c.Listen = "" }, "listen"},
		{"no admin", func(c *auth.Config) { c.Admin = "" }, "admin"},
		{"no gateway secret", func(c *auth.Config) { c.GatewaySecretFile = "" }, "gateway_secret_file"},
		{"no redis", func(c *auth.Config) { c.Redis.Addresses = nil }, "redis.addresses"},
		{"a dynamic default", func(c *auth.Config) { c.Defaults.Token.TTL = 0 }, "defaults.token.ttl"},
		{"key without a key", func(c *auth.Config) { c.Defaults.Enrolment = dynamic.EnrolKey }, "group_key_file"},
		{"negative pair limit", func(c *auth.Config) { c.Guessing.PerPair = -1 }, "guessing.per_pair"},
		{"negative address limit", func(c *auth.Config) { c.Guessing.PerAddress = -1 }, "guessing.per_address"},
		{"nothing in flight", func(c *auth.Config) { c.MaxInFlight = 0 }, "max_in_flight"},
		{"negative drain", func(c *auth.Config) { c.Drain.Timeout = -1 }, "drain.timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := auth.DefaultConfig()
			cfg.GatewaySecretFile = "gateway"
			tt.change(&cfg)
			if got := keyOf(cfg.Validate()); got != tt.want {
				t.Errorf("Validate() names %q, want %q", got, tt.want)
			}
		})
	}
}

func keyOf(err error) string {
	if ce := (*config.Error)(nil); errors.As(err, &ce) {
		return ce.Key
	}
	return ""
}

func TestNewNamesTheFile(t *testing.T) {
	good := writeFile(t, gatewaySecret)
	key := strings.Repeat("0f", 32)
	tests := []struct {
		name   string
		change func(*auth.Config)
		want   string
	}{
		{"no gateway file", func(c *auth.Config) { c.GatewaySecretFile = "none" }, "gateway_secret_file"},
		{"short gateway secret", func(c *auth.Config) { c.GatewaySecretFile = writeFile(t, "short") }, "gateway_secret_file"},
		{"no admin file", func(c *auth.Config) { c.AdminSecretFile = "none" }, "admin_secret_file"},
		{"no group key file", func(c *auth.Config) { c.GroupKeyFile = "none" }, "group_key_file"},
		{"group key no hex", func(c *auth.Config) { c.GroupKeyFile = writeFile(t, strings.Repeat("x", 64)) }, "group_key_file"},
		{"group key too short", func(c *auth.Config) { c.GroupKeyFile = writeFile(t, key[2:]) }, "group_key_file"},
		{"second group key too long", func(c *auth.Config) { c.GroupKeyFile = writeFile(t, key+"\n"+key+"0f") }, "group_key_file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := auth.DefaultConfig()
			cfg.GatewaySecretFile = good
			tt.change(&cfg)
			_, err := auth.New(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
			if got := keyOf(err); got != tt.want {
				t.Errorf("New() = %v, want an error of key %s", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), key[2:]) || strings.Contains(err.Error(), "short ")) {
				t.Errorf("New() = %v, which shows the secret", err)
			}
		})
	}
}
