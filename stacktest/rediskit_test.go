package stacktest

// Redis Cluster, as the steps ask it: its nodes, who is whose replica, keys of a slot.

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
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
