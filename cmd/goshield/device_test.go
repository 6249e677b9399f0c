package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/cmd/goshield/stack"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

const anyPort = "127.0.0.1:0"

// stackFor runs all of GoShield until the test ends; it returns the environment that names it.
func stackFor(t *testing.T) (*stack.Stack, map[string]string) {
	t.Helper()
	return stackOf(t, 1)
}

func stackOf(t *testing.T, gateways int) (*stack.Stack, map[string]string) {
	t.Helper()
	return stackWith(t, gateways, dynamic.Default())
}

func stackWith(t *testing.T, gateways int, doc dynamic.Document) (*stack.Stack, map[string]string) {
	t.Helper()
	t.Cleanup(func() { leaktest.None(t) }) // after the stack's own
	dir := t.TempDir()
	s, err := stack.Start(stack.Config{
		Listen: anyPort, WebSocket: anyPort, MQTT: anyPort, Admin: anyPort, Push: anyPort, Gateways: gateways, Backends: 1,
		DataDir: dir, Document: doc, Log: zap.NewNop(),
		RedisTimeout: 10 * time.Second, // it is in this process, which may stand still
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	secrets := filepath.Join(dir, "secrets")
	path := filepath.Join(dir, contextFile)
	c := Context{
		Addr: s.Addr(), Push: s.PushAddr(), Auth: s.AuthAddr(), Redis: s.RedisAddrs(), CA: s.CAFile(), DataDir: dir,
		PushSecretFile: filepath.Join(secrets, "push"), AuthAdminSecretFile: filepath.Join(secrets, "admin"),
	}
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	return s, map[string]string{contextEnv: path}
}

func TestDevice(t *testing.T) {
	s, env := stackFor(t)
	id, err := wire.ClientIDFromMAC(testMAC)
	if err != nil {
		t.Fatal(err)
	}
	invoke(env, "", "device", "add", testMAC).expect(t, "add", 0, "registered 1 of 1\n", "")
	invoke(env, "", "device", "push", testMAC, "1").expect(t, "push to nobody", 1, "", "not_connected")

	r := resolved{addr: s.Addr()}
	if r.tls, err = (&target{}).tlsConfig(s.CAFile()); err != nil {
		t.Fatal(err)
	}
	pushed := make(chan string, 1)
	d, err := client.Dial(t.Context(), client.Config{
		Addr: r.addr, TLS: r.tls, ClientID: id, TokenStore: client.MemoryStore(), KeepDialing: true,
		OnPush: func(p client.Push) { pushed <- p.Service + " " + string(p.Body) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	invoke(env, "", "device", "push", testMAC, `{"a": 1}`, "--service", "news", "--wait", "20s").expect(t, "push", 0, "acknowledged\n", "")
	if got := <-pushed; got != `news {"a": 1}` {
		t.Errorf("the device was pushed %q", got)
	}
	var list []knownDevice
	o := invoke(env, "", "device", "list", "--json")
	if err := json.Unmarshal([]byte(o.out), &list); err != nil || len(list) != 1 || list[0].ClientID != id ||
		list[0].Registration == nil || list[0].Connection == nil || list[0].Connection.Node != "gateway-1" {
		t.Errorf("list: %+v, %v, want one device, registered and connected", o, err)
	}
	if o := invoke(env, "", "device", "show", id.String()); o.code != 0 || !strings.Contains(o.out, "valid") || !strings.Contains(o.out, "to gateway-1") {
		t.Errorf("show: %+v, want a valid token and the gateway", o)
	}
	invoke(env, "", "device", "kick", testMAC).expect(t, "kick", 0, "kicked 1 of 1\n", "")
	invoke(env, "", "device", "revoke", testMAC).expect(t, "revoke", 0, "revoked 1 of 1\n", "")
	invoke(env, "", "device", "block", testMAC).expect(t, "block", 0, "blocked 1 of 1\n", "")
	if o := invoke(env, "", "device", "list"); o.code != 0 || !strings.Contains(o.out, id.String()+"  blocked") {
		t.Errorf("list: %+v, want it blocked", o)
	}
	invoke(env, "", "device", "remove", testMAC).expect(t, "remove", 0, "removed 1 of 1\n", "")
}

// The list has the devices of all gateways, whichever is asked, and says which one it could not ask.
func TestDeviceListOfAllGateways(t *testing.T) {
	s, env := stackOf(t, 2)
	r := resolved{addr: s.Addr()}
	var err error
	if r.tls, err = (&target{}).tlsConfig(s.CAFile()); err != nil {
		t.Fatal(err)
	}
	const devices = 6
	for i := range devices { // evenly over the gateways
		id, err := wire.ClientIDFromMAC(fmt.Sprintf("02000000000%d", i))
		if err != nil {
			t.Fatal(err)
		}
		d, err := client.Dial(t.Context(), client.Config{Addr: r.addr, TLS: r.tls, ClientID: id, TokenStore: client.MemoryStore(), KeepDialing: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
	}
	o := invoke(env, "", "device", "list")
	one, two := strings.Count(o.out, "gateway-1"), strings.Count(o.out, "gateway-2")
	if o.code != 0 || o.errOut != "" || one+two != devices || one == 0 || two == 0 {
		t.Errorf("list: %+v, want %d devices of two gateways", o, devices)
	}
	s.KillGateway(1)
	o = invoke(env, "", "device", "list")
	// Devices of the one that was killed may have moved already.
	if o.code != 0 || strings.Count(o.out, "gateway-1") < one || !strings.Contains(o.errOut, "gateway gateway-2 cannot be asked") {
		t.Errorf("list without the other gateway: %+v, want %d devices at least and to be told", o, one)
	}
}

func TestDeviceLists(t *testing.T) {
	_, env := stackFor(t)
	var csv strings.Builder
	csv.WriteString("mac,site\n# a comment\n")
	const many = 300
	for i := range many {
		fmt.Fprintf(&csv, "02:00:00:00:%02x:%02x,here\n", i>>8, i&255)
	}
	path := filepath.Join(t.TempDir(), "fleet.csv")
	writeFile(t, path, csv.String())
	invoke(env, "", "device", "add", "--file", path).expect(t, "a file", 0, "registered 300 of 300\n", "")
	if n := strings.Count(invoke(env, "", "device", "list").out, "\n"); n != many+1 {
		t.Errorf("list has %d lines, want %d", n, many+1)
	}
	invoke(env, csv.String(), "device", "remove", "--file", "-", "--json").expect(t, "standard input", 0, "{\n  \"failed\": 0,\n  \"removed\": 300\n}\n", "")
	invoke(env, csv.String(), "device", "kick", "--file", "-").expect(t, "many that fail", 1, "", "and 290 more")
	invoke(env, csv.String()+"nonsense\n", "device", "add", "--file", "-").expect(t, "a line that is none", 2, "", "line 303: \"nonsense\" names no device")
	if o := invoke(env, "", "device", "list"); strings.Count(o.out, "\n") != 1 {
		t.Errorf("a file with a fault in it was worked on: %s", o.out)
	}
}

func TestDeviceKey(t *testing.T) {
	group := strings.Repeat("ab", 32)
	path := filepath.Join(t.TempDir(), "group.key")
	writeFile(t, path, group+"\n")
	id, err := wire.ClientIDFromMAC(testMAC)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := readGroupKey(path)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%x", wire.DeviceKey(raw, id))
	invoke(nil, "", "device", "key", "--group-key-file", path, "--mac", testMAC).expect(t, "by MAC", 0, want+"\n", "")
	invoke(nil, "mac\n"+testMAC+",x\n", "device", "key", "--group-key-file", path, "--file", "-").expect(t, "by file", 0, testMAC+","+want+"\n", "")
	invoke(nil, "", "device", "key", "--mac", testMAC).expect(t, "no group key", 2, "", "--group-key-file is missing")
	writeFile(t, path, "short")
	invoke(nil, "", "device", "key", "--group-key-file", path, "--mac", testMAC).expect(t, "a bad one", 1, "", "64 hex digits")
}

func TestDeviceSaysWhatIsWrong(t *testing.T) {
	secretFile := filepath.Join(t.TempDir(), "secret")
	const value = "a-secret-of-enough-bytes"
	if err := os.WriteFile(secretFile, []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"add"}, 2, "name devices, by MAC or client_id"},
		{[]string{"add", "nonsense"}, 2, `"nonsense" names no device`},
		{[]string{"add", testMAC}, 2, "no --auth, and no context.json here that names one"},
		{[]string{"add", testMAC, "--auth", "127.0.0.1:1"}, 2, "--auth-secret-file is missing"},
		{[]string{"add", testMAC, "--auth", "127.0.0.1:1", "--auth-secret-file", secretFile}, 1, "cannot reach the auth-service"},
		{[]string{"add", testMAC, "--auth", "127.0.0.1:1", "--auth-secret-file", secretFile + "x"}, 1, "--auth-secret-file: "},
		{[]string{"push", testMAC, "text"}, 2, "BODY is no JSON"},
		{[]string{"show"}, 2, "DEVICE is missing"},
		{[]string{"ad"}, 2, `unknown command "ad"`},
	} {
		o := invoke(nil, "", append([]string{"device"}, tt.args...)...)
		o.expect(t, strings.Join(tt.args, " "), tt.code, "", tt.says)
		if strings.Contains(o.errOut, value) {
			t.Errorf("%v: the secret is in the error", tt.args)
		}
	}
}

func TestProgressBar(t *testing.T) {
	if got, want := progressBar(500, 0, 1000), "[###############               ]  50%  500 of 1000"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got, want := progressBar(997, 3, 1000), "[##############################] 100%  1000 of 1000, 3 failed"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
