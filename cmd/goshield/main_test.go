package main

// Each command as it is typed: what it prints, where, and how it ends.

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/internal/echogateway"
	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/sdk/wire"
)

const testMAC = "00:1a:2b:3c:4d:5e"

// outcome is what a command did.
type outcome struct {
	code        int
	out, errOut string
}

// invoke runs a command in an environment of its own.
func invoke(env map[string]string, stdin string, args ...string) outcome {
	var out, errOut bytes.Buffer
	code := run(args, func(name string) string { return env[name] }, strings.NewReader(stdin), &out, &errOut)
	return outcome{code, out.String(), errOut.String()}
}

// expect compares; wantErr is what standard error must contain.
func (o outcome) expect(t *testing.T, what string, code int, out, wantErr string) {
	t.Helper()
	if o.code != code || o.out != out || !strings.Contains(o.errOut, wantErr) || (wantErr == "" && o.errOut != "") {
		t.Errorf("%s:\ngot  %d, %q, %q\nwant %d, %q, %q", what, o.code, o.out, o.errOut, code, out, wantErr)
	}
}

// startGateway starts a gateway and writes the context that `up` would write;
// it returns the environment that points there, and the data directory.
func startGateway(t *testing.T, change func(g *echogateway.Gateway)) (g *echogateway.Gateway, env map[string]string, dir string) {
	t.Helper()
	t.Cleanup(func() { leaktest.None(t) }) // after the gateway's own
	g = echogateway.Start(t, true, change)
	dir = t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	writeFile(t, ca, string(g.CA().PEM()))
	path := filepath.Join(dir, contextFile)
	if err := (Context{Addr: g.Addr(), CA: ca, DataDir: dir}).Save(path); err != nil {
		t.Fatal(err)
	}
	return g, map[string]string{contextEnv: path}, dir
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSend(t *testing.T) {
	_, env, dir := startGateway(t, nil)
	invoke(env, "", "send", "--mac", testMAC, `{"hello":"world"}`).expect(t, "first", 0, "{\"hello\":\"world\"}\n", "")
	id, err := wire.ClientIDFromMAC(testMAC)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "tokens", id.String()+".json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("token file: %v", err)
	}
	invoke(env, "", "send", "-v", "--mac", "001A2B3C4D5E", ` [1, 2]`).expect(t, "second", 0, "[1, 2]\n", "- resumed in ")
	other := filepath.Join(dir, "other")
	invoke(env, "", "send", "-v", "--mac", testMAC, "--token-dir", other, `1`).expect(t, "another token directory", 0, "1\n", "- enrolled in ")
	invoke(env, "\n\"from stdin\"\n", "send", "--mac", testMAC, "-").expect(t, "standard input", 0, "\"from stdin\"\n", "")
	start := time.Now()
	invoke(env, "", "send", "--mac", testMAC, "--count", "3", "--interval", "20ms", `"tick"`).expect(t, "count", 0, strings.Repeat("\"tick\"\n", 3), "")
	if took := time.Since(start); took < 40*time.Millisecond {
		t.Errorf("three with 20ms in between took %v", took)
	}
}

// In version 2 a body is any bytes, and comes back as it was.
func TestProtocolVersion(t *testing.T) {
	var asked atomic.Int64
	_, env, _ := startGateway(t, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			if !wire.ValidJSON(req.Body) {
				asked.Add(1)
			}
			return &wire.Response{ID: req.ID, Body: req.Body}
		}
	})
	v2 := []string{"--protocol-version", "2"}
	invoke(env, "", append([]string{"send", "--mac", testMAC, "no JSON "}, v2...)...).expect(t, "bytes", 0, "no JSON \n", "")
	o := invoke(env, "no JSON either\n", append([]string{"send", "--mac", testMAC, "--interactive"}, v2...)...)
	o.expect(t, "interactive", 0, "no JSON either\n", "- resumed in ")
	if got := asked.Load(); got != 2 {
		t.Errorf("bodies that are no JSON: got %d, want 2", got)
	}
	o = invoke(env, "", append([]string{"bench", "--devices", "2", "--rate", "40", "--duration", "200ms"}, v2...)...)
	if o.code != 0 || !strings.Contains(o.out, "2 of 2 connected") {
		t.Errorf("bench: got %d, %q\n%s", o.code, o.errOut, o.out)
	}
	for _, command := range [][]string{{"send", "--mac", testMAC, "1"}, {"bench"}} {
		invoke(env, "", append(command, "--protocol-version", "3")...).expect(t, command[0]+" of version 3", exitUsage, "", "--protocol-version: must be 1 or 2, got 3")
	}
}

