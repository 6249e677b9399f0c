package stacktest

// One environment, one thing after another done to it under load.

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
)

// devices is how many are connected while something is broken.
const devices = 60

// Devices that come for one step are counted from these numbers.
const (
	visitors = 1000
	storm    = 10000
)

// long is set for the full sizes of RELIABILITY's rows.
var long = os.Getenv("GOSHIELD_TEST_LONG") != ""

// keep leaves the environment up at the end, for whoever works on one step.
var keep = os.Getenv("GOSHIELD_STACK_KEEP") != ""

// times is how often each step is run, for figures: one failover tells little of the next.
func times(t *testing.T) int {
	t.Helper()
	text := os.Getenv("GOSHIELD_STACK_TIMES")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("GOSHIELD_STACK_TIMES: %q is not a number of times", text)
	}
	return n
}

// stack is what the steps share.
type stack struct {
	t     *testing.T // of all steps
	keys  keys
	store client.TokenStore
	fleet *fleet // through the virtual IP

	redisPassword string // the administrator's
	redisTLS      bool

	failovers []time.Duration // longest silence of each device, in each failover of the virtual IP
	page      *page           // nil until it is opened
}

func TestStack(t *testing.T) {
	needEngine(t)
	if keep {
		up(t) // with what an earlier run has left
	} else {
		firstUp(t)
	}
	s := &stack{t: t, keys: readKeys(t, secretsDir(t)), store: client.MemoryStore(), redisPassword: redisPassword(t)}
	s.fleet = startFleet(t, s.keys, 0, devices, vip+":8443", s.store)
	again := times(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *stack)
	}{
		{"images are small", imagesAreSmall},
		{"every door leads in", everyDoor},
		{"commands of the README", commands},
		{"gateways scale under load", scaleGateways},
		{"gateways are replaced one by one (23)", rollGateways},
		{"two gateways drain at once (24)", twoGatewaysDrain},
		{"the other services are replaced one by one", rollOthers},
		{"load balancers are replaced one by one", rollBalancers},
		{"keepalived is replaced, one after the other", rollKeepalived},
		{"owners of the addresses are replaced one by one", rollOwners},
		{"Redis nodes are replaced one by one", rollRedis},
		{"load balancer dies (31)", balancerDies},
		{"keepalived dies (30)", keepalivedDies},
		{"load balancer is cut off (30)", balancerCutOff},
		{"VRRP is cut (32)", vrrpCut},
		{"load balancer freezes (33)", balancerFreezes},
		{"all devices come back at once (18)", allComeBack},
		{"somebody opens the status page", openPage},
		{"gateway dies (21)", gatewayDies},
		{"gateway freezes (22)", gatewayFreezes},
		{"one auth-service is lost", authReplicaLost},
		{"auth-service is gone (47)", authGone},
		{"Redis primary dies (34)", primaryDies},
		{"Redis primary dies while tokens rotate (35)", primaryDiesInRotation},
		{"all of Redis freezes (36)", redisFreezes},
		{"Redis primary is cut from the others (37)", primaryCutOff},
		{"Redis is restored from a backup", backupAndRestore},
		{"slots move (38)", slotsMove},
		{"alerts and panels find their data", queriesFindData},
		{"a picture of it", picture},
		{"nothing secret is seen (50)", nothingSecret},
		{"down and up again", downAndUp},
	} {
		for range again {
			if !t.Run(step.name, func(t *testing.T) { step.run(t, s) }) {
				return // what follows would begin with what this one left
			}
		}
	}
	s.reportFailovers(t)
	s.fleet.stop()
	if !keep {
		downForGood(t)
	}
}

// needEngine skips without a Docker engine, and takes all down at the end.
func needEngine(t *testing.T) {
	t.Helper()
	if os.Getenv("GOSHIELD_STACK") == "" {
		t.Skip("needs a Docker engine: scripts/stack-test runs it")
	}
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t)
		}
		if !keep {
			compose(t, "down", "-v", "--timeout", "5")
		}
	})
}

// downForGood removes all, and fails the test for what is left.
func downForGood(t *testing.T) {
	t.Helper()
	compose(t, "down", "-v", "--timeout", "10")
	for _, kind := range []string{"container", "volume", "network"} {
		list := []string{kind, "ls", "-q", "--filter", "label=com.docker.compose.project=" + project}
		if kind == "container" {
			list = append(list, "-a")
		}
		if left := docker(t, list...); left != "" {
			t.Errorf("down -v left a %s: %s", kind, left)
		}
	}
}

