package provision

// What each Redis user may do, asked of a real Redis with the file that it gets.

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestRedisUsers: each can do what it needs and nothing that would harm.
func TestRedisUsers(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir)
	as := startRedis(t, filepath.Join(dir, "redis", "users.acl"))
	password := func(name string) string { return string(bytes.TrimSpace(read(t, dir, Authority, name))) }

	const (
		record = "goshield:token:{0123456789ab}"
		known  = "goshield:device:{0123456789ab}"
		set    = "return redis.call('hset', KEYS[1], 'cur', 'x')"
	)
	// Other users must not have them either.
	harmful := []string{
		"flushall", "flushdb", "keys *", "config set maxmemory 1", "config rewrite", "acl list", "acl setuser gateway allkeys", "acl deluser probe",
		"shutdown nosave", "debug sleep 0", "replicaof 127.0.0.1 1", "cluster reset", "cluster failover takeover", "monitor", "save", "module list",
	}
	for _, user := range []struct {
		name, password string
		may, mayNot    []string
	}{
		{
			name: "auth-service", password: password(redisAuth),
			may: []string{
				"hset " + record + " cur x", "hgetall " + record, "pexpire " + record + " 1000", "del " + record, "hset " + known + " blocked 1", "hgetall " + known,
				"sadd goshield:devices:{0} x", "sscan goshield:devices:{0} 0", "incr goshield:guess:{192.0.2.1}", "xadd goshield:revoked * id x",
				"publish goshield:revoked x", "get goshield:config", "subscribe goshield:config", "wait 0 1", "ping", "info", "role", "cluster info",
				"cluster slots", "cluster shards",
			},
			mayNot: []string{"set other x", "get other", "hset token x y", "subscribe other", "publish other x"},
		}, {
			name: "gateway", password: password(redisGateway),
			may: []string{
				"hmget " + record + " sess node", "xrange goshield:revoked - +", "xread streams goshield:revoked 0", "subscribe goshield:revoked",
				"set goshield:node:x y px 1000", "get goshield:node:x", "zadd goshield:nodes 1 x", "zrange goshield:nodes 0 -1",
				"hset goshield:limit:{orders} tokens 1", "get goshield:config", "subscribe goshield:config", "ping", "info", "role", "cluster info",
				"cluster slots", "cluster shards",
			},
			mayNot: []string{
				"set " + record + " x", "hset " + record + " cur x", "hdel " + record + " cur", "del " + record, "unlink " + record, "pexpire " + record + " 1",
				"persist " + record, "rename " + record + " goshield:node:x", "copy goshield:node:x " + record, "restore " + record + " 0 x",
				"xadd goshield:revoked * id x", "xtrim goshield:revoked maxlen 0", "del goshield:revoked",
				"hgetall " + known, "hset " + known + " blocked 0", "sadd goshield:devices:{0} x", "del goshield:guess:{192.0.2.1}", "get other", "set other x",
			},
		}, {
			name: "exporter", password: password(redisExporter),
			may: []string{
				"ping", "info", "info all", "config get *", "latency latest", "latency histogram", "slowlog get 1", "slowlog len", "cluster info", "cluster slots",
				"cluster nodes", "client list", "client setname exporter", "dbsize",
			},
			mayNot: []string{
				"set x y", "set " + record + " x", "hset " + record + " cur x", "del " + record, "get x", "hgetall " + record, "get goshield:config", "scan 0",
				"publish goshield:revoked x", "subscribe goshield:revoked", "xrange goshield:revoked - +",
				"client kill type normal", "client pause 1", "client unpause", "client no-evict on",
			},
		}, {
			name: "probe", password: "none",
			may:    []string{"ping"},
			mayNot: []string{"get x", "set x y", "hgetall " + record, "info", "dbsize", "client list", "subscribe goshield:revoked", "publish goshield:revoked x", "scan 0", "cluster info"},
		}, {
			name: "replication", password: password(redisReplication),
			may:    []string{"ping", "replconf listening-port 6379"},
			mayNot: []string{"get x", "set x y", "hgetall " + record, "info", "dbsize", "client list", "subscribe goshield:revoked", "scan 0"},
		},
	} {
		t.Run(user.name, func(t *testing.T) {
			for _, command := range user.may {
				if err := do(t, as(user.name, user.password), command); forbidden(err) {
					t.Errorf("%s: %v", command, err)
				}
			}
			for _, command := range append(user.mayNot, harmful...) {
				if err := do(t, as(user.name, user.password), command); !forbidden(err) {
					t.Errorf("%s: got %v, want that it is forbidden", command, err)
				}
			}
			// What a script does counts, not only that it is one.
			err := as(user.name, user.password).Eval(t.Context(), set, []string{record}).Err()
			if got, want := !forbidden(err), user.name == "auth-service"; got != want {
				t.Errorf("a script that writes a token: got %v, want allowed: %v", err, want)
			}
			if user.name != "probe" {
				if err := do(t, as(user.name, "not-its-password"), "ping"); err == nil || !strings.HasPrefix(err.Error(), "WRONGPASS") {
					t.Errorf("with a wrong password: got %v, want WRONGPASS", err)
				}
			}
		})
	}
	admin := as("admin", password(redisAdmin))
	// A connection that has said psync is of no use for more.
	if got, err := admin.Do(t.Context(), "acl", "dryrun", "replication", "psync", "?", "-1").Text(); err != nil || got != "OK" {
		t.Errorf("replication, psync: got %s, %v", got, err)
	}
	for _, command := range []string{"set x y", "get x", "config get maxmemory", "acl whoami"} {
		if err := do(t, admin, command); err != nil {
			t.Errorf("admin, %s: %v", command, err)
		}
	}
	// Nobody is nobody: the default user may do everything, and is off.
	if err := do(t, as("", ""), "ping"); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") {
		t.Errorf("without a user: got %v, want NOAUTH", err)
	}
	for _, guess := range []string{"", "default", "x"} {
		if err := do(t, as("default", guess), "ping"); err == nil {
			t.Errorf("the default user is let in with %q", guess)
		}
	}
}

