package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/redisdb"
)

// redisTimeout is what a person waits for one answer of Redis.
const redisTimeout = 3 * time.Second

// redisFlags say where Redis is: the context's, overridden by a service's configuration file, by its environment
// variables, and by flags.
type redisFlags struct {
	getenv func(string) string
	flags  *pflag.FlagSet

	context, file string
	given         redisdb.Config // by flags
}

func (f *redisFlags) addFlags(flags *pflag.FlagSet) {
	f.flags = flags
	flags.StringVar(&f.context, "context", "", "context `file` written by `goshield up` (default: "+filepath.Join(defaultDataDir, contextFile)+")")
	flags.StringVar(&f.file, "config", "", "take what is under \"redis\" from this `file`, such as a gateway's")
	flags.StringSliceVar(&f.given.Addresses, "redis", nil, "`host:port[,host:port…]` of Redis; several are one cluster")
	flags.StringVar((*string)(&f.given.Mode), "redis-mode", "", "auto, cluster or single")
	flags.StringVar(&f.given.Username, "redis-username", "", "`name` to log in with")
	flags.StringVar(&f.given.PasswordFile, "redis-password-file", "", "`file` with the password")
	flags.BoolVar(&f.given.TLS.Enabled, "redis-tls", false, "reach Redis over TLS")
	flags.StringVar(&f.given.TLS.CA, "redis-ca", "", "certificate `file` of Redis's authority")
	flags.StringVar(&f.given.TLS.Cert, "redis-cert", "", "client certificate `file`")
	flags.StringVar(&f.given.TLS.Key, "redis-key", "", "key `file` of --redis-cert")
	flags.StringVar(&f.given.TLS.ServerName, "redis-server-name", "", "`name` that Redis's certificate must have")
}

// withRedis is a configuration of which only Redis matters.
type withRedis struct {
	Redis redisdb.Config `yaml:"redis"`
	Rest  map[string]any `yaml:",inline"`
}

// resolve puts together what the sources say.
func (f *redisFlags) resolve() (redisdb.Config, error) {
	cfg := withRedis{Redis: redisdb.DefaultConfig()}
	cfg.Redis.Timeout = redisTimeout
	c, found, err := findContext(f.context, f.getenv)
	if err != nil {
		return cfg.Redis, err
	}
	if found && len(c.Redis) > 0 {
		cfg.Redis.Addresses = c.Redis
	}
	if f.file != "" {
		if err := f.readFile(&cfg); err != nil {
			return cfg.Redis, fmt.Errorf("--config: %w", err)
		}
	}
	if err := f.readEnvironment(&cfg.Redis); err != nil {
		return cfg.Redis, err
	}
	f.applyFlags(&cfg.Redis)
	if err := cfg.Redis.Validate(); err != nil {
		return cfg.Redis, usageError{err}
	}
	return cfg.Redis, nil
}

func (f *redisFlags) readFile(cfg *withRedis) error {
	r, err := os.Open(f.file)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := config.Decode(r, cfg); err != nil {
		return fmt.Errorf("%s: %w", f.file, err)
	}
	return nil
}

// readEnvironment reads the variables that a service would.
func (f *redisFlags) readEnvironment(cfg *redisdb.Config) error {
	holder := struct {
		Redis redisdb.Config `yaml:"redis"`
	}{*cfg}
	for _, k := range config.Keys(&holder) {
		if text := f.getenv(k.Env); text != "" {
			if err := k.Set(text); err != nil {
				return usagef("%s: %w", k.Env, err)
			}
		}
	}
	*cfg = holder.Redis
	return nil
}

// applyFlags lets the flags that were given win.
func (f *redisFlags) applyFlags(cfg *redisdb.Config) {
	for name, apply := range map[string]func(){
		"redis":               func() { cfg.Addresses = f.given.Addresses },
		"redis-mode":          func() { cfg.Mode = f.given.Mode },
		"redis-username":      func() { cfg.Username = f.given.Username },
		"redis-password-file": func() { cfg.PasswordFile = f.given.PasswordFile },
		"redis-tls":           func() { cfg.TLS.Enabled = f.given.TLS.Enabled },
		"redis-ca":            func() { cfg.TLS.CA = f.given.TLS.CA },
		"redis-cert":          func() { cfg.TLS.Cert = f.given.TLS.Cert },
		"redis-key":           func() { cfg.TLS.Key = f.given.TLS.Key },
		"redis-server-name":   func() { cfg.TLS.ServerName = f.given.TLS.ServerName },
	} {
		if f.flags.Changed(name) {
			apply()
		}
	}
}

// open connects to Redis; whoever opened it closes it.
func (f *redisFlags) open(ctx context.Context) (redis.UniversalClient, error) {
	cfg, err := f.resolve()
	if err != nil {
		return nil, err
	}
	rdb, err := redisdb.Open(ctx, cfg)
	if err == nil {
		if err = rdb.Ping(ctx).Err(); err == nil {
			return rdb, nil
		}
		err = errors.Join(err, rdb.Close())
	}
	return nil, fmt.Errorf("cannot reach Redis at %s: %w\n  name another with --redis host:port, or with --config and a gateway's file",
		strings.Join(cfg.Addresses, ","), err)
}
