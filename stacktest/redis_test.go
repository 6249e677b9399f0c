package stacktest

// Redis Cluster: six nodes, three of them primaries.

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
)

// rollRedis restarts the nodes as docs/OPERATIONS.md has it: replicas first; then each primary, once its
// replica has taken over in good order. Who is connected does not notice, who comes meanwhile may be told to come
// again.
func rollRedis(t *testing.T, s *stack) {
	s.unnoticed(t, func() {
		nodes := s.whole(t)
		visits := comeAndGo(t, s.keys, true, func() {
			for _, n := range nodes[3:] {
				s.roll(t, name(n.service))
				s.whole(t)
			}
			for _, n := range nodes[:3] {
				replica := replicaOf(t, nodes, n)
				if _, err := s.redisCLI(replica.service, "cluster", "failover"); err != nil {
					t.Fatal(err)
				}
				s.promoted(t, replica, replica)
				s.roll(t, name(n.service))
				s.whole(t)
			}
		})
		t.Logf("%d visits meanwhile", visits)
	})
}

func primaryDies(t *testing.T, s *stack) {
	s.unnoticed(t, func() {
		nodes := s.whole(t)
		victim := nodes[0]
		writable := s.writes(replicaOf(t, nodes, victim), keyAt(t, victim.slots))
		docker(t, "kill", name(victim.service))
		start := time.Now()
		// As many devices as hit every primary's slots enrol.
		startFleet(t, s.keys, visitors, 12, vip+":8443", client.MemoryStore()).stop()
		t.Logf("twelve new devices enrolled within %v of the loss of a primary", time.Since(start).Round(100*time.Millisecond))
		end := <-writable
		if end.err != nil {
			t.Fatal(end.err)
		}
		promised(t, "its slots are writable", end.at.Sub(start), 6*time.Second)
	})
}

// written is when a write succeeded.
type written struct {
	at  time.Time
	err error
}

// writes tries, over and over, to write a key to a node, which is a replica still. (It does not speak TLS.)
func (s *stack) writes(to node, key string) <-chan written {
	end := make(chan written, 1)
	go func() { // ends when the write succeeds, or tryWith gives up
		_, err := tryWith(s.redisPassword, "docker", "exec", "-i", name(to.service), "sh", "-ec",
			`REDISCLI_AUTH=$(cat); export REDISCLI_AUTH; until redis-cli --user admin set "$0" x px 1000 | grep -q OK; do sleep 0.1; done`, key)
		end <- written{time.Now(), err}
	}()
	return end
}

// primaryDiesInRotation has every heartbeat bring a new token while primaries are lost, one after the
// other. Whatever a device holds afterwards must let it in.
func primaryDiesInRotation(t *testing.T, s *stack) {
	rounds := 3
	if long {
		rounds = 200
	}
	up(t)
	config(t, "set", "heartbeat.interval", "1s")
	config(t, "set", "token.rotate_probability", "1")
	defer func() {
		config(t, "set", "heartbeat.interval", "20s")
		config(t, "set", "token.rotate_probability", "0.05")
	}()
	time.Sleep(3 * time.Second) // in force everywhere
	store := client.MemoryStore()
	rotated := int64(0)
	startFleet(t, s.keys, visitors, 24, vip+":8443", store).stop()
	for round := range rounds {
		nodes := s.whole(t)
		victim := nodes[round%3]
		f := startFleet(t, s.keys, visitors, 24, vip+":8443", store)
		f.settle(t)
		time.Sleep(4 * time.Second) // they rotate
		docker(t, "kill", name(victim.service))
		s.promoted(t, replicaOf(t, nodes, victim), replicaOf(t, nodes, victim))
		// With what it has at this moment, each comes back.
		f.stop()
		r := f.report()
		rotated += r.rotated
		if r.enrolled > 0 || len(r.failures) > 0 {
			t.Errorf("round %d: %v", round, r)
		}
		docker(t, "start", name(victim.service))
		f = startFleet(t, s.keys, visitors, 24, vip+":8443", store)
		if r := f.report(); r.enrolled > 0 {
			t.Errorf("round %d: %d devices were locked out and had to enrol anew", round, r.enrolled)
		}
		f.stop()
	}
	t.Logf("%d rotations in %d rounds", rotated, rounds)
	if rotated == 0 {
		t.Error("no token was rotated")
	}
	s.whole(t)
}

