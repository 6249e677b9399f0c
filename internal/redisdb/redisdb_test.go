package redisdb_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
)

func TestMain(m *testing.M) {
	redistest.VerifyTestMain(m)
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name    string
		change  func(*redisdb.Config)
		wantKey string // "" for valid
	}{
		{"default", func(*redisdb.Config) {}, ""},
		{"addresses only", func(c *redisdb.Config) { *c = redisdb.Config{Addresses: []string{"a:1"}} }, ""},
		{"no address", func(c *redisdb.Config) { c.Addresses = nil }, "redis.addresses"},
		{"address without port", func(c *redisdb.Config) { c.Addresses = []string{"redis"} }, "redis.addresses"},
		{"address without host", func(c *redisdb.Config) { c.Addresses = []string{":6379"} }, "redis.addresses"},
		{"unknown mode", func(c *redisdb.Config) { c.Mode = "sentinel" }, "redis.mode"},
		{"single with two", func(c *redisdb.Config) { c.Mode, c.Addresses = redisdb.ModeSingle, []string{"a:1", "b:1"} }, "redis.mode"},
		{"short timeout", func(c *redisdb.Config) { c.Timeout = time.Millisecond }, "redis.timeout"},
		{"short dial timeout", func(c *redisdb.Config) { c.DialTimeout = -1 }, "redis.dial_timeout"},
		{"negative pool", func(c *redisdb.Config) { c.PoolSize = -1 }, "redis.pool_size"},
		{"cert without key", func(c *redisdb.Config) { c.TLS = redisdb.TLS{Enabled: true, Cert: "c"} }, "redis.tls.cert"},
		{"ca without tls", func(c *redisdb.Config) { c.TLS.CA = "c" }, "redis.tls.enabled"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := redisdb.DefaultConfig()
			tt.change(&cfg)
			err := cfg.Validate()
			got := ""
			var ce *config.Error
			if errors.As(err, &ce) {
				got = ce.Key
			}
			if got != tt.wantKey || (err == nil) != (tt.wantKey == "") {
				t.Errorf("Validate() = %v, want an error of key %q", err, tt.wantKey)
			}
		})
	}
}

func TestOpenNamesTheKey(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.pem")
	if err := os.WriteFile(garbage, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		cfg  redisdb.Config
		want string
	}{
		{"no password file", redisdb.Config{Addresses: []string{"a:1"}, Mode: redisdb.ModeSingle, PasswordFile: filepath.Join(dir, "none")}, "redis.password_file"},
		{"ca without certificate", redisdb.Config{Addresses: []string{"a:1"}, Mode: redisdb.ModeSingle, TLS: redisdb.TLS{Enabled: true, CA: garbage}}, "redis.tls.ca"},
		{"no client certificate", redisdb.Config{Addresses: []string{"a:1"}, Mode: redisdb.ModeSingle, TLS: redisdb.TLS{Enabled: true, Cert: garbage, Key: garbage}}, "redis.tls.cert"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rdb, err := redisdb.Open(t.Context(), tt.cfg)
			if err == nil {
				_ = rdb.Close()
			}
			var ce *config.Error
			if !errors.As(err, &ce) || ce.Key != tt.want {
				t.Errorf("Open() = %v, want an error of key %q", err, tt.want)
			}
		})
	}
}

// TestOpenWithoutRedis: a process must start while Redis is away.
func TestOpenWithoutRedis(t *testing.T) {
	for _, cfg := range []redisdb.Config{
		{Addresses: []string{"127.0.0.1:1"}, Mode: redisdb.ModeSingle},
		{Addresses: []string{"127.0.0.1:1", "127.0.0.1:2"}},
		{Addresses: []string{"127.0.0.1:1"}, Mode: redisdb.ModeCluster},
		{Addresses: []string{"127.0.0.1:1"}},
	} {
		rdb, err := redisdb.Open(t.Context(), cfg)
		if err != nil {
			t.Errorf("%s of %d: Open() = %v, want nil", cfg.Mode, len(cfg.Addresses), err)
			continue
		}
		if err := rdb.Close(); err != nil {
			t.Errorf("Close() = %v, want nil", err)
		}
	}
}