// The rules themselves are tried in package stack; here is how the command ends. The fake gateway knows no services,
// so it answers for one that there is not.
func TestConformanceCommand(t *testing.T) {
	_, env, _ := startGateway(t, nil)
	o := invoke(env, "", "conformance", "--rule", "request/id-again", "--protocol-version", "2")
	if o.code != 0 || o.errOut != "" || !strings.Contains(o.out, "version 2, TCP\n") || !strings.Contains(o.out, "1 rules tried: 1 ok, 0 failed; 0 not tried\n") {
		t.Errorf("kept: got %d, %q\n%s", o.code, o.errOut, o.out)
	}
	o = invoke(env, "", "conformance", "--rule", "request/no-such-service")
	if o.code != exitFailed || o.errOut != "goshield: 2 of 2 rules are broken\n" || strings.Count(o.out, "got RESPONSE in place of") != 2 {
		t.Errorf("broken: got %d, %q\n%s", o.code, o.errOut, o.out)
	}
	o = invoke(env, "", "conformance", "--rule", "request/id-again", "--rule", "proof/wrong", "--protocol-version", "1", "--json")
	var report struct {
		Outcomes []struct{ Way, Rule, Result, Seen string }
	}
	if err := json.Unmarshal([]byte(o.out), &report); err != nil || o.code != 0 || len(report.Outcomes) != 2 {
		t.Fatalf("JSON: got %d, %v, %s", o.code, err, o.out)
	}
	if got := report.Outcomes[0]; got.Way != "version 1, TCP" || got.Rule != "proof/wrong" || got.Result != "not tried" || got.Seen != "the gateway asks for no proof" {
		t.Errorf("JSON: got %+v first", got)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--rule", "none"}, exitUsage, `no rule's name begins with "none"`},
		{[]string{"--protocol-version", "3"}, exitUsage, "--protocol-version: must be 1 or 2, got 3"},
		{[]string{"--patience", "0s"}, exitUsage, "--patience: must be above 0"},
		{[]string{"--shed", "http://127.0.0.1:1"}, exitUsage, "--shed needs --admin-secret-file"},
		{[]string{"--addr", "127.0.0.1:1"}, exitFailed, "nothing listens there"},
		{[]string{"--proof"}, exitUsage, "unknown flag: --proof"},
	} {
		invoke(env, "", append([]string{"conformance"}, test.args...)...).expect(t, strings.Join(test.args, " "), test.code, "", test.want)
	}
}

func TestSendWithFlagsOnly(t *testing.T) {
	g, env, dir := startGateway(t, nil)
	state := map[string]string{"XDG_STATE_HOME": filepath.Join(dir, "state")}
	ca := filepath.Join(dir, "ca.pem")
	invoke(state, "", "send", "--addr", g.Addr(), "--ca", ca, "--mac", testMAC, `1`).expect(t, "without a context", 0, "1\n", "")
	if _, err := os.Stat(filepath.Join(dir, "state", "goshield", "tokens")); err != nil {
		t.Errorf("tokens: %v, want them under XDG_STATE_HOME", err)
	}
	invoke(nil, "", "send", "--context", env[contextEnv], "--mac", testMAC, `1`).expect(t, "context by flag", 0, "1\n", "")
	invoke(env, "", "send", "--addr", g.Addr(), "--mac", testMAC, `1`).expect(t, "the context's address in a flag", 0, "1\n", "")

	plain := echogateway.Start(t, false, nil)
	invoke(state, "", "send", "--plain", "--addr", plain.Addr(), "--mac", testMAC, "--token-dir", dir, `1`).expect(t, "plain", 0, "1\n", "")
}

