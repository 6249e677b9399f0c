package stack

// What others are told to copy works: the backends in Python under examples/, and the device in C,
// docs/client.c.

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// debianPython is the interpreter for which Debian's packages of Python modules are.
const debianPython = "/usr/bin/python3"

// program is a process that a test talks to.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{}

	mu    sync.Mutex
	lines []string // of standard output and error
}

// run starts a program; it is ended with the test.
func run(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(name, args...), ended: make(chan struct{})}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = in, in
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	go p.read(out) // ends with the program
	t.Cleanup(func() {
		_ = p.stdin.Close()
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(30 * time.Second):
			t.Errorf("%s does not end on SIGTERM", name)
			_ = p.cmd.Process.Kill()
			<-p.ended
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", name, strings.Join(p.said(), "\n"))
		}
	})
	return p
}

func (p *program) read(out *os.File) {
	defer close(p.ended)
	defer out.Close()
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		p.mu.Lock()
		p.lines = append(p.lines, scanner.Text())
		p.mu.Unlock()
	}
	_ = p.cmd.Wait()
}

func (p *program) said() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// says waits until it has said a line n times, and returns the last one's first submatch.
func (p *program) says(n int, line string) string {
	p.t.Helper()
	pattern, found := regexp.MustCompile("^"+line+"$"), ""
	until(p.t, time.Minute, fmt.Sprintf("%s says %q %d times", p.cmd.Path, line, n), func() bool {
		times := 0
		for _, l := range p.said() {
			if m := pattern.FindStringSubmatch(l); m != nil {
				times, found = times+1, m[len(m)-1]
			}
		}
		return times >= n
	})
	return found
}

func (p *program) tell(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// pythonBackend starts an example and returns where it listens.
func pythonBackend(t *testing.T, name string, secrets secretFiles) string {
	t.Helper()
	p := run(t, debianPython, "../../../examples/"+name+"/backend.py", "--listen", anyPort, "--secret-file", secrets.Backend)
	return p.says(1, `listening on (\S+)`)
}

// asker is a device that asks, and keeps what it is pushed.
func (f *fleet) asker(t *testing.T) (ask func(service, body string) (string, error), pushed chan client.Push) {
	t.Helper()
	pushed = make(chan client.Push, 16)
	cfg := f.device(t, client.MemoryStore())
	cfg.OnPush = func(p client.Push) { pushed <- p }
	c := dial(t, cfg)
	t.Cleanup(func() { _ = c.Close() })
	return func(service, body string) (string, error) {
		answer, err := c.Request(t.Context(), service, []byte(body))
		return string(answer), err
	}, pushed
}

func TestPythonBackends(t *testing.T) {
	t.Parallel()
	for module, path := range map[string]string{"grpc": "python3-grpcio", "google.protobuf": "python3-protobuf"} {
		if out, err := exec.Command(debianPython, "-c", "import "+module).CombinedOutput(); err != nil {
			t.Fatalf("%s is needed, which scripts/test installs: %s", path, out)
		}
	}
	dir := t.TempDir()
	secrets, err := ensureSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	doc := dynamic.Default()
	doc.Services = map[string]dynamic.Service{
		"readings": {Protocol: "http", Endpoints: []string{pythonBackend(t, "python-http", secrets)}, HealthPath: "/healthz", Timeout: dynamic.Duration(30 * time.Second)},
		"remind":   {Protocol: "grpc", Endpoints: []string{pythonBackend(t, "python-grpc", secrets)}, Timeout: dynamic.Duration(30 * time.Second)},
	}
	f := startIn(t, dir, doc, nil)
	ask, pushed := f.asker(t)
	other, _ := f.asker(t)

	// Routes come into force, and endpoints become healthy, a moment after the start.
	until(t, time.Minute, "both services answer", func() bool {
		_, err1 := ask("readings", `{"kwh":7}`)
		_, err2 := ask("remind", `{"after_ms":0,"text":"hello"}`)
		return err1 == nil && err2 == nil
	})
	for _, test := range []struct {
		ask           func(service, body string) (string, error)
		service, body string
		want          string
	}{
		{ask, "readings", `{"kwh":8}`, `{"previous": {"kwh": 7}, "stored": {"kwh": 8}}`},
		{other, "readings", `{"kwh":1}`, `{"previous": null, "stored": {"kwh": 1}}`}, // each device has its own
		{ask, "remind", `{"after_ms":10,"text":"tea"}`, `{"reminding": true}`},
	} {
		if got, err := test.ask(test.service, test.body); err != nil || got != test.want {
			t.Errorf("%s %s: got %s, %v, want %s", test.service, test.body, got, err, test.want)
		}
	}
	for {
		select {
		case p := <-pushed:
			if string(p.Body) == `{"text": "hello"}` { // one for each try
				continue
			}
			if p.Service != "remind" || string(p.Body) != `{"text": "tea"}` {
				t.Errorf("got a push of %s, %s", p.Service, p.Body)
			}
		case <-time.After(time.Minute):
			t.Error("no push came")
		}
		break
	}
	_, err = ask("remind", `{"after_ms":-1}`)
	if err := wantError(err, wire.CodeBackendError); err != nil {
		t.Error(err)
	}
}

// buildC compiles the device.
func buildC(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "client")
	out, err := exec.Command("gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-o", binary, "../../../docs/client.c", "-lssl", "-lcrypto").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc, with libssl-dev, which scripts/test installs: %v\n%s", err, out)
	}
	return binary
}