func redisFreezes(t *testing.T, s *stack) {
	lasting := 20 * time.Second
	if long {
		lasting = 50 * time.Second
	}
	s.unnoticed(t, func() {
		compose(t, append([]string{"pause"}, redisNodes...)...)
		start := time.Now()
		refusedWithHint(t, s)
		time.Sleep(time.Until(start.Add(lasting)))
		s.fleet.settle(t)
		compose(t, append([]string{"unpause"}, redisNodes...)...)
	})
	start := time.Now()
	startFleet(t, s.keys, visitors, 12, vip+":8443", client.MemoryStore()).stop()
	t.Logf("twelve new devices enrolled within %v of its return", time.Since(start).Round(100*time.Millisecond))
}

// primaryCutOff leaves a primary alone, reached by its clients still. It must see that it is in the minority and
// refuse writes: what it took would be lost when it comes back as a replica.
func primaryCutOff(t *testing.T, s *stack) {
	s.unnoticed(t, func() {
		nodes := s.whole(t)
		victim, replica := nodes[0], replicaOf(t, nodes, nodes[0])
		var unblock []func()
		for _, n := range nodes[1:] {
			unblock = append(unblock, block(t, name(victim.service), n.address))
		}
		took := await(t, "the primary in the minority refuses writes", patience, func() error {
			out, err := s.redisCLI(victim.service, "set", "goshield:suite", "x", "px", "1000")
			if err == nil && !strings.HasPrefix(out, "CLUSTERDOWN") {
				err = fmt.Errorf("it answered %q", strings.TrimSpace(out))
			}
			return err
		})
		t.Logf("%s refused writes within %v", victim.service, took.Round(100*time.Millisecond))
		s.promoted(t, replica, replica)
		// What is given out from now on must last.
		store := client.MemoryStore()
		startFleet(t, s.keys, visitors, 24, vip+":8443", store).stop()
		for _, mend := range unblock {
			mend()
		}
		s.whole(t)
		f := startFleet(t, s.keys, visitors, 24, vip+":8443", store)
		if r := f.report(); r.enrolled > 0 {
			t.Errorf("%d devices lost what they were given while the primary was cut off", r.enrolled)
		}
		f.stop()
	})
}

// slotsMove reshards there and back, under the hands of devices that come and go.
func slotsMove(t *testing.T, s *stack) {
	const slots = "700"
	s.unnoticed(t, func() {
		nodes := s.whole(t)
		from, to := nodes[0], nodes[1]
		visits := comeAndGo(t, s.keys, false, func() {
			for range 2 {
				start := time.Now()
				if out, err := s.redisCLI(from.service, "--cluster", "reshard", from.address+":6379", "--cluster-from", from.id,
					"--cluster-to", to.id, "--cluster-slots", slots, "--cluster-yes"); err != nil {
					t.Fatalf("%v: %.2000s", err, out)
				}
				t.Logf("%s slots moved from %s to %s in %v", slots, from.service, to.service, time.Since(start).Round(100*time.Millisecond))
				s.whole(t)
				from, to = to, from
			}
		})
		t.Logf("%d visits meanwhile", visits)
	})
}