func TestSendInteractive(t *testing.T) {
	_, env, _ := startGateway(t, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			if string(req.Body) == `"refuse"` {
				return &wire.Error{Code: wire.CodeBackendError, Message: "no", ID: req.ID, HasID: true}
			}
			return &wire.Response{ID: req.ID, Body: req.Body}
		}
	})
	o := invoke(env, "1\n\n  {\"a\":2} \n", "send", "--mac", testMAC, "--interactive")
	o.expect(t, "lines", 0, "1\n{\"a\":2}\n", "- enrolled in ")
	o = invoke(env, "1\n{\"a\":\n\"refuse\"\n2", "send", "--mac", testMAC, "-i")
	o.expect(t, "lines with faults", exitFailed, "1\n2\n", "goshield: 2 of 4 requests failed\n")
	for _, want := range []string{"- resumed in ", "- the body is no JSON: unexpected end of JSON input", "- backend_error: no\n"} {
		if !strings.Contains(o.errOut, want) {
			t.Errorf("standard error: no %q in %q", want, o.errOut)
		}
	}
}

func TestSendPrintsPushes(t *testing.T) {
	_, env, _ := startGateway(t, func(g *echogateway.Gateway) {
		g.Answer = func(wire.ClientID, *wire.Request) wire.Message { return nil }
		g.Welcomed = func(_ wire.ClientID, send func(wire.Message), _ func()) {
			send(&wire.Push{ID: 1, Service: "alerts", Body: []byte(`{"level":3}`)})
		}
	})
	invoke(env, "", "send", "--mac", testMAC, "--timeout", "3s", `1`).
		expect(t, "push, and no answer", exitFailed, "push alerts {\"level\":3}\n", "goshield: request to echo: no answer: context deadline exceeded")
}

func TestSendFails(t *testing.T) {
	g, env, dir := startGateway(t, func(g *echogateway.Gateway) {
		g.OnHello = func(h *wire.Hello) *wire.Error {
			if h.Agent != "goshield send" {
				t.Errorf("agent: got %q", h.Agent)
			}
			return wire.Errorf(wire.CodeUnknownClient, "not registered")
		}
	})
	plain := echogateway.Start(t, false, nil)
	ca := filepath.Join(dir, "ca.pem")
	noPEM := filepath.Join(dir, "no.pem")
	writeFile(t, noPEM, "no certificate")
	broken := filepath.Join(dir, "broken.json")
	writeFile(t, broken, "{")
	for _, test := range []struct {
		name string
		args []string // after send
		code int
		want string
	}{
		{"no body", nil, exitUsage, "no BODY to send"},
		{"two bodies", []string{"1", "2"}, exitUsage, "put quotes around it"},
		{"body with --interactive", []string{"-i", "1"}, exitUsage, "standard input"},
		{"no JSON", []string{`{"a":1, b}`}, exitUsage, "invalid character 'b' looking for beginning of object key string, at byte 9\n  {\"a\":1, b}\n          ^\n"},
		{"unfinished JSON", []string{`[1,`}, exitUsage, "unexpected end of JSON input, at byte 4\n  [1,\n     ^\n"},
		{"too deep", []string{strings.Repeat("[", 300) + strings.Repeat("]", 300)}, exitUsage, "nested too deeply"},
		{"empty", []string{" "}, exitUsage, "the body is empty"},
		{"no mac", []string{"1"}, exitUsage, "no --mac"},
		{"bad mac", []string{"--mac", "00:1a", "1"}, exitUsage, "--mac: mac \"00:1a\": 4 hex digits, want 12"},
		{"count", []string{"--mac", testMAC, "--count", "0", "1"}, exitUsage, "--count: must be at least 1, got 0"},
		{"unknown flag", []string{"--foo"}, exitUsage, "unknown flag: --foo\nTry \"goshield send --help\"."},
		{"bad duration", []string{"--timeout", "5"}, exitUsage, "--timeout"},
		{"no port", []string{"--mac", testMAC, "--addr", "localhost", "1"}, exitUsage, "--addr: address localhost: missing port"},
		{"no such CA", []string{"--mac", testMAC, "--addr", g.Addr(), "--ca", dir + "/none", "1"}, exitFailed, "--ca: open"},
		{"CA of no PEM", []string{"--mac", testMAC, "--addr", g.Addr(), "--ca", noPEM, "1"}, exitFailed, "holds no certificate"},
		{"no such context", []string{"--mac", testMAC, "--context", dir + "/none", "1"}, exitFailed, "context: open"},
		{"broken context", []string{"--mac", testMAC, "--context", broken, "1"}, exitFailed, "broken.json: unexpected end"},
		{"no group key", []string{"--mac", testMAC, "--group-key-file", noPEM, "1"}, exitFailed, "must hold 64 hex digits"},
		{"no client certificate", []string{"--mac", testMAC, "--cert", noPEM, "--key", noPEM, "1"}, exitFailed, "--cert and --key: "},
		{"unknown authority", []string{"--mac", testMAC, "--addr", strings.Replace(g.Addr(), "127.0.0.1", "localhost", 1), "1"}, exitFailed, "name the gateway's authority with --ca"},
		{"another name", []string{"--mac", testMAC, "--addr", g.Addr(), "--ca", ca, "--server-name", "example.org", "1"}, exitFailed, "--server-name"},
		{"TLS to a plain port", []string{"--mac", testMAC, "--addr", plain.Addr(), "--ca", ca, "1"}, exitFailed, "does not speak TLS"},
		{"plain to a TLS port", []string{"--mac", testMAC, "--addr", g.Addr(), "--plain", "--timeout", "5s", "1"}, exitFailed, "wants TLS"},
		{"nothing listens", []string{"--mac", testMAC, "--addr", "127.0.0.1:1", "1"}, exitFailed, "is the server running? (goshield up)"},
		{"refused", []string{"--mac", testMAC, "1"}, exitFailed, "unknown_client: not registered\n  the device is not registered, or blocked"},
	} {
		invoke(env, "", append([]string{"send"}, test.args...)...).expect(t, test.name, test.code, "", test.want)
	}
	t.Chdir(dir)
	if err := os.Remove(filepath.Join(dir, contextFile)); err != nil {
		t.Fatal(err)
	}
	invoke(nil, "", "send", "--mac", testMAC, "1").expect(t, "nothing to go by", exitUsage, "", "is `goshield up` running in this directory?")
}

