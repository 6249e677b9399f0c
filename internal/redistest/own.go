package redistest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/redisdb"
)

// NodeTimeout is the cluster-node-timeout of an Own: whoever is silent for so long counts as gone.
const NodeTimeout = 2 * time.Second

const (
	shards   = 3
	ownNodes = 2 * shards
	slots    = 16384
	// patience is for any one thing to come true, on a busy machine.
	patience = 90 * time.Second
	poll     = 20 * time.Millisecond
)

// Own is a cluster of a test's own, to be broken: six processes of redis-server, three primaries
// with a replica each. Only the test's own goroutine may use it.
type Own struct {
	t     testing.TB
	dir   string
	nodes []*Node   // i and i+3 are a shard
	guard *exec.Cmd // kills the processes if the test's own process dies
	pids  *os.File  // the guard's input
	held  bool      // a node without data hands nothing on to replicas, as redis/start has it
	base  int       // ports base to base+11: six for clients, six for the bus
	front func(addr string) string
	rng   *rand.Rand // for ports
}

// StartOwn starts a cluster, which ends with the test. It skips the test where EnvCluster is not
// set: then nobody asks for tests on a real cluster.
func StartOwn(t testing.TB) *Own {
	t.Helper()
	return StartOwnBehind(t, nil)
}

// StartOwnBehind is StartOwn with something before each node: front is given where a node is going to listen, and returns
// where on the same host clients, and its replica, are to find it instead. Nil: there is nothing before them.
func StartOwnBehind(t testing.TB, front func(addr string) string) *Own {
	t.Helper()
	c := startServers(t, false, front)
	c.form()
	c.AwaitWhole()
	return c
}

// startServers starts the six servers, which do not know each other.
func startServers(t testing.TB, held bool, front func(addr string) string) *Own {
	t.Helper()
	if ClusterAddrs() == nil {
		t.Skipf("%s is not set", EnvCluster)
	}
	c := &Own{t: t, dir: t.TempDir(), held: held, rng: rand.New(rand.NewPCG(rand.Uint64(), uint64(os.Getpid()))), front: front}
	t.Cleanup(c.end)
	if err := c.startGuard(); err != nil {
		t.Fatalf("start the guard of redis-server: %v", err)
	}
	for attempt := 0; ; attempt++ {
		err := c.startNodes()
		if err == nil {
			break
		}
		if c.kill(); attempt == 10 {
			t.Fatalf("start redis-server: %v", err)
		}
	}
	return c
}

// startGuard starts a shell that reads process ids until its input ends, and kills what they name.
func (c *Own) startGuard() error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	c.pids = write
	c.guard = exec.Command("sh", "-c", `while read -r pid; do pids="$pids $pid"; done; kill -9 $pids 2>/dev/null`)
	c.guard.Stdin = read
	return c.guard.Start()
}

// startNodes starts six servers on free ports, below those of outgoing connections and apart from
// those of scripts/redis-cluster.
func (c *Own) startNodes() error {
	const first, last = 22_500, 29_900
	c.base = first + c.rng.IntN((last-first)/(2*ownNodes))*2*ownNodes
	for port := c.base; port < c.base+2*ownNodes; port++ {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		if err := ln.Close(); err != nil {
			return err
		}
	}
	c.nodes = nil
	for i := range ownNodes {
		n := &Node{cluster: c, port: c.base + i, bus: c.base + ownNodes + i, dir: filepath.Join(c.dir, strconv.Itoa(c.base+i))}
		n.found = n.Addr()
		if c.front != nil {
			n.found = c.front(n.Addr())
		}
		c.nodes = append(c.nodes, n)
		if err := n.start(); err != nil {
			return err
		}
	}
	return nil
}

// form makes the six servers one cluster.
func (c *Own) form() {
	c.t.Helper()
	per := (slots + shards - 1) / shards
	for i, n := range c.nodes {
		n.do("cluster", "set-config-epoch", i+1)
		if i < shards {
			n.do("cluster", "addslotsrange", i*per, min((i+1)*per, slots)-1)
		}
		n.id = n.do("cluster", "myid").(string)
	}
	for _, n := range c.nodes[1:] {
		c.nodes[0].do("cluster", "meet", host, n.port, n.bus)
	}
	c.await("all nodes know each other", func() error {
		for _, n := range c.nodes {
			if err := n.says("cluster", fmt.Sprintf("cluster_known_nodes:%d", ownNodes)); err != nil {
				return err
			}
		}
		return nil
	})
	for i, n := range c.nodes[shards:] {
		c.await("a replica knows its primary", func() error {
			return n.client.Do(c.t.Context(), "cluster", "replicate", c.nodes[i].id).Err()
		})
	}
}

