// Package demo_test walks through the demo as its README tells it: three
// servers, the load balancer, clients; then a server dies and comes back.
package demo_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/porttest"
)

// patience is how long anything may take on a machine that is busy.
const patience = 60 * time.Second

// build compiles the file of one directory, as `go run` does there.
func build(t *testing.T, dir, file string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), strings.TrimSuffix(file, ".go"))
	cmd := exec.Command("go", "build", "-o", bin, file)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", file, err, out)
	}
	return bin
}

// process is a program that runs until it is killed.
type process struct {
	cmd   *exec.Cmd
	lines chan string // of its standard error
	seen  []string
}

func run(t *testing.T, bin string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(bin, args...), lines: make(chan string, 1000)}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.read(stderr)
	t.Cleanup(p.kill)
	return p
}

// read ends when the process has.
func (p *process) read(stderr io.Reader) {
	defer close(p.lines)
	for s := bufio.NewScanner(stderr); s.Scan(); {
		p.lines <- s.Text()
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	for range p.lines { // until it has ended
	}
	_ = p.cmd.Wait()
}

// expect waits for a line that holds all the texts, and returns it.
func (p *process) expect(t *testing.T, texts ...string) string {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("%s ended without a line with %q; it said:\n%s", p.cmd, texts, strings.Join(p.seen, "\n"))
			}
			p.seen = append(p.seen, line)
			if containsAll(line, texts) {
				return line
			}
		case <-timeout:
			t.Fatalf("%s: no line with %q; it said:\n%s", p.cmd, texts, strings.Join(p.seen, "\n"))
		}
	}
}

// said waits for such a line unless there was one already.
func (p *process) said(t *testing.T, texts ...string) {
	t.Helper()
	for _, line := range p.seen {
		if containsAll(line, texts) {
			return
		}
	}
	p.expect(t, texts...)
}

func containsAll(line string, texts []string) bool {
	for _, text := range texts {
		if !strings.Contains(line, text) {
			return false
		}
	}
	return true
}

// listening is the port on which a process says that it listens.
func (p *process) listening(t *testing.T) string {
	t.Helper()
	_, addr, _ := strings.Cut(p.expect(t, "listening on "), "listening on ")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// clients runs n clients at once, checks what they print, and counts which server
// each of them reached.
func clients(t *testing.T, bin, port string, n int) (reached map[string]int, rotated bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	outputs := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			out, err := exec.CommandContext(ctx, bin, "localhost", port).CombinedOutput()
			if err != nil {
				t.Errorf("client: %v\n%s", err, out)
			}
			outputs[i] = string(out)
		})
	}
	wg.Wait()
	reached = map[string]int{}
	for _, out := range outputs {
		for text, least := range map[string]int{"WELCOME ": 1, "RESPONSE ": 5, "HEARTBEAT_ACK": 5, "rate_limited: slow down": 1} {
			if got := strings.Count(out, text); got < least {
				t.Errorf("client printed %q %d times, want at least %d:\n%s", text, got, least, out)
			}
		}
		if fields := strings.Fields(out); len(fields) > 2 {
			reached[fields[1]+" "+fields[2]]++
		}
		rotated = rotated || strings.Contains(out, "with a new token")
	}
	return reached, rotated
}

func TestWalk(t *testing.T) {
	server, lb, client := build(t, "server", "server.go"), build(t, "load_balancer", "load_balancer.go"), build(t, "client", "client.go")
	servers, ports := make([]*process, 3), []string{"0"}
	for i := range servers {
		want := "0"
		if i == 0 { // the one that will die, and come back where it was
			_, want, _ = net.SplitHostPort(porttest.Held(t))
		}
		servers[i] = run(t, server, want)
		ports = append(ports, servers[i].listening(t))
	}
	balancer := run(t, lb, ports...)
	port := balancer.listening(t)
	for _, p := range ports[1:] { // which may come before it listens
		balancer.said(t, "upstream up", "127.0.0.1:"+p)
	}

	reached, rotated := clients(t, client, port, 6)
	for _, p := range ports[1:] {
		if got := reached["server "+p]; got != 2 {
			t.Errorf("of 6 clients %d reached server %s, want 2: %v", got, p, reached)
		}
	}
	if !rotated {
		t.Error("none of 6 clients got a new token in 30 heartbeats")
	}

	servers[0].kill()
	balancer.expect(t, "upstream down", "127.0.0.1:"+ports[1])
	reached, _ = clients(t, client, port, 4)
	if reached["server "+ports[2]] != 2 || reached["server "+ports[3]] != 2 {
		t.Errorf("one server is dead: 4 clients reached %v, want 2 on each of the others", reached)
	}

	run(t, server, ports[1]).listening(t) // the seed's load balancer never looked again
	balancer.expect(t, "upstream up", "127.0.0.1:"+ports[1])
	reached, _ = clients(t, client, port, 3)
	if reached["server "+ports[1]] != 1 {
		t.Errorf("it is back: 3 clients reached %v, want 1 on each", reached)
	}
}
