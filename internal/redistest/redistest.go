// Package redistest runs one test over every Redis there is: the embedded one
// always, and a real cluster where the environment names one.
//
//	func TestStore(t *testing.T) {
//		redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) { … })
//	}
//
// The cluster is shared by all tests that run: keys must be of the test's own (random client
// ids do), and nothing may be flushed.
package redistest

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/redisdb"
)

// EnvCluster names the environment variable with a cluster's addresses,
// host:port separated by commas. scripts/test sets it after `scripts/redis-cluster up`.
const EnvCluster = "GOSHIELD_TEST_REDIS_CLUSTER"

// timeout is longer than in production: tests run with the race detector on
// machines that have other things to do.
const timeout = 30 * time.Second

// Each runs f as a subtest named "embedded", and as one named "cluster" if
// EnvCluster is set. The client is closed, and the embedded Redis ended, after f.
func Each(t *testing.T, f func(t *testing.T, rdb redis.UniversalClient)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) {
		_, rdb := Embedded(t)
		f(t, rdb)
	})
	if addrs := ClusterAddrs(); addrs != nil {
		t.Run("cluster", func(t *testing.T) { f(t, Cluster(t)) })
	}
}

// Embedded starts an embedded Redis and connects to it, until the test ends.
func Embedded(t testing.TB) (*redisdb.Embedded, redis.UniversalClient) {
	t.Helper()
	e, err := redisdb.StartEmbedded(porttest.Held(t)) // which it can give up for an outage
	if err != nil {
		t.Fatalf("start the embedded redis: %v", err)
	}
	t.Cleanup(e.Close)
	return e, open(t, e.Config())
}

// ClusterAddrs are the addresses that EnvCluster holds; nil: there is no cluster.
func ClusterAddrs() []string {
	text := os.Getenv(EnvCluster)
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// Cluster connects to the real cluster, until the test ends. EnvCluster must be set.
func Cluster(t testing.TB) redis.UniversalClient {
	t.Helper()
	return open(t, redisdb.Config{Addresses: ClusterAddrs(), Mode: redisdb.ModeCluster})
}

func open(t testing.TB, cfg redisdb.Config) redis.UniversalClient {
	t.Helper()
	cfg.Timeout = timeout
	cfg.DialTimeout = timeout
	cfg.PoolSize = 16
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	rdb, err := redisdb.Open(ctx, cfg)
	if err != nil {
		t.Fatalf("open redis: %v", err)
	}
	t.Cleanup(func() {
		if err := rdb.Close(); err != nil {
			t.Errorf("close redis: %v", err)
		}
	})
	if err := rdb.Ping(ctx).Err(); err != nil {
		t.Fatalf("ping redis at %s: %v", strings.Join(cfg.Addresses, ","), err)
	}
	return rdb
}