// backupAndRestore follows the runbook in docs/OPERATIONS.md: a backup while it serves, all nodes lost with
// their data, a restore. Tokens, registrations and the dynamic document must be there again.
func backupAndRestore(t *testing.T, s *stack) {
	up(t)
	const blocked = "02:57:ac:ff:ff:01"
	compose(t, "run", "--rm", "-T", "cli", "device", "block", blocked)
	config(t, "set", "heartbeat.interval", "21s")
	s.fleet.settle(t)
	s.fleet.stop() // what is rotated after a backup is lost with it
	dir := t.TempDir()
	for _, n := range s.whole(t)[:3] {
		dump, err := tryWith(s.redisPassword, "docker", "exec", "-i", name(n.service), "sh", "-ec",
			"redis-cli --user admin --askpass --rdb /data/backup.rdb >&2; cat /data/backup.rdb; rm /data/backup.rdb")
		if err != nil || !strings.HasPrefix(dump, "REDIS") {
			t.Fatalf("a backup of %s: %v, %d bytes", n.service, err, len(dump))
		}
		if err := os.WriteFile(filepath.Join(dir, n.slots+".rdb"), []byte(dump), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keysBefore := s.keyCount(t)

	// All of Redis is lost.
	compose(t, "stop", "gateway", "auth-service")
	lost := append([]string{"redis-cluster"}, redisNodes...)
	var names []string
	for _, service := range lost {
		names = append(names, name(service))
	}
	listen(t, names, func() { compose(t, append([]string{"rm", "-sfv"}, lost...)...) })
	for _, n := range redisNodes {
		docker(t, "volume", "rm", project+"_"+n)
	}
	start := time.Now()
	up(t, append([]string{"redis-exporter"}, redisNodes...)...)
	nodes := s.whole(t)
	if n := s.keyCount(t); n != 0 {
		t.Fatalf("a new cluster holds %d keys", n)
	}
	compose(t, append([]string{"stop"}, redisNodes...)...)
	for _, n := range nodes {
		script := "rm -rf /data/appendonlydir /data/dump.rdb"
		var dump []byte
		if n.primary {
			var err error
			if dump, err = os.ReadFile(filepath.Join(dir, n.slots+".rdb")); err != nil {
				t.Fatalf("the new cluster is cut in another way: %v", err)
			}
			script += " && cat >/data/appendonly.aof"
		}
		if _, err := tryWith(string(dump), "docker", "run", "--rm", "-i", "--label", mark, "--network", "none", "--user", "999:999",
			"-v", project+"_"+n.service+":/data", "--entrypoint", "sh", "redis:7.2.7-bookworm", "-ec", script); err != nil {
			t.Fatal(err)
		}
	}
	up(t)
	s.whole(t)
	t.Logf("restored within %v", time.Since(start).Round(time.Second))
	if n := s.keyCount(t); n < keysBefore*9/10 {
		t.Errorf("%d keys, %d before", n, keysBefore)
	}
	s.fleet = startFleet(s.t, s.keys, 0, devices, vip+":8443", s.store) // for the steps that follow, too
	s.fleet.settle(t)
	if r := s.fleet.report(); r.enrolled > 0 {
		t.Errorf("%d of %d devices could not resume", r.enrolled, devices)
	}
	if out := compose(t, "run", "--rm", "-T", "cli", "device", "list"); !strings.Contains(out, "blocked") {
		t.Errorf("what was blocked is not: %s", out)
	}
	if out := config(t, "get", "heartbeat.interval"); !strings.Contains(out, "21s") {
		t.Errorf("the dynamic document is not what it was: heartbeat.interval %s", out)
	}
}

// config runs goshield config.
func config(t *testing.T, args ...string) string {
	t.Helper()
	return compose(t, append([]string{"run", "--rm", "-T", "cli", "config"}, args...)...)
}

// TestRedisTLS brings up what is needed for Redis to speak TLS only, and loses a primary.
func TestRedisTLS(t *testing.T) {
	needEngine(t)
	t.Setenv("GOSHIELD_REDIS_TLS", "true")
	up(t, "lb-a", "prometheus", "redis-exporter")
	s := &stack{keys: readKeys(t, secretsDir(t)), redisPassword: redisPassword(t), redisTLS: true}
	nodes := s.whole(t)
	plain := &stack{redisPassword: s.redisPassword}
	if out, err := plain.redisCLI("redis-1", "ping"); err == nil && strings.Contains(out, "PONG") {
		t.Error("a node speaks without TLS")
	}
	store := client.MemoryStore()
	f := startFleet(t, s.keys, 0, 24, "127.0.0.1:8443", store)
	f.settle(t)
	f.reset()
	docker(t, "kill", name(nodes[0].service))
	startFleet(t, s.keys, visitors, 12, "127.0.0.1:8443", client.MemoryStore()).stop()
	docker(t, "start", name(nodes[0].service))
	s.whole(t)
	f.settle(t)
	if r := f.report(); r.connects > 0 || len(r.failures) > 0 {
		t.Errorf("live devices noticed: %v", r)
	}
	f.stop()
	f = startFleet(t, s.keys, 0, 24, "127.0.0.1:8443", store)
	if r := f.report(); r.enrolled > 0 {
		t.Errorf("%d devices could not resume", r.enrolled)
	}
	f.stop()
	await(t, "the exporter reaches every node", patience, func() error {
		found, err := series("redis_up == 1")
		if err == nil && len(found) != len(redisNodes) {
			err = fmt.Errorf("%d of %d", len(found), len(redisNodes))
		}
		return err
	})
	downForGood(t)
}
