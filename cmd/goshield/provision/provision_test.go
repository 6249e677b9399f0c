package provision

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goshield/goshield/internal/secret"
)

func ensure(t *testing.T, dir string) []string {
	t.Helper()
	changes, err := Ensure(Config{Dir: dir, Hosts: []string{"gateway.example.org"}, RedisHosts: []string{"redis-1", "10.0.0.1"}, RedisPort: "6379"})
	if err != nil {
		t.Fatalf("Ensure: %v", err)
	}
	return changes
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestEnsureMakesOnceAndHandsOnWhatWasReplaced(t *testing.T) {
	dir := t.TempDir()
	if changes := ensure(t, dir); len(changes) == 0 {
		t.Error("first run: got no changes")
	}
	if changes := ensure(t, dir); len(changes) != 0 {
		t.Errorf("second run: got %v, want no changes", changes)
	}
	// An administrator replaces a secret, in two steps so that no call is refused.
	const name = "gateway"
	path := filepath.Join(dir, Authority, name)
	both := "my-own-secret-0123456789\n" + string(read(t, path))
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	changes := ensure(t, dir)
	want := []string{"gateway/gateway", "auth-service/gateway"}
	if !slices.Equal(changes, want) {
		t.Errorf("after a replacement: got %v, want %v", changes, want)
	}
	if got := string(read(t, dir, "auth-service", "gateway")); got != both {
		t.Error("auth-service has not got the replaced secret")
	}
}

// Nobody gets another's secret: the table, read from the other side.
func TestWhoSeesWhat(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir)
	allowed := map[string][]string{
		gatewaySecret: {"gateway", "auth-service"},
		adminSecret:   {"lb", "gateway", "auth-service", "operator"},
		backendSecret: {"gateway", "echo-backend"},
		pushSecret:    {"gateway", "operator"},
		groupKey:      {"auth-service", "devices"},
		ticketKeys:    {"gateway"},
		grafanaSecret: {"grafana"},
		redisAdmin:    {"redis-admin", "operator"},
		redisGateway:  {"gateway"}, redisAuth: {"auth-service"}, redisExporter: {"redis-exporter"}, redisReplication: {"redis"},
	}
	for _, name := range secrets {
		value := bytes.TrimSpace(read(t, dir, Authority, name))
		var got []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !bytes.Contains(read(t, path), value) {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if owner, _, _ := strings.Cut(rel, "/"); owner != Authority && !slices.Contains(got, owner) {
				got = append(got, owner)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		want := slices.Clone(allowed[name])
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: in the directories of %v, want %v", name, got, want)
		}
	}
	for _, p := range parts {
		for _, f := range p.files {
			info, err := os.Stat(filepath.Join(dir, p.name, f.name))
			if err != nil {
				t.Error(err)
			} else if got := info.Mode().Perm(); got != 0o440 {
				t.Errorf("%s/%s: mode %v, want -r--r-----", p.name, f.name, got)
			}
		}
	}
}

func TestFilesAreWhatTheirReadersWant(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir)
	for _, name := range []string{"gateway/gateway", "gateway/push", "gateway/redis-password", "operator/admin"} {
		if _, err := secret.Open(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"auth-service/group-key", "gateway/ticket-keys"} {
		if key, err := hex.DecodeString(strings.TrimSpace(string(read(t, dir, name)))); err != nil || len(key) != 32 {
			t.Errorf("%s: got %d bytes (%v), want 32 in hex", name, len(key), err)
		}
	}
	users := string(read(t, dir, "redis", "users.acl"))
	for line := range strings.Lines(users) {
		if !strings.HasPrefix(line, "user ") {
			t.Errorf("users.acl: line %q", line)
		}
	}
	// Off, but not restricted: or a restarted Redis forgets what scripts wrote.
	if !strings.HasPrefix(users, "user default off resetpass ~* &* +@all\n") {
		t.Error("users.acl: the default user is not off, or is restricted")
	}
	var passwords map[string]string
	if err := json.Unmarshal(read(t, dir, "redis-exporter", "passwords.json"), &passwords); err != nil || passwords["redis://redis-1:6379"] == "" {
		t.Errorf("passwords.json: got %d entries, %v", len(passwords), err)
	}
}

// What an installation of an earlier release has not got is made, and nothing else is touched.
func TestEnsureMakesWhatIsNew(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir)
	want := []string{Authority + "/ticket-keys", "gateway/ticket-keys"}
	for _, name := range want {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := ensure(t, dir); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What the parts' configurations in compose/ name is what the parts get.
func TestComposeNamesWhatIsMade(t *testing.T) {
	made := regexp.MustCompile(`/run/goshield/([a-z.-]+)`)
	for _, p := range parts {
		text, err := os.ReadFile(filepath.Join("..", "..", "..", "compose", p.name+".yaml"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		names := made.FindAllStringSubmatch(string(text), -1)
		if len(names) == 0 {
			t.Errorf("compose/%s.yaml names no file", p.name)
		}
		for _, name := range names {
			if !slices.ContainsFunc(p.files, func(f file) bool { return f.name == name[1] }) {
				t.Errorf("compose/%s.yaml names %s, which %s does not get", p.name, name[0], p.name)
			}
		}
	}
}

func TestAnEmptySecretIsAnError(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir)
	path := filepath.Join(dir, Authority, redisReplication)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Ensure(Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "redis-replication is empty") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

// A reader that looks while a file is replaced sees all of it: no file is ever written in place.
func TestFilesAreReplaced(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir)
	path := filepath.Join(dir, "lb", "admin")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, Authority, adminSecret)); err != nil {
		t.Fatal(err)
	}
	ensure(t, dir)
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if os.SameFile(before, after) {
		t.Error("lb/admin was written in place")
	}
}
