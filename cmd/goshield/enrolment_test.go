package main

// Enrolment in each mode that asks for something, from the command line to Redis and back.

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/sdk/wire"
)

// upWith runs `goshield up` in an enrolment mode and returns its data directory.
func upWith(t *testing.T, mode string) string {
	t.Helper()
	dir := t.TempDir()
	defaults := filepath.Join(dir, "defaults.yaml")
	writeFile(t, defaults, "enrolment: "+mode+"\n")
	data := filepath.Join(dir, "data")
	p := startUp(t, append([]string{"--data-dir", data, "--defaults", defaults}, anyPorts...)...)
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(os.Interrupt)
		if code := p.wait(t); code != 0 {
			t.Errorf("up ends with %d: %s", code, p.stderr)
		}
	})
	return data
}

// sendFrom runs `goshield send` as a device that has no token yet.
func sendFrom(t *testing.T, data string, flags ...string) (output string, ok bool) {
	t.Helper()
	args := append([]string{"send", "--context", filepath.Join(data, contextFile), "--token-dir", t.TempDir(), "--timeout", "30s"}, flags...)
	out, err := goshield(t, append(args, `"hello"`)...).CombinedOutput()
	return string(out), err == nil
}

func TestEnrolmentByKey(t *testing.T) {
	data := upWith(t, "key")
	group := filepath.Join(data, "secrets", "group-key")
	text, err := os.ReadFile(group)
	if err != nil {
		t.Fatal(err)
	}
	groupKey, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := wire.ClientIDFromMAC(testMAC)
	if err != nil {
		t.Fatal(err)
	}
	key := wire.DeviceKey(groupKey, id)
	own := filepath.Join(t.TempDir(), "key")
	writeFile(t, own, hex.EncodeToString(key[:])+"\n")
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	wrong := filepath.Join(t.TempDir(), "wrong")
	writeFile(t, wrong, hex.EncodeToString(random[:])+"\n")
	const other = "00:1a:2b:3c:4d:5f"
	for _, tt := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"group key", []string{"--mac", testMAC, "--group-key-file", group}, `"hello"`},
		{"its own key", []string{"--mac", testMAC, "--key-file", own}, `"hello"`},
		{"another device's key", []string{"--mac", other, "--key-file", own}, "bad_proof"},
		{"another fleet's key", []string{"--mac", testMAC, "--group-key-file", wrong}, "bad_proof"},
		{"both keys", []string{"--mac", testMAC, "--group-key-file", group, "--key-file", own}, "one of them is enough"},
	} {
		out, ok := sendFrom(t, data, tt.flags...)
		if !strings.Contains(out, tt.want) || ok != (tt.want == `"hello"`) {
			t.Errorf("%s: %v, %s; want %s", tt.name, ok, out, tt.want)
		}
		if strings.Contains(out, hex.EncodeToString(key[:])) || strings.Contains(out, strings.TrimSpace(string(text))) {
			t.Errorf("%s: the output shows a key", tt.name)
		}
	}
	// Each device of a fleet has a key of its own.
	bench := []string{"bench", "--context", filepath.Join(data, contextFile), "--devices", "20", "--rate", "100", "--duration", "1s"}
	if out, err := goshield(t, append(bench, "--group-key-file", group)...).CombinedOutput(); err != nil {
		t.Errorf("bench: %v\n%s", err, out)
	}
	if out, err := goshield(t, append(bench, "--group-key-file", wrong, "--connect-limit", "2s")...).CombinedOutput(); err == nil {
		t.Errorf("bench with a wrong key succeeds:\n%s", out)
	}
}

func TestEnrolmentByCertificate(t *testing.T) {
	data := upWith(t, "mtls")
	read := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	ca, err := certs.LoadCA(read("ca.pem"), read("ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := wire.ClientIDFromMAC(testMAC)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := ca.Issue(certs.Leaf{CommonName: id.String(), ValidFor: time.Hour, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	writeFile(t, cert, string(certPEM))
	writeFile(t, key, string(keyPEM))
	for _, tt := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"its certificate", []string{"--mac", testMAC, "--cert", cert, "--key", key}, `"hello"`},
		{"another device's", []string{"--mac", "00:1a:2b:3c:4d:5f", "--cert", cert, "--key", key}, "bad_proof"},
		{"none", []string{"--mac", testMAC}, "bad_proof"},
	} {
		out, ok := sendFrom(t, data, tt.flags...)
		if !strings.Contains(out, tt.want) || ok != (tt.want == `"hello"`) {
			t.Errorf("%s: %v, %s; want %s", tt.name, ok, out, tt.want)
		}
	}
}