func TestDeviceInC(t *testing.T) {
	t.Parallel()
	f := startWith(t, Config{Gateways: 2, DataDir: t.TempDir(), Document: quickDocument()})
	binary, mac := buildC(t), firstMAC()
	host, port, _ := strings.Cut(f.Addr(), ":")
	file := filepath.Join(t.TempDir(), "token")
	args := func(ca, service string) []string {
		return []string{host, port, ca, fmt.Sprintf("%012x", mac), file, service}
	}

	device := run(t, binary, args(f.CAFile(), "echo")...)
	device.says(1, "- enrolled")
	device.tell(`{"hello":"world"}`)
	device.says(1, `\{"hello":"world"\}`)

	// Each heartbeat rotates: the next one is sent with the new token, and then the one before is forgotten.
	device.says(3, "- got a new token")
	until(t, time.Minute, "the token before is forgotten", func() bool {
		text, err := os.ReadFile(file)
		return err == nil && regexp.MustCompile(`^[0-9a-f-]{36}\n\n$`).Match(text)
	})

	// It is told to go, and comes back with its token.
	if err := f.shedAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	device.says(1, "- asked to go")
	device.says(1, "- resumed")
	device.tell(`[1, "moved"]`)
	device.says(1, `\[1, "moved"\]`)

	// Its gateway dies.
	f.KillGateway(0)
	f.KillGateway(1)
	device.says(1, "- disconnected, connecting again")
	if err := f.StartGateway(0); err != nil {
		t.Fatal(err)
	}
	device.says(2, "- resumed")
	device.tell(`"back"`)
	device.says(1, `"back"`)

	// Another one with the same name takes its place, resumes with the token of the file, and is pushed to.
	other := run(t, binary, args(f.CAFile(), "push")...)
	other.says(1, "- resumed")
	device.says(1, "- the gateway says taken_over")
	<-device.ended
	if code := device.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("taken over: exit code %d, want 1", code)
	}
	other.tell(`{"body":{"n":1}}`)
	other.says(1, `push \{"n":1\}`)
	other.tell(`no JSON`)
	other.says(1, "- the gateway says bad_frame")
	other.says(2, "- resumed")
	_ = other.stdin.Close()
	<-other.ended
	if code := other.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("end of input: exit code %d, want 0", code)
	}

	// A wrong token is not the end: bad_token, then it enrols.
	if err := os.WriteFile(file, bytes.Repeat([]byte("6ba7b810-9dad-41d1-80b4-00c04fd430c8\n"), 2), 0o600); err != nil {
		t.Fatal(err)
	}
	lost := run(t, binary, args(f.CAFile(), "echo")...)
	lost.says(2, "- the gateway says bad_token") // for both
	lost.says(1, "- enrolled")

	// A gateway that the authority has not signed is not spoken to.
	elsewhere := startWith(t, Config{Gateways: 1, DataDir: t.TempDir(), Document: quickDocument()})
	wary := run(t, binary, args(elsewhere.CAFile(), "echo")...)
	wary.says(1, "- the gateway's certificate: .+")
}