// TestOpenBeforeRedis: a single address that did not answer at the start is found out about later,
// whatever it is.
func TestOpenBeforeRedis(t *testing.T) {
	servers := map[string]func(addr string) (close func(), err error){
		"embedded": func(addr string) (func(), error) {
			e, err := redisdb.StartEmbedded(addr)
			if err != nil {
				return nil, err
			}
			return e.Close, nil
		},
		"without clusters": func(addr string) (func(), error) {
			srv, err := server.NewServer(addr)
			if err != nil {
				return nil, err
			}
			say := func(answer func(*server.Peer)) server.Cmd {
				return func(c *server.Peer, _ string, _ []string) { answer(c) }
			}
			return srv.Close, errors.Join(
				srv.Register("CLUSTER", say(func(c *server.Peer) { c.WriteError("ERR This instance has cluster support disabled") })),
				srv.Register("SET", say((*server.Peer).WriteOK)),
				srv.Register("GET", say(func(c *server.Peer) { c.WriteBulk("v") })),
			)
		},
	}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", porttest.Held(t)) // keeps the port, and answers nothing
			if err != nil {
				t.Fatal(err)
			}
			addr := ln.Addr().String()
			cfg := redisdb.Config{Addresses: []string{addr}, Timeout: 200 * time.Millisecond}
			rdb, err := redisdb.Open(t.Context(), cfg)
			if err != nil {
				t.Fatalf("Open() = %v, want nil", err)
			}
			defer func() { _ = rdb.Close() }()
			if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err == nil {
				t.Error("SET before it is there = nil, want an error")
			}
			_ = ln.Close()
			end, err := start(addr)
			if err != nil {
				t.Fatal(err)
			}
			defer end()
			redistest.Until(t, "SET succeeds", func() bool { return rdb.Set(t.Context(), "k", "v", 0).Err() == nil })
			redistest.Until(t, "GET gives what was set", func() bool { return rdb.Get(t.Context(), "k").Val() == "v" })
		})
	}
}

func TestPassword(t *testing.T) {
	const password = "correct horse battery"
	mini := miniredis.RunT(t)
	mini.RequireUserAuth("goshield", strings.ReplaceAll(password, " ", "-"))
	file := filepath.Join(t.TempDir(), "password")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.ReplaceAll(password, " ", "-"))
	cfg := redisdb.Config{Addresses: []string{mini.Addr()}, Username: "goshield", PasswordFile: file, Timeout: 30 * time.Second, DialTimeout: 30 * time.Second}
	rdb, err := redisdb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open() with the right password = %v, want nil", err)
	}
	if err := rdb.Ping(t.Context()).Err(); err != nil {
		t.Errorf("Ping() = %v, want nil", err)
	}
	if err := rdb.Close(); err != nil {
		t.Error(err)
	}
	write("wrong-wrong-wrong-wrong")
	if rdb, err = redisdb.Open(t.Context(), cfg); err == nil {
		_ = rdb.Close()
		t.Error("Open() with a wrong password = nil, want an error")
	} else if strings.Contains(err.Error(), "wrong-wrong") {
		t.Errorf("Open() = %v, which shows the password", err)
	}
}

// TestOpenFindsTheCluster: one address is enough to reach a whole cluster.
func TestOpenFindsTheCluster(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		_, isCluster := rdb.(*redis.ClusterClient)
		var addr string
		if isCluster {
			addr = redistest.ClusterAddrs()[0]
		} else {
			addr = rdb.(*redis.Client).Options().Addr
		}
		found, err := redisdb.Open(t.Context(), redisdb.Config{Addresses: []string{addr}, Timeout: 30 * time.Second, DialTimeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := found.Close(); err != nil {
				t.Error(err)
			}
		}()
		if _, got := found.(*redis.ClusterClient); got != isCluster {
			t.Errorf("Open(%s) is a cluster: %v, want %v", addr, got, isCluster)
		}
	})
}