// keepLogs prints the end of each log of the parts that faults are about.
func keepLogs(t *testing.T) {
	out, err := try("docker", "ps", "-a", "--filter", "label=com.docker.compose.project="+project, "--format", "{{.Names}}\t{{.Status}}")
	t.Logf("containers (%v):\n%s", err, out)
	for line := range strings.Lines(out) {
		name, status, _ := strings.Cut(strings.TrimSpace(line), "\t")
		service := strings.TrimPrefix(name, project+"-")
		interesting := strings.Contains(status, "unhealthy") || strings.Contains(status, "Restarting")
		for _, prefix := range []string{"gateway", "lb", "keepalived", "redis-cluster"} {
			interesting = interesting || strings.HasPrefix(service, prefix)
		}
		if interesting {
			text, _ := try("sh", "-c", "docker logs --tail 15 "+name+" 2>&1")
			t.Logf("%s:\n%s", name, text)
		}
	}
}

// broken runs a fault under load and reports what the devices saw: everything is healthy and
// answered before and after.
func (s *stack) broken(t *testing.T, fault func()) report {
	t.Helper()
	up(t)
	s.fleet.settle(t)
	s.fleet.reset()
	fault()
	s.fleet.settle(t)
	r := s.fleet.report()
	t.Log(r)
	if r.enrolled > 0 {
		t.Errorf("%d devices lost their token", r.enrolled)
	}
	return r
}

// noneFailed is broken for a fault that no request may notice.
func (s *stack) noneFailed(t *testing.T, fault func()) report {
	t.Helper()
	r := s.broken(t, fault)
	for _, err := range r.failures {
		t.Errorf("a request failed: %v", err)
	}
	return r
}

// unnoticed is noneFailed for a fault that no connection may notice either. It begins when no device moves because of what
// was before.
func (s *stack) unnoticed(t *testing.T, fault func()) {
	t.Helper()
	up(t)
	s.fleet.settle(t)
	s.levelled(t, 2)
	moved := rebalanced(t)
	r := s.noneFailed(t, fault)
	if moved = rebalanced(t) - moved; r.connects > moved {
		t.Errorf("%d devices had to reconnect, %d of them to even out, want no others", r.connects, moved)
	}
}

// failoverLimit is what rows 21 and 30 to 33 promise. What it took is told at the end.
const failoverLimit = 10 * time.Second

// back fails the test for a device that was without an answer for longer than it may.
func (r report) back(t *testing.T, limit time.Duration) {
	t.Helper()
	if worst := r.gaps[len(r.gaps)-1]; worst > limit {
		t.Errorf("a device was without an answer for %v, promised are %v", worst, limit)
	}
}

// roll restarts containers one after the other.
func (s *stack) roll(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		docker(t, "restart", "-t", "60", name)
		healthy(t, name)
		s.fleet.settle(t)
	}
}

func healthy(t *testing.T, name string) {
	t.Helper()
	await(t, name+" is healthy", patience, func() error {
		out, err := try("docker", "inspect", "-f", "{{.State.Health.Status}}", name)
		if err == nil && strings.TrimSpace(out) != "healthy" {
			err = errors.New(strings.TrimSpace(out))
		}
		return err
	})
}

// name is that of a service's only container.
func name(service string) string { return project + "-" + service + "-1" }

func downAndUp(t *testing.T, s *stack) {
	s.fleet.stop()
	compose(t, "down")
	start := time.Now()
	up(t)
	t.Attr("up_again", time.Since(start).Round(time.Second).String())
	s.fleet = startFleet(s.t, s.keys, 0, devices, vip+":8443", s.store)
	s.fleet.settle(t)
	if r := s.fleet.report(); r.enrolled > 0 {
		t.Errorf("%d of %d devices could not resume", r.enrolled, devices)
	}
}

// imagesAreSmall holds the images of the services against what they may take. The command, which has all of
// them in it, is only told.
func imagesAreSmall(t *testing.T, _ *stack) {
	const limit = 20e6
	for _, service := range []string{"lb", "gateway", "auth-service", "echo-backend", "goshield"} {
		var size float64
		if _, err := fmt.Sscan(docker(t, "image", "inspect", "-f", "{{.Size}}", "goshield/"+service), &size); err != nil {
			t.Fatal(err)
		}
		t.Attr("image", fmt.Sprintf("goshield/%s %.1f MB", service, size/1e6))
		if size > limit && service != "goshield" {
			t.Errorf("goshield/%s has %.1f MB, want %.0f at most", service, size/1e6, limit/1e6)
		}
	}
}
