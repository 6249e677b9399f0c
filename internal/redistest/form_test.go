package redistest

// redis/form, which makes a cluster of the nodes of docker-compose.yml at each start, whatever has become of them.

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// formCluster runs redis/form over the nodes, with less patience for a replica that does not take over.
func (c *Own) formCluster() (output string, err error) {
	c.t.Helper()
	const password = "the-administrator-of-this-test"
	secrets := c.t.TempDir()
	if err := os.WriteFile(filepath.Join(secrets, "password"), []byte(password+"\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.nodes {
		n.do("acl", "setuser", "admin", "on", ">"+password, "~*", "&*", "+@all")
		n.do("config", "set", "cluster-replica-no-failover", "yes") // none takes over by itself
	}
	script, err := os.ReadFile("../../redis/form")
	if err != nil {
		c.t.Fatal(err)
	}
	text := strings.Replace(string(script), "own_accord=10 ", "own_accord=3 ", 1)
	cmd := exec.CommandContext(c.t.Context(), "sh", "-c", text)
	cmd.Env = append(os.Environ(), "NODES="+strings.Join(c.Addrs(), "\n "), "SECRETS="+secrets)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// formed wants redis/form to make a whole cluster, and to say something.
func (c *Own) formed(what, want string) {
	c.t.Helper()
	out, err := c.formCluster()
	if err != nil || !strings.Contains(out, want) {
		c.t.Fatalf("%s: %v, want output with %q, got:\n%s", what, err, want, out)
	}
	c.await(what+": the cluster is whole", func() error {
		primaries := 0
		for _, n := range c.nodes {
			if err := n.whole(); err != nil {
				return err
			}
			if n.isPrimary() {
				primaries++
				if err := n.says("replication", "connected_slaves:1"); err != nil {
					return err
				}
			}
		}
		if primaries != shards {
			return fmt.Errorf("%d primaries, want %d", primaries, shards)
		}
		return nil
	})
}

// refused wants redis/form to give up and to say why.
func (c *Own) refused(what, want string) {
	c.t.Helper()
	if out, err := c.formCluster(); err == nil || !strings.Contains(out, want) {
		c.t.Errorf("%s: %v, want an error and output with %q, got:\n%s", what, err, want, out)
	}
}

// restart ends all nodes and starts them again, some without the data they had.
func (c *Own) restart(lost ...*Node) {
	c.t.Helper()
	c.kill()
	for _, n := range lost {
		if err := os.RemoveAll(n.dir); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, n := range c.nodes {
		n.Start()
	}
}

// pair finds a primary, and its replica.
func (c *Own) pair() (primary, replica *Node) {
	c.t.Helper()
	for _, n := range c.nodes {
		if !n.isPrimary() {
			continue
		}
		for _, r := range c.nodes {
			if r.says("replication", fmt.Sprintf("master_port:%d", n.port)) == nil {
				return n, r
			}
		}
	}
	c.t.Fatal("no primary has a replica")
	return nil, nil
}

func TestComposeFormsACluster(t *testing.T) {
	c := startServers(t, true, nil)

	// A first start was cut short: slots are given out, two nodes know each other.
	c.nodes[0].do("cluster", "addslotsrange", 0, 5460)
	c.nodes[1].do("cluster", "addslotsrange", 5461, 10922)
	c.nodes[0].do("cluster", "meet", host, c.nodes[1].port, c.nodes[1].bus)
	c.formed("cut short", "All 16384 slots covered")
	c.formed("a second time", "formed already")

	rdb := c.Open()
	const keys = 100
	for i := range keys {
		c.await("a key is set", func() error { return rdb.Set(t.Context(), fmt.Sprint(i), i, 0).Err() })
	}
	have := func(what string) {
		t.Helper()
		for i := range keys {
			var got int
			c.await(what+": a key is there", func() (err error) {
				got, err = rdb.Get(t.Context(), fmt.Sprint(i)).Int()
				return err
			})
			if got != i {
				t.Fatalf("%s: key %d is %d", what, i, got)
			}
		}
	}
	whole := func() { // so that nothing is lost with one node
		t.Helper()
		for _, n := range c.nodes {
			if n.isPrimary() {
				n.do("wait", 1, 10_000)
			}
		}
	}

	c.restart()
	c.formed("all restarted", "formed already")
	_, replica := c.pair()
	c.restart(replica)
	c.formed("a replica has lost its volume", replica.Addr()+" joins the cluster")
	have("a replica has lost its volume")

	whole()
	primary, replica := c.pair()
	c.restart(primary)
	c.formed("a primary has lost its volume", replica.Addr()+" takes the place of its primary")
	have("a primary has lost its volume")

	// A node of another cluster, with data.
	_, replica = c.pair()
	c.restart(replica)
	replica.do("cluster", "addslotsrange", 0, slots-1)
	c.await("the strange node serves", func() error { return replica.client.Set(t.Context(), "k", "v", 0).Err() })
	c.refused("a strange node has keys", "is not in the cluster of")
	c.restart(replica)
	c.formed("the strange node is emptied", replica.Addr()+" joins the cluster")

	whole()
	primary, replica = c.pair()
	c.restart(primary, replica)
	c.refused("a primary and its replica are lost", "with the data of its slots")
}