func TestSendCount(t *testing.T) {
	var n atomic.Int64
	_, env, _ := startGateway(t, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			if n.Add(1) == 2 {
				return &wire.Error{Code: wire.CodeRateLimited, Message: "slow down", ID: req.ID, HasID: true, RetryAfter: time.Second}
			}
			return &wire.Response{ID: req.ID, Body: req.Body}
		}
	})
	o := invoke(env, "", "send", "--mac", testMAC, "--count", "3", "--interval", "1ms", `1`)
	o.expect(t, "one of three refused", exitFailed, "1\n1\n", "- rate_limited: slow down\ngoshield: 1 of 3 requests failed\n")
}

func TestContextInDataDirectory(t *testing.T) {
	_, _, dir := startGateway(t, nil)
	home := t.TempDir()
	if err := os.Rename(dir, filepath.Join(home, defaultDataDir)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(home)
	c, err := LoadContext(filepath.Join(defaultDataDir, contextFile))
	if err != nil {
		t.Fatal(err)
	}
	c.CA, c.DataDir = filepath.Join(home, defaultDataDir, "ca.pem"), filepath.Join(home, defaultDataDir)
	if err := c.Save(filepath.Join(defaultDataDir, contextFile)); err != nil {
		t.Fatal(err)
	}
	invoke(nil, "", "send", "--mac", testMAC, `1`).expect(t, "context of this directory", 0, "1\n", "")
}

func TestContextRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), contextFile)
	want := Context{
		Addr: "127.0.0.1:8443", WebSocket: "127.0.0.1:8444", MQTT: "127.0.0.1:8883", Admin: "127.0.0.1:9090", Push: "127.0.0.1:9400",
		Auth: "127.0.0.1:8000", CA: "/d/ca.pem", DataDir: "/d", PushSecretFile: "/d/secrets/push",
		AdminSecretFile: "/d/secrets/admin", AuthAdminSecretFile: "/d/secrets/auth-admin",
	}
	if err := (Context{Addr: "old"}).Save(path); err != nil {
		t.Fatal(err)
	}
	if err := want.Save(path); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadContext(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("files: got %v, %v, want one", entries, err)
	}
	if err := want.Save(filepath.Join(path, "x")); err == nil {
		t.Error("a path that cannot be written: no error")
	}
}

