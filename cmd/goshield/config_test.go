package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/configdb"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redistest"
)

// withRedisEnv is an environment with an embedded Redis that holds one version of a document.
func withRedisEnv(t *testing.T) (map[string]string, redis.UniversalClient) {
	t.Helper()
	e, rdb := redistest.Embedded(t)
	env := map[string]string{"GOSHIELD_REDIS_ADDRESSES": e.Addr(), "GOSHIELD_REDIS_MODE": "single", contextEnv: ""}
	doc := dynamic.Default()
	doc.Services = map[string]dynamic.Service{"echo": {Endpoints: []string{"a:1"}}}
	if _, err := configdb.New(rdb).Put(t.Context(), doc, 0, "test"); err != nil {
		t.Fatal(err)
	}
	return env, rdb
}

func TestConfigSetAndGet(t *testing.T) {
	env, rdb := withRedisEnv(t)
	invoke(env, "", "config", "set", "heartbeat.interval", "30s").expect(t, "set", 0,
		"  heartbeat.interval: 20s -> 30s\nversion 2: in force within 2 s\n", "")
	invoke(env, "", "config", "set", "heartbeat.interval", "30s").expect(t, "the same again", 0, "nothing changes\nversion 2\n", "")
	invoke(env, "", "config", "get", "heartbeat.interval").expect(t, "a value", 0, "30s\n", "")
	invoke(env, "", "config", "get", "heartbeat").expect(t, "an object", 0, "interval: 30s\nmissed: 3\n", "")
	invoke(env, "", "config", "get", "services.echo.endpoints").expect(t, "a list", 0, "[\"a:1\"]\n", "")
	invoke(env, "", "config", "get", "heartbeat", "--json").expect(t, "JSON", 0, "{\n  \"interval\": \"30s\",\n  \"missed\": 3\n}\n", "")
	invoke(env, "", "config", "set", "services.echo", "null", "--json", "--by", "me").expect(t, "a service removed", 0,
		`{
  "version": 3,
  "changes": [
    {
      "path": "services.echo.algorithm",
      "old": "round_robin",
      "new": ""
    },
    {
      "path": "services.echo.endpoints",
      "old": "[\"a:1\"]",
      "new": ""
    },
    {
      "path": "services.echo.idempotent",
      "old": "false",
      "new": ""
    },
    {
      "path": "services.echo.limit.burst",
      "old": "0",
      "new": ""
    },
    {
      "path": "services.echo.limit.rate",
      "old": "0",
      "new": ""
    },
    {
      "path": "services.echo.links",
      "old": "2",
      "new": ""
    },
    {
      "path": "services.echo.protocol",
      "old": "link",
      "new": ""
    },
    {
      "path": "services.echo.timeout",
      "old": "5s",
      "new": ""
    }
  ]
}
`, "")
	e, err := configdb.New(rdb).Current(t.Context())
	if err != nil || e.Version != 3 || e.By != "me" {
		t.Errorf("in Redis: version %d by %s, %v, want 3 by me", e.Version, e.By, err)
	}
}

// Row 25: what cannot be used is refused by its key, and nothing is written.
func TestConfigRefuses(t *testing.T) {
	env, rdb := withRedisEnv(t)
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	writeFile(t, bad, "token: {grace: 48h}\n")
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"set", "idle_timeout", "1ms"}, 2, "goshield: idle_timeout: must be from 10ms to 720h"},
		{[]string{"set", "idle", "1s"}, 2, "goshield: idle: there is no such key"},
		{[]string{"set", "services.echo.endpoints", ""}, 2, "goshield: services.echo.endpoints: name endpoints"},
		{[]string{"set", "services.echo.endpoints", "localhost"}, 2, `goshield: services.echo.endpoints: "localhost" is not an address of the form host:port`},
		{[]string{"set", "services.pay", `{"dns": "pay"}`}, 2, `goshield: services.pay.dns: "pay" is not an address of the form host:port`},
		{[]string{"set", "idle_timeout"}, 2, "goshield: VALUE is missing\nTry \"goshield config set --help\"."},
		{[]string{"set", "a", "b", "c"}, 2, `goshield: unexpected argument "c"`},
		{[]string{"get", "services.none"}, 2, "goshield: services.none: there is no such service"},
		{[]string{"apply", bad}, 2, "goshield: " + bad + ": token.grace: "},
		{[]string{"apply", bad + "x"}, 2, "no such file"},
		{[]string{"rollback", "7"}, 1, "goshield: no such version is kept: 7; `goshield config history` lists them"},
		{[]string{"rollback", "last"}, 2, `goshield: "last" is no version`},
		{[]string{"get", "--redis", "127.0.0.1:1"}, 1, "goshield: cannot reach Redis at 127.0.0.1:1: "},
		{[]string{"get", "--redis", "here"}, 2, `goshield: redis.addresses: must be host:port, got "here"`},
		{[]string{"get", "--config", "none.yaml"}, 1, "goshield: --config: open none.yaml"},
	} {
		invoke(env, "", append([]string{"config"}, tt.args...)...).expect(t, strings.Join(tt.args, " "), tt.code, "", tt.says)
	}
	if e, err := configdb.New(rdb).Current(t.Context()); err != nil || e.Version != 1 {
		t.Errorf("in Redis: version %d, %v, want 1 still", e.Version, err)
	}
}

