package stacktest

// Redis Cluster: six nodes, three of them primaries.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
)

var redisNodes = []string{"redis-1", "redis-2", "redis-3", "redis-4", "redis-5", "redis-6"}

// node is one of the cluster, as the others see it.
type node struct {
	id, service, address string
	primary              bool
	of                   string // a replica's primary: its id
	slots                string // of a primary
	well                 bool   // nobody suspects it
}

// redisCLI runs redis-cli in a node's container, as the administrator, whose password goes by standard
// input.
func (s *stack) redisCLI(service string, args ...string) (string, error) {
	command := []string{"docker", "exec", "-i", name(service), "redis-cli", "--user", "admin", "--askpass"}
	if s.redisTLS {
		command = append(command, "--tls", "--cacert", "/run/goshield/ca.pem")
	}
	out, err := tryWith(s.redisPassword, append(command, args...)...)
	if err == nil && (strings.HasPrefix(out, "ERR") || strings.HasPrefix(out, "NOAUTH") || strings.HasPrefix(out, "WRONGPASS")) {
		err = errors.New(out) // redis-cli ends with 0 all the same
	}
	return out, err
}

// cluster is the nodes as one of them sees them.
func (s *stack) cluster(service string) ([]node, error) {
	out, err := s.redisCLI(service, "cluster", "nodes")
	if err != nil {
		return nil, err
	}
	var nodes []node
	for line := range strings.Lines(out) {
		// id address:port@bus flags primary ping pong epoch link slots...
		f := strings.Fields(line)
		if len(f) < 8 {
			return nil, fmt.Errorf("not a line of cluster nodes: %q", line)
		}
		address, _, _ := strings.Cut(f[1], ":")
		flags := strings.Split(f[2], ",")
		n := node{
			id: f[0], address: address, service: "redis-" + strings.TrimPrefix(address, network+".3.1"),
			primary: slices.Contains(flags, "master"), of: f[3], slots: strings.Join(f[8:], " "),
			well: !slices.ContainsFunc(flags, func(flag string) bool { return strings.HasPrefix(flag, "fail") || flag == "noaddr" }) &&
				(f[7] == "connected" || slices.Contains(flags, "myself")),
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// whole waits until the cluster serves every slot by three primaries, each with a replica that follows, and
// every node says so. It returns the nodes, primaries first.
func (s *stack) whole(t *testing.T) []node {
	t.Helper()
	var nodes []node
	await(t, "Redis Cluster is whole", patience, func() error {
		for _, asked := range redisNodes {
			var err error
			if nodes, err = s.cluster(asked); err != nil {
				return err
			}
			primaries, followed := 0, map[string]bool{}
			for _, n := range nodes {
				if !n.well {
					return fmt.Errorf("%s does not reach %s", asked, n.service)
				}
				if n.primary && n.slots != "" {
					primaries++
				}
				followed[n.of] = true
			}
			if len(nodes) != 6 || primaries != 3 {
				return fmt.Errorf("%s knows of %d nodes, %d primaries", asked, len(nodes), primaries)
			}
			for _, n := range nodes {
				if n.primary && !followed[n.id] {
					return fmt.Errorf("%s has no replica", n.service)
				}
			}
			info, err := s.redisCLI(asked, "cluster", "info")
			if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384") {
				return fmt.Errorf("%s: the cluster is not ok (%v)", asked, err)
			}
			if info, err = s.redisCLI(asked, "info", "replication"); err != nil ||
				strings.Contains(info, "role:slave") && !strings.Contains(info, "master_link_status:up") ||
				strings.Contains(info, "role:master") && !strings.Contains(info, "state=online") {
				return fmt.Errorf("%s: replication is not there (%v)", asked, err)
			}
		}
		return nil
	})
	slices.SortFunc(nodes, func(a, b node) int {
		switch {
		case a.primary == b.primary:
			return strings.Compare(a.service, b.service)
		case a.primary:
			return -1
		}
		return 1
	})
	return nodes
}

// replicaOf is the replica of one of the nodes.
func replicaOf(t *testing.T, nodes []node, primary node) node {
	t.Helper()
	for _, n := range nodes {
		if n.of == primary.id {
			return n
		}
	}
	t.Fatalf("%s has no replica", primary.service)
	return node{}
}

// promoted waits until another node sees the replica as a primary.
func (s *stack) promoted(t *testing.T, asked, replica node) time.Duration {
	t.Helper()
	return await(t, replica.service+" is promoted", patience, func() error {
		nodes, err := s.cluster(asked.service)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.id == replica.id && n.primary && n.slots != "" {
				return nil
			}
		}
		return errors.New("it is not")
	})
}

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

// keyAt makes a key of one of the slots, which stand as in "cluster nodes": 0-5460 6000.
func keyAt(t *testing.T, slots string) string {
	t.Helper()
	first, _, _ := strings.Cut(slots, " ")
	from, to, isRange := strings.Cut(first, "-")
	if !isRange {
		to = from
	}
	var low, high int
	if _, err := fmt.Sscan(from+" "+to, &low, &high); err != nil {
		t.Fatalf("slots %q: %v", slots, err)
	}
	for i := 0; ; i++ {
		if key := fmt.Sprintf("goshield:suite:%d", i); slotOf(key) >= low && slotOf(key) <= high {
			return key
		}
	}
}

// slotOf is the slot of a key without braces, as Redis Cluster's specification has it: CRC-16/XMODEM, of 16384.
func slotOf(key string) int {
	crc := uint16(0)
	for _, b := range []byte(key) {
		crc ^= uint16(b) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return int(crc) % 16384
}

// TestSlotOf has the example of Redis's documentation.
func TestSlotOf(t *testing.T) {
	if got := slotOf("123456789"); got != 0x31c3 {
		t.Errorf("123456789: slot %#x, want 0x31c3", got)
	}
	if got := slotOf(keyAt(t, "16383 2-3")); got != 16383 {
		t.Errorf("a key of the last slot: slot %d", got)
	}
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

// keyCount is how many keys all primaries hold.
func (s *stack) keyCount(t *testing.T) int {
	t.Helper()
	total := 0
	for _, n := range s.whole(t)[:3] {
		out, err := s.redisCLI(n.service, "dbsize")
		var count int
		if err == nil {
			_, err = fmt.Sscan(out, &count)
		}
		if err != nil {
			t.Fatal(err)
		}
		total += count
	}
	return total
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
