// Package redisdb connects the services to Redis: one server or a cluster,
// with the timeouts, bounds and credentials that every part of GoShield uses.
//
//	rdb, err := redisdb.Open(ctx, cfg.Redis)
//	if err != nil {
//		return err // redis.password_file: open …: no such file or directory
//	}
//	defer rdb.Close()
//
// It also has Embedded, the Redis inside `goshield up` and the tests.
package redisdb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/secret"
)

// Mode says what stands behind the addresses.
type Mode string

// The modes.
const (
	ModeAuto    Mode = "auto"    // several addresses are a cluster; a single one is asked
	ModeCluster Mode = "cluster" // a cluster, even behind one address
	ModeSingle  Mode = "single"  // one server, with or without replicas behind it
)

// The values in force where a Config leaves them 0.
const (
	DefaultTimeout     = 200 * time.Millisecond
	DefaultDialTimeout = time.Second
	DefaultPoolSize    = 64
)

// maxRedirects is how often a command follows a cluster that moves its slots.
const maxRedirects = 3

// lastSlot is the highest slot of a cluster.
const lastSlot = 16383

// stateReload is how old a cluster client's map of the slots may grow while nothing tells
// that it is wrong.
const stateReload = time.Minute

// bufferSize is the reading and the writing buffer of one connection, in bytes. Commands and
// answers here are below 1 KiB; the library's 32 KiB would cost 4 MiB per full pool.
const bufferSize = 4 << 10

// Config is the key "redis" of a service's configuration.
type Config struct {
	Addresses    []string      `yaml:"addresses"` // host:port; several are the seeds of one cluster
	Mode         Mode          `yaml:"mode"`      // "": auto
	Username     string        `yaml:"username"`
	PasswordFile string        `yaml:"password_file"` // see internal/secret; "": no password
	TLS          TLS           `yaml:"tls"`
	Timeout      time.Duration `yaml:"timeout"`      // of one read and of one write; 0: 200ms
	DialTimeout  time.Duration `yaml:"dial_timeout"` // 0: 1s
	PoolSize     int           `yaml:"pool_size"`    // connections, per node of a cluster; 0: 64
}

// TLS is how Redis is reached over TLS. The files are PEM.
type TLS struct {
	Enabled    bool   `yaml:"enabled"`
	CA         string `yaml:"ca"`   // "": the system's
	Cert       string `yaml:"cert"` // "": no client certificate
	Key        string `yaml:"key"`
	ServerName string `yaml:"server_name"` // "": the host of each address
}

// DefaultConfig is one Redis on this machine.
func DefaultConfig() Config {
	return Config{Addresses: []string{"127.0.0.1:6379"}, Mode: ModeAuto,
		Timeout: DefaultTimeout, DialTimeout: DefaultDialTimeout, PoolSize: DefaultPoolSize}
}

// Validate checks every value; the error is a *config.Error whose key begins with "redis.".
func (c *Config) Validate() error {
	if len(c.Addresses) == 0 {
		return config.Errorf("redis.addresses", "name at least one host:port")
	}
	for _, a := range c.Addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || port == "" {
			return config.Errorf("redis.addresses", "must be host:port, got %q", a)
		}
	}
	switch {
	case c.Mode != "" && c.Mode != ModeAuto && c.Mode != ModeCluster && c.Mode != ModeSingle:
		return config.Errorf("redis.mode", "must be auto, cluster or single, got %q", c.Mode)
	case c.Mode == ModeSingle && len(c.Addresses) > 1:
		return config.Errorf("redis.mode", "single needs exactly one address, got %d", len(c.Addresses))
	case c.Timeout != 0 && c.Timeout < 10*time.Millisecond:
		return config.Errorf("redis.timeout", "must be at least 10ms, got %v", c.Timeout)
	case c.DialTimeout != 0 && c.DialTimeout < 10*time.Millisecond:
		return config.Errorf("redis.dial_timeout", "must be at least 10ms, got %v", c.DialTimeout)
	case c.PoolSize < 0 || c.PoolSize > 10000:
		return config.Errorf("redis.pool_size", "must be from 1 to 10000, got %d", c.PoolSize)
	case c.TLS.Enabled && (c.TLS.Cert == "") != (c.TLS.Key == ""):
		return config.Errorf("redis.tls.cert", "cert and key belong together")
	case !c.TLS.Enabled && (c.TLS.CA != "" || c.TLS.Cert != "" || c.TLS.Key != ""):
		return config.Errorf("redis.tls.enabled", "must be true where tls has other keys")
	}
	return nil
}