func TestBench(t *testing.T) {
	_, env, dir := startGateway(t, func(g *echogateway.Gateway) { g.Heartbeat, g.Rotate = 50*time.Millisecond, true })
	args := []string{"bench", "--devices", "5", "--rate", "50", "--duration", "400ms", "--token-dir", filepath.Join(dir, "fleet")}
	o := invoke(env, "", args...)
	if o.code != 0 || o.errOut != "" || !strings.Contains(o.out, "5 of 5 connected") || !strings.Contains(o.out, "errors       none") {
		t.Errorf("text: got %d, %q\n%s", o.code, o.errOut, o.out)
	}
	o = invoke(env, "", append(args, "--json")...)
	var result struct {
		Connect  struct{ Resumed int }
		Requests struct{ Answered int }
	}
	if err := json.Unmarshal([]byte(o.out), &result); err != nil || o.code != 0 || result.Connect.Resumed != 5 || result.Requests.Answered != 20 {
		t.Errorf("JSON: got %d, %v, %s", o.code, err, o.out)
	}
}

func TestBenchFails(t *testing.T) {
	_, env, _ := startGateway(t, func(g *echogateway.Gateway) {
		g.Answer = func(_ wire.ClientID, req *wire.Request) wire.Message {
			return &wire.Error{Code: wire.CodeNoSuchService, Message: "none of that name", ID: req.ID, HasID: true}
		}
	})
	o := invoke(env, "", "bench", "--devices", "2", "--rate", "20", "--duration", "200ms", "--service", "none")
	if o.code != exitFailed || o.errOut != "goshield: 4 of 4 requests failed\n" || !strings.Contains(o.out, "no_such_service") {
		t.Errorf("refused: got %d, %q\n%s", o.code, o.errOut, o.out)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--devices", "0"}, exitUsage, "--devices: must be at least 1, got 0"},
		{[]string{"--rate", "-1"}, exitUsage, "--rate: must be from 0"},
		{[]string{"--duration", "0s"}, exitUsage, "--duration: must be above 0"},
		{[]string{"--size", "0"}, exitUsage, "--size: must be from 1"},
		{[]string{"--mac", "xx"}, exitUsage, "--mac: \"xx\" is not a MAC address"},
		{[]string{"--devices", "100000000"}, exitFailed, "ulimit -n"},
		{[]string{"extra"}, exitUsage, "unexpected argument \"extra\""},
	} {
		invoke(env, "", append([]string{"bench"}, test.args...)...).expect(t, strings.Join(test.args, " "), test.code, "", test.want)
	}
	o = invoke(env, "", "bench", "--addr", "127.0.0.1:1", "--devices", "2", "--connect-limit", "1s")
	if o.code != exitFailed || !strings.Contains(o.errOut, "no device could connect: ") || !strings.Contains(o.errOut, "goshield up") {
		t.Errorf("nothing listens: got %d, %q", o.code, o.errOut)
	}
}

func TestCerts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	o := invoke(nil, "", "certs", "--dir", dir, "--host", "gateway.example.org", "--host", "10.0.0.5")
	if o.code != 0 || o.errOut != "" || strings.Count(o.out, "made  ") != 4 || !strings.Contains(o.out, "gateway.example.org, 127.0.0.1, ::1, 10.0.0.5") {
		t.Errorf("first: got %d, %q\n%s", o.code, o.errOut, o.out)
	}
	o = invoke(nil, "", "certs", "--dir", dir)
	if o.code != 0 || strings.Count(o.out, "kept  ") != 4 || !strings.Contains(o.out, "gateway.example.org") {
		t.Errorf("again: got %d\n%s", o.code, o.out)
	}
	writeFile(t, filepath.Join(dir, "ca.pem"), "broken")
	invoke(nil, "", "certs", "--dir", dir).expect(t, "broken authority", exitFailed, "", "ca.pem")
}

func TestRoot(t *testing.T) {
	if o := invoke(nil, "", "version"); o.code != 0 || !strings.HasPrefix(o.out, "goshield ") || !strings.Contains(o.out, " go1.") {
		t.Errorf("version: got %+v", o)
	}
	if o := invoke(nil, ""); o.code != 0 || !strings.Contains(o.out, "bench") || !strings.Contains(o.out, "send") {
		t.Errorf("help: got %+v", o)
	}
	invoke(nil, "", "sendd").expect(t, "unknown command", exitUsage, "", "goshield: unknown command \"sendd\"\nTry \"goshield send\".\n")
	invoke(nil, "", "version", "x").expect(t, "unexpected argument", exitUsage, "", "unexpected argument \"x\"")
}
