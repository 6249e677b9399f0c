package stacktest

// Docker Compose as the tests use it.

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	project = "goshield-test" // of its own, so that nobody's volumes are removed
	network = "10.78"
	vip     = network + ".1.100"

	// patience bounds what has no promised time: the machine may be slow.
	patience = 5 * time.Minute

	// mark is the label of containers that the tests run beside those of Compose, so that scripts/stack-test
	// finds them when a run was killed.
	mark = "org.goshield.test=" + project
)

// compose runs Docker Compose and returns its output.
func compose(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, append(composeCommand(), args...)...)
}

func composeCommand() []string {
	if command := strings.Fields(os.Getenv("GOSHIELD_COMPOSE")); len(command) > 0 {
		return command
	}
	return []string{"docker", "compose"}
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, append([]string{"docker"}, args...)...)
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try runs a command of the suite's own at the repository's root.
func try(args ...string) (string, error) { return tryWith("", args...) }

// tryWith is try with something on standard input.
func tryWith(stdin string, args ...string) (string, error) {
	var stdout, stderr strings.Builder
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience) // one that hangs tells what it was
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+project, "GOSHIELD_NET="+network)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if slices.Contains(args, "--rm") { // all that its container said
		gone.add("containers of single commands", stdout.String()+stderr.String())
	}
	if err != nil {
		text := stderr.String()
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, text[max(0, len(text)-1000):])
	}
	return stdout.String(), nil
}

// await waits until check returns nil, at most for limit, and returns how long it took.
func await(t *testing.T, what string, limit time.Duration, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := check()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > limit {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// promised holds what took some time against what the rows of docs/reliability.md allow.
func promised(t *testing.T, what string, took, limit time.Duration) {
	t.Helper()
	t.Attr("promised", fmt.Sprintf("%s within %v: %v", what, limit, took.Round(100*time.Millisecond)))
	if took > limit {
		t.Errorf("%s: after %v, promised are %v", what, took.Round(100*time.Millisecond), limit)
	}
}

// firstUp is what somebody does who has the images: one command, which must end well, and in time.
func firstUp(t *testing.T) {
	t.Helper()
	start := time.Now()
	compose(t, "up", "-d", "--wait", "--no-build", "--quiet-pull")
	promised(t, "all is up and healthy", time.Since(start), 3*time.Minute)
}

// replicas are how many gateways there are unless a test has scaled them.
const replicas = 2

// up brings all of it to health again, whatever a test has done. Compose gives up at once on a part that is
// unwell, as one is that was just frozen. Gateways that it removes are heard.
func up(t *testing.T, args ...string) {
	t.Helper()
	if gateways := everyContainer(t, "gateway"); len(gateways) > replicas {
		listen(t, gateways, func() { bringUp(t, args...) })
		return
	}
	bringUp(t, args...)
}

func bringUp(t *testing.T, args ...string) {
	t.Helper()
	await(t, "all is up and healthy", patience, func() error {
		_, err := try(append(composeCommand(), append([]string{"up", "-d", "--wait", "--wait-timeout", "120", "--no-build", "--quiet-pull"}, args...)...)...)
		return err
	})
}

// containers are the names of a service's running containers.
func containers(t *testing.T, service string) []string {
	t.Helper()
	names := strings.Fields(compose(t, "ps", "--format", "{{.Name}}", service))
	slices.Sort(names)
	return names
}

// addressIn is a container's address in one of the networks.
func addressIn(t *testing.T, container, net string) string {
	t.Helper()
	format := fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", project+"_"+net)
	return strings.TrimSpace(docker(t, "inspect", "-f", format, container))
}

// block takes a container the way to an address of a network that both are in: what it sends there goes to a
// neighbour that does not exist. (A route to nowhere would not do: keepalived's socket is bound to its
// interface and passes it by.) What block returns gives the way back.
func block(t *testing.T, container, address string) (unblock func()) {
	t.Helper()
	neighbour := func(change string) error {
		_, err := try("docker", "run", "--rm", "--label", mark, "--network", "container:"+container, "--cap-drop", "ALL", "--cap-add", "NET_ADMIN",
			"--entrypoint", "sh", "goshield/keepalived", "-ec",
			`device=$(ip -o route get "$0" | sed -n 's/.* dev \([^ ]*\).*/\1/p'); ip neigh `+change+` "$0" dev "$device"`, address)
		return err
	}
	if err := neighbour("replace lladdr 02:00:00:00:00:01 nud permanent"); err != nil {
		t.Fatal(err)
	}
	unblock = sync.OnceFunc(func() {
		if err := neighbour("del"); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(unblock) // also when the test has failed
	return unblock
}

// get asks one of the published pages.
func get(page string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second} // one that is frozen does not answer
	resp, err := client.Get(page)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.300s", page, resp.Status, body)
	}
	return string(body), err
}

// series asks Prometheus and returns the values it answers.
func series(query string) ([]string, error) {
	body, err := get("http://127.0.0.1:9090/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			ResultType string          `json:"resultType"`
			Result     json.RawMessage `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return nil, err
	}
	if answer.Data.ResultType == "scalar" {
		return []string{string(answer.Data.Result)}, nil
	}
	var samples []struct {
		Value [2]any `json:"value"`
	}
	if err := json.Unmarshal(answer.Data.Result, &samples); err != nil {
		return nil, err
	}
	values := make([]string, len(samples))
	for i, s := range samples {
		values[i] = fmt.Sprint(s.Value[1])
	}
	return values, nil
}

// status pages of the load balancers, as they are published.
var adminOf = map[string]string{"a": "http://127.0.0.1:9091", "b": "http://127.0.0.1:9092"}

// balancer is what a load balancer's admin API tells of it.
type balancer struct {
	Connections int
	Rebalancing []string
	Upstreams   []upstream
}

type upstream struct {
	Address     string
	Health      string
	Share       float64 // of its weight; below 1 when it has just come
	Connections int64
}

// up are the upstreams that are well.
func (b balancer) up() []upstream {
	return slices.DeleteFunc(slices.Clone(b.Upstreams), func(u upstream) bool { return u.Health != "up" })
}

func statusOf(side string) (balancer, error) {
	var b balancer
	body, err := get(adminOf[side] + "/api/status")
	if err == nil {
		err = json.Unmarshal([]byte(body), &b)
	}
	return b, err
}

// has reports whether a side says that it has the virtual IP. One that does not answer has not.
func has(side string) bool {
	body, err := get(adminOf[side] + "/metrics")
	return err == nil && strings.Contains(body, "\ngoshield_keepalived_master 1\n")
}

// masters are the sides that have the virtual IP. Both are asked at once: one that is frozen would
// keep the other waiting.
func masters() []string {
	other := make(chan bool)
	go func() { other <- has("b") }()
	var sides []string
	if has("a") {
		sides = append(sides, "a")
	}
	if <-other {
		sides = append(sides, "b")
	}
	return sides
}

// master waits until exactly one side has the virtual IP.
func master(t *testing.T) string {
	t.Helper()
	var side string
	await(t, "one master", patience, func() error {
		all := masters()
		if len(all) != 1 {
			return fmt.Errorf("masters: %v", all)
		}
		side = all[0]
		return nil
	})
	return side
}

// secretsDir gets what devices have out of the volume, once.
func secretsDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	compose(t, "cp", "init:/var/lib/goshield/devices/.", dir)
	for _, name := range []string{authority, "group-key"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// redisPassword gets the Redis administrator's password out of its volume.
func redisPassword(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	compose(t, "cp", "init:/var/lib/goshield/operator/redis-password", dir)
	text, err := os.ReadFile(filepath.Join(dir, "redis-password"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