// AwaitWhole waits until all six nodes run, agree, and each shard has a primary whose replica
// follows it.
func (c *Own) AwaitWhole() {
	c.t.Helper()
	c.await("the cluster is whole", func() error {
		for _, n := range c.nodes {
			if err := n.whole(); err != nil {
				return err
			}
		}
		for i := range shards {
			if a, b := c.nodes[i].isPrimary(), c.nodes[i+shards].isPrimary(); a == b {
				return fmt.Errorf("shard %d: two nodes of one role", i)
			}
		}
		return nil
	})
}

// await polls until check finds nothing wrong.
func (c *Own) await(what string, check func() error) {
	c.t.Helper()
	var wrong error
	ok := until(func() bool {
		wrong = check()
		return wrong == nil
	})
	if !ok {
		c.t.Fatalf("not within %v: %s: %v", patience, what, wrong)
	}
}

// Until polls for a condition, for long: the machine may be busy.
func Until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	if !until(condition) {
		t.Fatalf("not within %v: %s", patience, what)
	}
}

func until(condition func() bool) bool {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Addrs are where clients find its nodes, dead ones too.
func (c *Own) Addrs() []string {
	var addrs []string
	for _, n := range c.nodes {
		addrs = append(addrs, n.found)
	}
	return addrs
}

// Nodes are all of them.
func (c *Own) Nodes() []*Node { return c.nodes }

// Config connects to it with production's timeouts.
func (c *Own) Config() redisdb.Config {
	cfg := redisdb.DefaultConfig()
	cfg.Addresses, cfg.Mode = c.Addrs(), redisdb.ModeCluster
	return cfg
}

// Open connects to it with production's timeouts, until the test ends.
func (c *Own) Open() *redis.ClusterClient {
	c.t.Helper()
	rdb, err := redisdb.Open(c.t.Context(), c.Config())
	if err != nil {
		c.t.Fatalf("open redis: %v", err)
	}
	c.t.Cleanup(func() { _ = rdb.Close() })
	return rdb.(*redis.ClusterClient)
}

// Shard returns the primary and the replica of a key's slot, in a cluster that is whole and was
// not resharded.
func (c *Own) Shard(key string) (primary, replica *Node) {
	c.t.Helper()
	slot := c.nodes[0].do("cluster", "keyslot", key).(int64)
	i := int(slot) / ((slots + shards - 1) / shards)
	primary, replica = c.nodes[i], c.nodes[i+shards]
	if !primary.isPrimary() {
		primary, replica = replica, primary
	}
	return primary, replica
}

// Reshard moves n slots, with their keys, from the shard of one node to that of another, both of
// them primaries, as an operator does: with redis-cli. It may be called by another goroutine.
func (c *Own) Reshard(ctx context.Context, n int, from, to *Node) error {
	//nolint:gosec // G204: addresses of this package's own
	out, err := exec.CommandContext(ctx, "redis-cli", "--cluster", "reshard", to.Addr(), "--cluster-from", from.id,
		"--cluster-to", to.id, "--cluster-slots", strconv.Itoa(n), "--cluster-yes").CombinedOutput()
	if err != nil {
		return fmt.Errorf("redis-cli --cluster reshard: %w: %s", err, out[max(0, len(out)-400):])
	}
	return nil
}

// kill ends all nodes.
func (c *Own) kill() {
	for _, n := range c.nodes {
		n.Kill()
	}
}

func (c *Own) end() {
	c.kill()
	if c.guard == nil {
		return
	}
	err := c.pids.Close()
	_ = c.guard.Wait() // its kill fails: all are dead
	if err != nil {
		c.t.Errorf("end the guard of redis-server: %v", err)
	}
	if c.t.Failed() {
		for _, n := range c.nodes {
			text, _ := os.ReadFile(filepath.Join(n.dir, "redis.log"))
			c.t.Logf("%s logged at last:\n%s", n.Addr(), text[max(0, len(text)-1500):])
		}
	}
}

var errNotRunning = errors.New("not running")

// infoSays reports whether an INFO or a CLUSTER INFO has a line.
func infoSays(text, line string) bool {
	for have := range strings.Lines(text) {
		if strings.TrimRight(have, "\r\n") == line {
			return true
		}
	}
	return false
}