// startRedis starts a server with an ACL file. What it returns connects as a user.
func startRedis(t *testing.T, users string) func(user, password string) *redis.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "acl") // a short path: it has to fit into a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	var log bytes.Buffer
	cmd := exec.Command("redis-server", "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "", "--aclfile", users,
		"--enable-debug-command", "yes") // so that it is the file that forbids it
	cmd.Stdout = &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("redis-server: %v (Debian's package of that name has it, and scripts/test installs it)", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the process
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	as := func(user, password string) *redis.Client {
		client := redis.NewClient(&redis.Options{
			Network: "unix", Addr: socket, Username: user, Password: password, Protocol: 2, DisableIdentity: true, MaxRetries: -1,
		})
		t.Cleanup(func() { _ = client.Close() })
		return client
	}
	probe := as("probe", "none")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if probe.Ping(t.Context()).Err() == nil {
			return as
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("redis-server ended: %v\n%s", err, &log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("redis-server does not answer")
		}
	}
}

// do gives a command, in words as one would type them.
func do(t *testing.T, client *redis.Client, command string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	words := strings.Fields(command)
	if words[0] == "subscribe" {
		sub := client.Subscribe(ctx, words[1])
		defer sub.Close()
		_, err := sub.Receive(ctx)
		return err
	}
	args := make([]any, len(words))
	for i, w := range words {
		args[i] = w
	}
	err := client.Do(ctx, args...).Err()
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}

// forbidden reports whether Redis refused a user. That it has no cluster, or that a key is not there, is another
// matter.
func forbidden(err error) bool {
	return err != nil && (strings.HasPrefix(err.Error(), "NOPERM") || strings.Contains(err.Error(), "can't run this command"))
}
