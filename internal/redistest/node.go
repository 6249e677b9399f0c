package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const host = "127.0.0.1"

// Node is one server of an Own.
type Node struct {
	cluster   *Own
	port, bus int
	dir       string
	found     string // where clients find it: its own address, or that of what is before it
	id        string // in the cluster

	cmd    *exec.Cmd     // nil: not running
	exited chan struct{} // closed when the process has ended
	client *redis.Client
}

// Addr is where it listens, or listened.
func (n *Node) Addr() string { return net.JoinHostPort(host, strconv.Itoa(n.port)) }

// start starts the process and waits until it answers. Its data is the one it had: the append-only
// file, never synced, survives the process but not the machine.
func (n *Node) start() error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	_, announced, err := net.SplitHostPort(n.found)
	if err != nil {
		return err
	}
	delay := "0"
	if _, err := os.Stat(filepath.Join(n.dir, "nodes.conf")); err != nil && n.cluster.held {
		delay = "86400"
	}
	//nolint:gosec // G204: ports and paths of this package's own
	n.cmd = exec.Command("redis-server", "--bind", host, "--port", strconv.Itoa(n.port), "--cluster-port", strconv.Itoa(n.bus),
		"--dir", n.dir, "--logfile", filepath.Join(n.dir, "redis.log"), "--daemonize", "no",
		"--save", "", "--appendonly", "yes", "--appendfsync", "no", "--enable-debug-command", "local",
		"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
		"--cluster-node-timeout", strconv.FormatInt(NodeTimeout.Milliseconds(), 10),
		"--cluster-announce-port", announced, "--cluster-announce-bus-port", strconv.Itoa(n.bus),
		"--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", delay,
		"--cluster-replica-validity-factor", "0") // a replica takes over, however long it was frozen
	if err := n.cmd.Start(); err != nil {
		n.cmd = nil
		return err
	}
	n.exited = make(chan struct{})
	go n.wait()
	if _, err := fmt.Fprintln(n.cluster.pids, n.cmd.Process.Pid); err != nil {
		return err
	}
	n.client = redis.NewClient(&redis.Options{Addr: n.Addr(), Protocol: 2, DisableIdentity: true, MaxRetries: -1,
		DialerRetries: 1, PoolSize: 1000, PipelinePoolSize: -1, // so large that no dial in vain has the pool dial by itself
		ReadTimeout: 10 * time.Second, DialTimeout: 10 * time.Second})
	ctx := context.Background() // of cleanups, too
	for deadline := time.Now().Add(patience); n.client.Ping(ctx).Err() != nil; time.Sleep(poll) {
		select {
		case <-n.exited:
			return fmt.Errorf("redis-server ended: %s", n.lastLog())
		default:
		}
		if time.Now().After(deadline) {
			return errors.New("redis-server does not answer")
		}
	}
	return nil
}

func (n *Node) lastLog() string {
	text, err := os.ReadFile(filepath.Join(n.dir, "redis.log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// wait ends with the process.
func (n *Node) wait() {
	defer close(n.exited)
	_ = n.cmd.Wait() // that it was killed is no news
}

// Kill ends the process at once, frozen or not, as the machine's death would.
func (n *Node) Kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill() // or it ended by itself
	<-n.exited
	_ = n.client.Close()
	n.cmd = nil
}

// Start starts a killed node again, with the data it had.
func (n *Node) Start() {
	n.cluster.t.Helper()
	if err := n.start(); err != nil {
		n.cluster.t.Fatalf("start %s again: %v", n.Addr(), err)
	}
}

// Freeze stops the process until Thaw: its connections stay, and nothing comes out of them.
func (n *Node) Freeze() { n.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (n *Node) Thaw() { n.signal(syscall.SIGCONT) }

func (n *Node) signal(s syscall.Signal) {
	n.cluster.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.cluster.t.Fatalf("%v to %s: %v", s, n.Addr(), err)
	}
}

// DropReplica closes the connection to the node's replica. A frozen one does not come back: what
// the node writes from now on is on no other.
func (n *Node) DropReplica() {
	n.cluster.t.Helper()
	n.do("client", "kill", "type", "replica")
}

// Fields reads the hash at key on this very node.
func (n *Node) Fields(key string) map[string]string {
	n.cluster.t.Helper()
	fields, err := n.client.HGetAll(n.cluster.t.Context(), key).Result()
	if err != nil {
		n.cluster.t.Fatalf("%s: hgetall: %v", n.Addr(), err)
	}
	return fields
}

// Client speaks to this very node, follows no redirects and repeats nothing. It is closed when the node is killed.
func (n *Node) Client() *redis.Client { return n.client }

// do sends a command that has to succeed.
func (n *Node) do(args ...any) any {
	n.cluster.t.Helper()
	v, err := n.client.Do(n.cluster.t.Context(), args...).Result()
	if err != nil {
		n.cluster.t.Fatalf("%s: %v: %v", n.Addr(), args, err)
	}
	return v
}

// says wants a line of INFO section, or of CLUSTER INFO.
func (n *Node) says(section, line string) error {
	if n.cmd == nil {
		return fmt.Errorf("%s: %w", n.Addr(), errNotRunning)
	}
	args := []any{"info", section}
	if section == "cluster" {
		args = []any{"cluster", "info"}
	}
	text, err := n.client.Do(n.cluster.t.Context(), args...).Text()
	if err == nil && !infoSays(text, line) {
		err = fmt.Errorf("says not %s", line)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", n.Addr(), err)
	}
	return nil
}

// whole reports what the node lacks of a whole cluster.
func (n *Node) whole() error {
	err := n.says("cluster", "cluster_state:ok")
	for _, line := range []string{fmt.Sprintf("cluster_slots_ok:%d", slots), fmt.Sprintf("cluster_known_nodes:%d", ownNodes)} {
		if err == nil {
			err = n.says("cluster", line)
		}
	}
	if err == nil {
		err = n.seesReplicas()
	}
	switch {
	case err != nil:
		return err
	case n.isPrimary():
		return n.says("replication", "connected_slaves:1")
	}
	return n.says("replication", "master_link_status:up")
}

// seesReplicas: gossip tells a node later than others who is a replica, and clients ask any node.
func (n *Node) seesReplicas() error {
	text, err := n.client.ClusterNodes(n.cluster.t.Context()).Result()
	if err == nil && strings.Count(text, "slave") != shards {
		err = errors.New("does not see every replica")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", n.Addr(), err)
	}
	return nil
}

func (n *Node) isPrimary() bool { return n.says("replication", "role:master") == nil }

// IsPrimary reports whether the node runs and takes itself for a primary.
func (n *Node) IsPrimary() bool { return n.isPrimary() }