// Open makes a client for cfg, which must be valid. Redis need not be there
// yet. In ModeAuto a single address is asked whether it belongs to a cluster; if it does not answer
// in time, the client finds out by itself once it does (and is a cluster's client in either case).
// The client honours deadlines of contexts, retries a command at most once per server and follows
// a moving cluster; so every command sent through it has to bear being executed twice. Whoever
// opened it closes it. Errors are *config.Error.
func Open(ctx context.Context, cfg Config) (redis.UniversalClient, error) {
	opts, err := options(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Mode == ModeCluster || len(cfg.Addresses) > 1 {
		return openCluster(opts), nil
	}
	single := openSingle(opts)
	if cfg.Mode == ModeSingle {
		return single, nil
	}
	isCluster, err := clusterEnabled(ctx, single)
	if err == nil && !isCluster {
		return single, nil
	}
	_ = single.Close() // it has nothing to lose
	switch {
	case err == nil:
		return openCluster(opts), nil
	case redis.IsAuthError(err) || redis.IsPermissionError(err):
		return nil, &config.Error{Key: "redis.addresses", Err: err}
	}
	return openUnknown(opts), nil
}

// options are what a single client and a cluster's have in common.
func options(cfg Config) (*redis.UniversalOptions, error) {
	o := &redis.UniversalOptions{
		Addrs:                 cfg.Addresses,
		Protocol:              2, // nothing here needs 3, and every server and proxy speaks 2
		DialTimeout:           orDefault(cfg.DialTimeout, DefaultDialTimeout),
		ReadTimeout:           orDefault(cfg.Timeout, DefaultTimeout),
		WriteTimeout:          orDefault(cfg.Timeout, DefaultTimeout),
		PoolSize:              orDefault(cfg.PoolSize, DefaultPoolSize),
		PipelinePoolSize:      -1, // pipelines share the pool
		DialerRetries:         1,  // commands are retried; a dial within one is not
		ContextTimeoutEnabled: true,
		MaxRedirects:          maxRedirects,
		MinRetryBackoff:       8 * time.Millisecond,
		MaxRetryBackoff:       64 * time.Millisecond,
		ReadBufferSize:        bufferSize,
		WriteBufferSize:       bufferSize,
		DisableIdentity:       true, // CLIENT SETINFO is unknown before Redis 7.2
		MaintNotificationsConfig: &maintnotifications.Config{
			Mode: maintnotifications.ModeDisabled, // Redis Enterprise only
		},
	}
	o.PoolTimeout = o.ReadTimeout
	if cfg.PasswordFile != "" {
		password, err := secret.Open(cfg.PasswordFile)
		if err != nil {
			return nil, &config.Error{Key: "redis.password_file", Err: err}
		}
		user := cfg.Username
		o.CredentialsProvider = func() (string, string) { return user, password.First() }
	}
	if cfg.TLS.Enabled {
		t, err := tlsConfig(cfg.TLS)
		if err != nil {
			return nil, err
		}
		o.TLSConfig = t
	}
	return o, nil
}

func orDefault[T time.Duration | int](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

func tlsConfig(cfg TLS) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, &config.Error{Key: "redis.tls.ca", Err: err}
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, config.Errorf("redis.tls.ca", "%s: holds no certificate", cfg.CA)
		}
	}
	if cfg.Cert != "" {
		pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
		if err != nil {
			return nil, &config.Error{Key: "redis.tls.cert", Err: err}
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

func openSingle(o *redis.UniversalOptions) *redis.Client {
	opts := o.Simple()
	opts.MaxRetries = 1 // a pooled connection may have been closed by the server
	return redis.NewClient(opts)
}

func openCluster(o *redis.UniversalOptions) *redis.ClusterClient {
	return newCluster(clusterOptions(o))
}

func newCluster(o *redis.ClusterOptions) *redis.ClusterClient {
	c := redis.NewClusterClient(o)
	c.AddHook(reloader{c})
	return c
}

func clusterOptions(o *redis.UniversalOptions) *redis.ClusterOptions {
	opts := o.Cluster()
	opts.ClusterStateReloadInterval = stateReload
	return opts
}

// openUnknown is for a single address of which nobody knows yet whether it is a cluster's. The
// client asks it for the map of the slots; a server that is none of a cluster has them all.
func openUnknown(o *redis.UniversalOptions) *redis.ClusterClient {
	opts := clusterOptions(o)
	seed := *o.Simple()
	opts.ClusterSlots = func(ctx context.Context) ([]redis.ClusterSlot, error) {
		c := redis.NewClient(&seed)
		defer c.Close()
		slots, err := c.ClusterSlots(ctx).Result() //nolint:staticcheck // what the option is to return; the client itself asks so
		var refused redis.Error
		if errors.As(err, &refused) && strings.HasPrefix(refused.Error(), "ERR ") { // it knows no clusters, or is set up without
			all := redis.ClusterSlot{Start: 0, End: lastSlot, Nodes: []redis.ClusterNode{{Addr: seed.Addr}}}
			return []redis.ClusterSlot{all}, nil
		}
		return slots, err
	}
	return newCluster(opts)
}

// clusterEnabled asks a server whether it is a node of a cluster. One that
// answers anything but yes is not.
func clusterEnabled(ctx context.Context, c *redis.Client) (bool, error) {
	text, err := c.Info(ctx, "cluster").Result()
	var refused redis.Error
	switch {
	case err == nil:
		return strings.Contains(text, "cluster_enabled:1"), nil
	case redis.IsAuthError(err) || redis.IsPermissionError(err):
		return false, err
	case errors.As(err, &refused):
		return false, nil // a server that does not know the question
	}
	return false, err
}

// LogTo sends what the Redis library has to say (a failed dial, mostly) to log instead of
// standard error. It holds for the whole process, so only a main calls it.
func LogTo(log *zap.Logger) { redis.SetLogger(libraryLog{log}) }

type libraryLog struct{ log *zap.Logger }

// Printf implements the library's logger.
func (l libraryLog) Printf(_ context.Context, format string, v ...any) {
	l.log.Warn("redis client", zap.String("said", fmt.Sprintf(format, v...)))
}