// What a gateway that lives would refuse is refused by its key, and the gateway is named: auth-service would go by it alone.
func TestConfigRefusesWhatAGatewayLacks(t *testing.T) {
	env, rdb := withRedisEnv(t)
	node := func(name, value string) {
		t.Helper()
		if err := rdb.ZAdd(t.Context(), "goshield:nodes", redis.Z{Score: 1, Member: name}).Err(); err != nil {
			t.Fatal(err)
		}
		if err := rdb.Set(t.Context(), "goshield:node:"+name, value, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	mtls := filepath.Join(t.TempDir(), "mtls.yaml")
	writeFile(t, mtls, "enrolment: mtls\nservices: {echo: {endpoints: [\"a:1\"]}}\n")
	const says = "goshield: enrolment: mtls needs tls.client_ca at every gateway, to check certificates with; there is none at gw-1, gw-3\n"
	node("gw-1", `{"no_client_ca": true}`)
	node("gw-2", `{"push": "10.0.0.7:9400"}`)
	node("gw-3", `{"no_client_ca": true}`)
	invoke(env, "", "config", "set", "enrolment", "mtls").expect(t, "set", 1, "", says)
	invoke(env, "", "config", "apply", mtls).expect(t, "apply", 1, "", says)
	invoke(env, "", "config", "set", "enrolment", "key").expect(t, "set to another mode", 0, "  enrolment: open -> key\nversion 2: in force within 2 s\n", "")
	if err := rdb.Del(t.Context(), "goshield:node:gw-1", "goshield:node:gw-3").Err(); err != nil { // they have died
		t.Fatal(err)
	}
	invoke(env, "", "config", "set", "enrolment", "mtls").expect(t, "set", 0, "  enrolment: key -> mtls\nversion 3: in force within 2 s\n", "")
	invoke(env, "", "config", "rollback", "2").expect(t, "rollback", 0, "  enrolment: mtls -> key\nversion 4: in force within 2 s\n", "")
	node("gw-1", `{"no_client_ca": true}`)
	node("gw-3", `{"no_client_ca": true}`)
	invoke(env, "", "config", "rollback", "3").expect(t, "rollback to what they lack", 1, "", says)
}

// What get prints, apply reads.
func TestConfigApply(t *testing.T) {
	env, _ := withRedisEnv(t)
	got := invoke(env, "", "config", "get")
	if got.code != 0 || !strings.HasPrefix(got.out, "# version 1, set ") {
		t.Fatalf("get: %+v", got)
	}
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	writeFile(t, path, got.out)
	invoke(env, "", "config", "apply", path).expect(t, "what is there", 0, "nothing changes\nversion 1\n", "")
	changed := strings.ReplaceAll(got.out, "max_in_flight: 32", "max_in_flight: 16")
	writeFile(t, path, strings.ReplaceAll(changed, "- a:1", "- b:2"))
	want := "  max_in_flight: 32 -> 16\n  services.echo.endpoints: [\"a:1\"] -> [\"b:2\"]\n"
	invoke(env, "", "config", "apply", path, "--dry-run").expect(t, "dry run", 0, want, "")
	invoke(env, "", "config", "apply", path).expect(t, "apply", 0, want+"version 2: in force within 2 s\n", "")
	invoke(env, `{"max_in_flight": 8, "services": {"echo": {"endpoints": ["b:2"]}}}`, "config", "apply", "-").expect(t, "JSON from standard input", 0,
		"  max_in_flight: 16 -> 8\nversion 3: in force within 2 s\n", "")
}

func TestConfigHistoryAndRollback(t *testing.T) {
	env, rdb := withRedisEnv(t)
	for i := range 3 {
		if o := invoke(env, "", "config", "set", "max_in_flight", fmt.Sprint(10+i), "--by", "me"); o.code != 0 {
			t.Fatalf("set: %+v", o)
		}
	}
	invoke(env, "", "config", "rollback", "2", "--by", "you").expect(t, "rollback", 0, "  max_in_flight: 12 -> 10\nversion 5: in force within 2 s\n", "")
	o := invoke(env, "", "config", "history")
	lines := strings.Split(strings.TrimSpace(o.out), "\n")
	if o.code != 0 || len(lines) != 6 || !strings.HasPrefix(lines[0], "VERSION") || !strings.HasPrefix(lines[1], "5 ") ||
		!strings.Contains(lines[1], "you") || !strings.HasSuffix(lines[1], "max_in_flight") || !strings.Contains(lines[5], "test") {
		t.Errorf("history:\n%s%s", o.out, o.errOut)
	}
	var versions []versionJSON
	if err := json.Unmarshal([]byte(invoke(env, "", "config", "history", "--json").out), &versions); err != nil || len(versions) != 5 {
		t.Fatalf("history as JSON: %d versions, %v", len(versions), err)
	}
	if v := versions[0]; v.Version != 5 || v.ChangedBy != "you" || v.Document.MaxInFlight != 10 || len(v.Changes) != 1 || v.Changes[0].Old != "12" {
		t.Errorf("the latest = %+v, want version 5", v)
	}
	// One that somebody broke by hand is told, and can be replaced.
	if err := rdb.HSet(t.Context(), "goshield:config", "document", `{"idle_timeout": "1ms"}`).Err(); err != nil {
		t.Fatal(err)
	}
	invoke(env, "", "config", "get").expect(t, "a broken one", 1, "", "version 5) cannot be used, gateways keep the one before: idle_timeout")
	if o := invoke(env, "", "config", "rollback", "5"); o.code != 0 || !strings.HasSuffix(o.out, "version 6: in force within 2 s\n") {
		t.Errorf("rollback of a broken one: %+v", o)
	}
}

// Where Redis has no document, a change starts from what the gateways said they go by.
func TestConfigWithoutDocument(t *testing.T) {
	env, rdb := withRedisEnv(t)
	if err := rdb.Del(t.Context(), "goshield:config").Err(); err != nil {
		t.Fatal(err)
	}
	if o := invoke(env, "", "config", "get"); o.code != 0 || !strings.HasPrefix(o.out, "# Redis has no document: these are the built-in defaults\n") {
		t.Errorf("get of nothing: %+v", o)
	}
	if err := rdb.Set(t.Context(), "goshield:{goshield:config}:defaults", `{"max_in_flight": 5}`, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if o := invoke(env, "", "config", "get"); o.code != 0 || !strings.HasPrefix(o.out, "# Redis has no document: these are the gateways' defaults\n") {
		t.Errorf("get of the defaults: %+v", o)
	}
	invoke(env, "", "config", "set", "idle_timeout", "1m").expect(t, "set", 0, "  idle_timeout: 1m30s -> 1m0s\nversion 1: in force within 2 s\n", "")
	invoke(env, "", "config", "get", "max_in_flight").expect(t, "what the gateways had", 0, "5\n", "")
}

// Redis is named by the context, by a gateway's file, by variables and by flags; the later wins.
func TestConfigFindsRedis(t *testing.T) {
	env, _ := withRedisEnv(t)
	addr := env["GOSHIELD_REDIS_ADDRESSES"]
	dir := t.TempDir()
	file, password := filepath.Join(dir, "gateway.yaml"), filepath.Join(dir, "password")
	writeFile(t, file, "listen: :1\nredis: {addresses: [\""+addr+"\"], mode: single}\ndefaults: {idle_timeout: 1m}\n")
	writeFile(t, password, "a-password-of-16-bytes\n")
	context := filepath.Join(dir, contextFile)
	if err := (Context{Redis: []string{addr}}).Save(context); err != nil {
		t.Fatal(err)
	}
	nowhere := map[string]string{"GOSHIELD_REDIS_ADDRESSES": "127.0.0.1:1", "GOSHIELD_REDIS_MODE": "single"}
	for _, tt := range []struct {
		name string
		env  map[string]string
		args []string
		code int
	}{
		{"context", map[string]string{contextEnv: context}, nil, 0},
		{"file", nil, []string{"--config", file}, 0},
		{"environment over the file", nowhere, []string{"--config", file}, 1},
		{"flags over the environment", nowhere, []string{"--redis", addr}, 0},
		{"a password that is not wanted", env, []string{"--redis-username", "x", "--redis-password-file", password}, 1},
	} {
		o := invoke(tt.env, "", append([]string{"config", "get", "max_in_flight"}, tt.args...)...)
		if o.code != tt.code || tt.code == 0 && o.out != "32\n" || strings.Contains(o.out+o.errOut, "a-password") {
			t.Errorf("%s: %+v, want code %d and no password", tt.name, o, tt.code)
		}
	}
	if _, err := os.Stat(filepath.Join(defaultDataDir, contextFile)); err == nil {
		t.Error("the tests' directory has a context of its own")
	}
}
