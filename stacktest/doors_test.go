package stacktest

// The ways in: published ports and the virtual IP, by each protocol that devices speak.

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goshield/goshield/sdk/client"
)

// doors are the hosts and ports of each protocol: those of lb-a, those of lb-b, and those of whoever has the virtual IP.
var doors = []struct{ name, tls, webSocket, mqtt string }{
	{"lb-a", "127.0.0.1:8443", "127.0.0.1:8444", "127.0.0.1:8883"},
	{"lb-b", "127.0.0.1:9443", "127.0.0.1:9444", "127.0.0.1:9883"},
	{"the virtual IP", vip + ":8443", vip + ":8444", vip + ":8883"},
}

func everyDoor(t *testing.T, s *stack) {
	t.Logf("the virtual IP is at %s", master(t))
	for i, door := range doors {
		f := startFleet(t, s.keys, visitors+i, 1, door.tls, client.MemoryStore())
		f.settle(t)
		f.stop()
		conforms(t, door.tls, door.webSocket)
		for j, version := range []string{"mqttv311", "mqttv5"} {
			asksByMQTT(t, s.keys, visitors+10+2*i+j, door.tls, door.mqtt, version)
		}
	}
	sessionsResume(t, s.keys)
	s.fleet.settle(t)
}

// sessionsResume has a device come back to one gateway after the other: they share the keys of their tickets.
func sessionsResume(t *testing.T, k keys) {
	t.Helper()
	cfg := &tls.Config{
		RootCAs: k.roots, ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1),
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, // there the ticket is part of the handshake
	}
	for i := range 3 * replicas {
		conn, err := tls.Dial("tcp", vip+":8443", cfg)
		if err != nil {
			t.Fatal(err)
		}
		if resumed := conn.ConnectionState().DidResume; resumed != (i > 0) {
			t.Errorf("connection %d: resumed %v, want all but the first", i, resumed)
		}
		_ = conn.Close()
	}
}

// commands are those that the README gives to try: one device, then two hundred.
func commands(t *testing.T, s *stack) {
	const body = `{"hello":"world"}`
	out := compose(t, "run", "--rm", "-T", "cli", "send", "--group-key-file", "/run/devices/group-key", "--mac", "00:1a:2b:3c:4d:5e", body)
	if got := strings.TrimSpace(out); got != body {
		t.Errorf("answer %q, want %q", got, body)
	}
	compose(t, "--profile", "demo", "up", "-d", "--no-build", "demo")
	side := master(t)
	await(t, "the demo's devices are connected", patience, func() error {
		status, err := statusOf(side)
		if err == nil && status.Connections < devices+200 {
			err = fmt.Errorf("%d connections", status.Connections)
		}
		return err
	})
	s.fleet.settle(t)
	listen(t, everyContainer(t, "demo"), func() { compose(t, "--profile", "demo", "rm", "-sf", "demo") })
}

// conforms tries some rules of the protocol over TLS and by WebSocket, in both versions, with the command that
// users have.
func conforms(t *testing.T, addr, webSocket string) {
	t.Helper()
	out, err := try("docker", "run", "--rm", "--label", mark, "--network", "host", "-v", project+"_devices-secrets:/run/devices:ro",
		"goshield/goshield", "conformance", "--addr", addr, "--websocket", webSocket,
		"--ca", "/run/devices/"+authority, "--group-key-file", "/run/devices/group-key", "--rule", "request/echo", "--rule", "opening/resume")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
		return
	}
	if n := strings.Count(strings.ToLower(out), "websocket"); n == 0 {
		t.Errorf("nothing was tried by WebSocket:\n%s", out)
	}
}

// asksByMQTT has Mosquitto's client ask the echo service. Where enrolment is by a key, a device enrols by the protocol of
// its own; its token is its password from then on.
func asksByMQTT(t *testing.T, k keys, n int, enrolAt, addr, version string) {
	t.Helper()
	store := client.MemoryStore()
	cfg := k.config(n, enrolAt, store)
	if _, err := k.visit(cfg); err != nil {
		t.Errorf("device %d at %s: %v", n, enrolAt, err)
		return
	}
	tokens, err := store.Load(cfg.ClientID)
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // arguments can be seen by others
	options := "-u " + cfg.ClientID.String() + "\n-P " + tokens.Current.Text() + "\n"
	if err := os.WriteFile(filepath.Join(dir, "mosquitto_rr"), []byte(options), 0o600); err != nil {
		t.Fatal(err)
	}
	const body = `{"by":"MQTT"}`
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mosquitto_rr", "-h", host, "-p", port, "--cafile", k.ca, "-V", version, "-q", "1",
		"-t", "req/echo/7", "-e", "res/echo/7", "-m", body, "-W", "120")
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir)
	out, err := cmd.CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != body {
		t.Errorf("%s at %s: answer %q, %v, want %s", version, addr, got, err, body)
	}
}
