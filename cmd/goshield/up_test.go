package main

// `goshield up` as a user has it: its own process, its output, its signals.

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/stack"
	"github.com/goshield/goshield/internal/porttest"
)

// asMain makes the test binary run main, so that a test can start processes of it.
const asMain = "GOSHIELD_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// goshield is this program with arguments; its working directory is a new one.
func goshield(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asMain+"=1")
	cmd.Dir = t.TempDir()
	return cmd
}

var anyPorts = []string{"--listen", "127.0.0.1:0", "--websocket", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--push", "127.0.0.1:0"}

// upProcess is a running `goshield up`.
type upProcess struct {
	cmd    *exec.Cmd
	lines  []string // of its output until "ready"
	rest   chan string
	stderr *bytes.Buffer
}

// startUp starts it and waits until it is ready.
func startUp(t *testing.T, args ...string) *upProcess {
	t.Helper()
	p := &upProcess{cmd: goshield(t, append([]string{"up"}, args...)...), rest: make(chan string, 64), stderr: &bytes.Buffer{}}
	p.cmd.Stderr = p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	go func() { // ends with the process's output
		defer close(p.rest)
		for scan := bufio.NewScanner(stdout); scan.Scan(); {
			p.rest <- scan.Text()
		}
	}()
	limit := time.After(time.Minute)
	for {
		select {
		case line, ok := <-p.rest:
			if !ok {
				t.Fatalf("ended before it was ready: %s", p.stderr)
			}
			p.lines = append(p.lines, line)
			if strings.HasPrefix(line, "ready") {
				return p
			}
		case <-limit:
			t.Fatal("not ready within a minute")
		}
	}
}

// wait waits for the end and returns the exit code.
func (p *upProcess) wait(t *testing.T) int {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	for range p.rest { // to the end of its output
	}
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func TestUpSendAndEnd(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	ready := filepath.Join(t.TempDir(), "ready")
	p := startUp(t, append([]string{"--data-dir", data, "--ready-file", ready}, anyPorts...)...)
	output := strings.Join(p.lines, "\n")
	for _, want := range []string{"devices", "websocket", "mqtt", "admin", "push API", "goshield send --mac"} {
		if !strings.Contains(output, want) {
			t.Errorf("output lacks %q:\n%s", want, output)
		}
	}
	var c Context
	text, err := os.ReadFile(filepath.Join(data, contextFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	if addr, err := os.ReadFile(ready); err != nil || strings.TrimSpace(string(addr)) != c.Addr {
		t.Errorf("ready file: %q, %v; want %s", addr, err, c.Addr)
	}
	for _, file := range []string{c.CA, c.PushSecretFile, c.AdminSecretFile, c.AuthAdminSecretFile} {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("context.json names a file that is not there: %v", err)
		}
	}
	for name, want := range map[string]os.FileMode{"secrets/push": 0o600, "secrets/gateway": 0o600, "ca-key.pem": 0o600, "server-key.pem": 0o600} {
		info, err := os.Stat(filepath.Join(data, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", name, info.Mode().Perm(), err, want)
		}
	}

	send := goshield(t, "send", "--context", filepath.Join(data, contextFile), "--mac", "00:1a:2b:3c:4d:5e", "--service", "echo", `{"hello":"world"}`)
	if answer, err := send.CombinedOutput(); err != nil || !strings.Contains(string(answer), `{"hello":"world"}`) {
		t.Errorf("send: %v\n%s", err, answer)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0: %s", code, p.stderr)
	}
}

func TestUpEndsAtOnceWhenToldTwice(t *testing.T) {
	data := t.TempDir()
	p := startUp(t, append([]string{"--data-dir", data}, anyPorts...)...)
	c, err := LoadContext(filepath.Join(data, contextFile))
	if err != nil {
		t.Fatal(err)
	}
	// A client that says nothing keeps the drain from ending before a gateway loses
	// patience with it, in five seconds. After the handshake it is certain that a gateway has it.
	trust, err := (&target{}).tlsConfig(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	silent, err := tls.Dial("tcp", c.Addr, trust)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	for line := range p.rest {
		if strings.HasPrefix(line, "draining") {
			break
		}
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if code := p.wait(t); code != exitFailed || !strings.Contains(p.stderr.String(), "second signal") {
		t.Errorf("exit code %d, want %d and a word of the second signal: %s", code, exitFailed, p.stderr)
	}
}

func TestUpNamesTheFlagOfATakenPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, flag := range []string{"--listen", "--websocket", "--mqtt", "--admin", "--push"} {
		args := append([]string{"up", "--data-dir", t.TempDir()}, anyPorts...)
		out, err := goshield(t, append(args, flag, taken.Addr().String())...).CombinedOutput()
		want := flag + " " + taken.Addr().String()
		if err == nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), "address already in use") {
			t.Errorf("%s: %v, want %q in\n%s", flag, err, want, out)
		}
	}
}

func TestUpRefusesABadDocument(t *testing.T) {
	for text, want := range map[string]string{
		"hartbeat: {interval: 1s}":             "hartbeat",
		"token: {ttl: 1ms}":                    "token.ttl",
		"device_limit: {on_limit: maybe}":      "device_limit.on_limit",
		"services: {echo: {timeout: forever}}": "forever",
	} {
		file := filepath.Join(t.TempDir(), "defaults.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := goshield(t, append([]string{"up", "--data-dir", t.TempDir(), "--defaults", file}, anyPorts...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, want %q in\n%s", text, err, want, out)
		}
	}
}

// A Redis that is not there is named as it was given, without what a library has to say; and no ready
// file of an earlier run is left to be believed.
func TestUpNamesTheRedisThatIsNotThere(t *testing.T) {
	addr := porttest.Held(t) // nobody listens there
	ready := filepath.Join(t.TempDir(), "ready")
	if err := os.WriteFile(ready, []byte("of an earlier run"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := goshield(t, append([]string{"up", "--data-dir", t.TempDir(), "--redis", addr, "--ready-file", ready, "--log-level", "error"}, anyPorts...)...).CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "goshield: --redis "+addr+": ") {
		t.Errorf("%v, want an error that begins with the flag:\n%s", err, out)
	}
	if _, err := os.Stat(ready); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the ready file of an earlier run: %v, want it gone", err)
	}
}

// What counts, and what was written, is said where it starts.
func TestUpTellsOfADocumentInRedis(t *testing.T) {
	for _, tt := range []struct {
		name     string
		found    stack.Found
		defaults string
		want     []string // in this order; none: nothing is said
	}{
		{"none", stack.Found{}, "rules.yaml", nil},
		{"one", stack.Found{Version: 3}, "", []string{"version 3"}},
		{"one, and a file", stack.Found{Version: 3}, "rules.yaml", []string{"version 3", "--defaults does not count"}},
		{"one that was mended", stack.Found{Version: 4, Mended: []string{"echo", "push"}}, "", []string{"version 4", "echo, push"}},
	} {
		rest := documentFound(tt.found, tt.defaults)
		if len(tt.want) == 0 && rest != "" {
			t.Errorf("%s: got %q, want nothing", tt.name, rest)
		}
		for _, want := range tt.want {
			_, after, ok := strings.Cut(rest, want)
			if !ok {
				t.Errorf("%s: no %q in %q", tt.name, want, rest)
			}
			rest = after
		}
	}
}
