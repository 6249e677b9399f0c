//go:build unix

package main

// A load balancer that is replaced by new processes of itself (SIGUSR2), under load.

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/porttest"
)

const asMain = "GOSHIELD_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

const patience = time.Minute

// echoServer echoes until the test ends.
func echoServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// processes are the load balancers, one after the other, which share a log.
type processes struct {
	logs  chan map[string]any
	first *exec.Cmd
	log   *os.File // to read
}

func startLB(t *testing.T, config string) *processes {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lb.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &processes{logs: make(chan map[string]any, 10_000), log: r, first: exec.Command(self, "--config", path)}
	p.first.Env = append(os.Environ(), asMain+"=1")
	p.first.Stderr = w
	if err := p.first.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	go func() { // ends with the last process
		defer close(p.logs)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			var entry map[string]any
			if json.Unmarshal(lines.Bytes(), &entry) == nil {
				p.logs <- entry
			}
		}
	}()
	return p
}

// await returns the next entry of the log with this message.
func (p *processes) await(t *testing.T, message string) map[string]any {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case entry, ok := <-p.logs:
			if !ok {
				t.Fatalf("every process has ended, and none logged %q", message)
			}
			if entry["msg"] == message {
				return entry
			}
			if entry["level"] == "error" {
				t.Errorf("logged: %v", entry)
			}
		case <-limit:
			t.Fatalf("not logged within %s: %q", patience, message)
		}
	}
}

// roundTrip connects, has something echoed, and hangs up.
func roundTrip(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c)
}

func echo(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "ping"); err != nil {
		return err
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "ping" {
		return fmt.Errorf("echoed %q", got)
	}
	return nil
}

// No connection is refused while one process replaces the other, none that is open is harmed, and what
// an operator set of an upstream is known to the next one.
func TestHotRestart(t *testing.T) {
	swaps := 4
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		swaps = 100
	}
	front, adminAddr := porttest.Held(t), porttest.Held(t)
	secretFile, drained := filepath.Join(t.TempDir(), "secret"), porttest.Held(t) // where nobody listens: whom it got would see
	if err := os.WriteFile(secretFile, []byte(adminSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startLB(t, fmt.Sprintf(`
listeners: [{name: device, address: %q}]
admin: %q
admin_secret_file: %q
proxy_protocol: false
upstreams: {static: [%q, %q]}
connect_timeout: 60s
health: {timeout: 60s}
drain: {window: 1s, timeout: 120s}
`, front, adminAddr, secretFile, echoServer(t), drained))
	pid := int(p.await(t, "started")["pid"].(float64))
	if got, err := operator(adminAddr, "PUT", drained); err != nil || got != "drain" {
		t.Fatalf("drain an upstream: it is %q, %v", got, err)
	}

	var stop atomic.Bool
	var made atomic.Int64
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				made.Add(1)
				time.Sleep(time.Millisecond) // leaves the processes time to start
				if err := roundTrip(front); err != nil {
					t.Errorf("connection %d: %v", made.Load(), err)
					return
				}
			}
		})
	}
	for i := range swaps {
		held, err := net.Dial("tcp", front)
		if err != nil {
			t.Fatal(err)
		}
		if err := echo(held); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		pid = int(p.await(t, "replaced by a new process")["successor"].(float64))
		if err := echo(held); err != nil {
			t.Errorf("swap %d: a connection of the process that was replaced: %v", i, err)
		}
		_ = held.Close()
		if err := ready(adminAddr); err != nil {
			t.Errorf("swap %d: %v", i, err)
		}
		if got, err := operator(adminAddr, "GET", drained); err != nil || got != "drain" {
			t.Errorf("swap %d: the upstream that drained is %q, %v", i, got, err)
		}
	}
	stop.Store(true)
	clients.Wait()
	t.Attr("connections", fmt.Sprintf("%d during %d swaps, none refused", made.Load(), swaps))
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for entry := range p.logs { // until all have ended
		if entry["level"] == "error" {
			t.Errorf("logged: %v", entry)
		}
	}
	if err := p.first.Wait(); err != nil {
		t.Errorf("the first process: %v", err)
	}
	if err := roundTrip(front); err == nil {
		t.Error("somebody still listens")
	}
}

// A new process that cannot start changes nothing.
func TestHotRestartFails(t *testing.T) {
	front := porttest.Held(t)
	p := startLB(t, fmt.Sprintf(`
listeners: [{name: device, address: %q}]
admin: "127.77.0.2:0"
proxy_protocol: false
upstreams: {static: [%q]}
connect_timeout: 60s
health: {timeout: 60s}
drain: {window: 0s, timeout: 60s}
`, front, echoServer(t)))
	p.await(t, "started")
	config := p.first.Args[2]
	if err := os.WriteFile(config, []byte("algorithm: best\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.first.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	entry := p.await(t, "cannot be replaced by a new process, going on")
	if text := fmt.Sprint(entry["error"]); !strings.Contains(text, "exit status 2") {
		t.Errorf("error = %s, want how the new process ended", text)
	}
	if err := roundTrip(front); err != nil {
		t.Errorf("after a successor that failed: %v", err)
	}
	_ = p.first.Process.Signal(syscall.SIGTERM)
	for range p.logs { // until it has ended
	}
	if err := p.first.Wait(); err != nil {
		t.Errorf("the process ended with %v", err)
	}
}

// adminSecret is long enough to be one.
const adminSecret = "of-the-administrators-0123456789abcdef"

// operator tells what an operator wants of an upstream, after PUT has asked to drain it.
func operator(adminAddr, method, upstream string) (state string, err error) {
	client := http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	url := "http://" + adminAddr + "/api/upstreams"
	if method == "PUT" {
		url += "/" + upstream
	}
	req, err := http.NewRequest(method, url, strings.NewReader(`{"state":"drain"}`))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+adminSecret)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s %w", resp.Status, text, err)
	}
	if method == "PUT" {
		return operator(adminAddr, "GET", upstream)
	}
	var list struct {
		Upstreams []struct{ Address, State string }
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return "", fmt.Errorf("%s: %w", text, err)
	}
	for _, u := range list.Upstreams {
		if u.Address == upstream {
			return u.State, nil
		}
	}
	return "", fmt.Errorf("no %s in %s", upstream, text)
}

// ready asks a process whether it takes traffic.
func ready(adminAddr string) error {
	client := http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://" + adminAddr + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz answered %s", resp.Status)
	}
	return nil
}