// TestCommands holds what the services need of any Redis, the embedded one too.
func TestCommands(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		name := "goshield:test:{" + rand.Text() + "}"

		t.Run("TIME, integers and binary values in a script", func(t *testing.T) {
			const script = `
				local t = redis.call('TIME')
				local us = t[1] * 1000000 + t[2]
				redis.call('HSET', KEYS[1], 'us', string.format('%.0f', us), 'bin', ARGV[1])
				redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', math.floor(us / 1000) + 60000))
				return {us, redis.call('HGET', KEYS[1], 'bin'), redis.call('PTTL', KEYS[1])}`
			bin := string([]byte{0, 255, '\r', '\n', 128})
			got, err := redis.NewScript(script).Run(ctx, rdb, []string{name + "h"}, bin).Slice()
			if err != nil {
				t.Fatal(err)
			}
			us, _ := got[0].(int64)
			if d := time.Since(time.UnixMicro(us)).Abs(); d > time.Minute {
				t.Errorf("TIME is %v off", d)
			}
			if got[1] != bin {
				t.Errorf("binary value came back as %q, want %q", got[1], bin)
			}
			if ttl, _ := got[2].(int64); ttl < 50_000 || ttl > 60_000 {
				t.Errorf("PTTL = %v ms, want nearly 60000", got[2])
			}
		})
		t.Run("keys expire by themselves", func(t *testing.T) {
			if err := rdb.Set(ctx, name+"e", 1, 50*time.Millisecond).Err(); err != nil {
				t.Fatal(err)
			}
			for rdb.Exists(ctx, name+"e").Val() != 0 {
				if err := ctx.Err(); err != nil {
					t.Fatal("the key is still there")
				}
			}
		})
		t.Run("streams", func(t *testing.T) {
			id, err := rdb.XAdd(ctx, &redis.XAddArgs{Stream: name + "s", MaxLen: 100, Approx: true, Values: []string{"a", "1"}}).Result()
			if err != nil {
				t.Fatal(err)
			}
			got, err := rdb.XRead(ctx, &redis.XReadArgs{Streams: []string{name + "s", "0"}, Block: -1}).Result()
			if err != nil || len(got) != 1 || len(got[0].Messages) != 1 || got[0].Messages[0].ID != id || got[0].Messages[0].Values["a"] != "1" {
				t.Errorf("XREAD = %v, %v, want the entry %s", got, err, id)
			}
			if _, err := rdb.XRead(ctx, &redis.XReadArgs{Streams: []string{name + "s", id}, Block: -1}).Result(); !errors.Is(err, redis.Nil) {
				t.Errorf("XREAD past the end = %v, want redis.Nil", err)
			}
			rdb.Del(ctx, name+"s")
		})
		t.Run("publish and subscribe", func(t *testing.T) {
			sub := rdb.Subscribe(ctx, name+"p")
			defer func() { _ = sub.Close() }()
			if _, err := sub.Receive(ctx); err != nil {
				t.Fatal(err)
			}
			if err := rdb.Publish(ctx, name+"p", "hello").Err(); err != nil {
				t.Fatal(err)
			}
			msg, err := sub.ReceiveMessage(ctx)
			if err != nil || msg.Payload != "hello" {
				t.Errorf("received %v, %v, want hello", msg, err)
			}
		})
		t.Run("WAIT", func(t *testing.T) {
			if err := rdb.Do(ctx, "wait", 0, 1).Err(); err != nil {
				t.Errorf("WAIT = %v, want nil", err)
			}
		})
	})
}

func TestEmbeddedClock(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	noon := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	e.SetTime(noon)
	if got, err := rdb.Time(t.Context()).Result(); err != nil || !got.Equal(noon) {
		t.Errorf("TIME = %v, %v, want %v", got, err, noon)
	}
	if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.PExpireAt(t.Context(), "k", noon.Add(time.Hour)).Err(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		at   time.Duration
		want int64
	}{{59 * time.Minute, 1}, {61 * time.Minute, 0}} {
		e.SetTime(noon.Add(tt.at))
		if got := rdb.Exists(t.Context(), "k").Val(); got != tt.want {
			t.Errorf("after %v: EXISTS = %d, want %d", tt.at, got, tt.want)
		}
	}
}

// Keys go by themselves, by the machine's clock, also during an outage.
func TestEmbeddedKeysExpire(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	for key, ttl := range map[string]time.Duration{"short": 500 * time.Millisecond, "long": time.Hour} {
		if err := rdb.Set(t.Context(), key, "v", ttl).Err(); err != nil {
			t.Fatal(err)
		}
	}
	redistest.Until(t, "the short one is gone", func() bool { return rdb.Exists(t.Context(), "short").Val() == 0 })
	if got := rdb.PTTL(t.Context(), "long").Val(); got < 50*time.Minute || got >= time.Hour {
		t.Errorf("PTTL of the long one = %v, want less than an hour", got)
	}
	if err := rdb.Set(t.Context(), "outlived", "v", 500*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	e.Stop()
	if err := e.Resume(); err != nil {
		t.Fatal(err)
	}
	redistest.Until(t, "the key of before the outage is gone", func() bool {
		n, err := rdb.Exists(t.Context(), "outlived").Result()
		return err == nil && n == 0
	})
}

func TestEmbeddedOutage(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	e.Stop()
	if err := rdb.Get(t.Context(), "k").Err(); err == nil {
		t.Error("GET during an outage = nil, want an error")
	}
	if e.Addr() == "" {
		t.Error("no address during an outage")
	}
	if err := e.Resume(); err != nil {
		t.Fatal(err)
	}
	if got, err := rdb.Get(t.Context(), "k").Result(); got != "v" || err != nil {
		t.Errorf("GET after it = %q, %v, want v", got, err)
	}
	if got, err := rdb.Do(t.Context(), "role").Slice(); err != nil || len(got) != 3 {
		t.Errorf("ROLE after it = %v, %v, want three items", got, err)
	}
}
