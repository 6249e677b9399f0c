package auth_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/logging"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
)

// dump is every key and value that Redis holds.
func dump(t *testing.T, rdb redis.UniversalClient) string {
	t.Helper()
	keys, err := rdb.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) == 0 {
		t.Fatalf("keys: %v, %v", keys, err)
	}
	all := ""
	for _, k := range keys {
		all += k + "\n"
		if fields, err := rdb.HGetAll(t.Context(), k).Result(); err == nil {
			for name, value := range fields {
				all += name + "=" + value + "\n"
			}
		}
	}
	return all
}

// TestAudit holds the audit line: one per operation, with these fields and no others.
func TestAudit(t *testing.T) {
	w := embedded(t, nil)
	id := newID()
	issued := w.enrol(id)
	claim := &authapi.Claim{Owner: "m/2", RemoteIP: "192.0.2.2"}
	w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token, Claim: claim}, nil)
	w.refused(401, wire.CodeBadToken, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: wire.Token{1}})
	w.refused(409, authapi.CodeNotCurrent, "POST", authapi.PathRotate, gatewaySecret, authapi.RotateRequest{ClientID: id, Token: issued.Token, Owner: "n/1"})
	w.ok(200, "POST", authapi.PathRelease, gatewaySecret, []authapi.Release{{ClientID: id, Epoch: issued.Epoch}}, nil)
	w.ok(200, "POST", authapi.PathRelease, gatewaySecret, []authapi.Release{}, nil) // a ping, no operation
	w.ok(200, "PUT", authapi.PathDevices+"/"+id.String(), adminSecret, nil, nil)
	w.ok(204, "DELETE", authapi.PathClients+id.String()+"/token", adminSecret, nil, nil)
	w.refused(401, authapi.CodeUnauthorized, "GET", authapi.PathDevices, "wrong", nil)

	always := []string{"level", "ts", "logger", "msg", "operation", "result", "request_id", "duration"}
	want := []struct {
		fields map[string]any
	}{
		{map[string]any{"operation": "issue", "result": "ok", "client_id": id.String(), "gateway": "n", "remote_ip": "192.0.2.1", "gen": 1.0}},
		{map[string]any{"operation": "verify", "result": "ok", "client_id": id.String(), "gateway": "m", "remote_ip": "192.0.2.2", "gen": 1.0}},
		{map[string]any{"operation": "verify", "result": "bad_token", "client_id": id.String(), "gen": 1.0}},
		{map[string]any{"operation": "rotate", "result": "not_current", "client_id": id.String(), "gateway": "n", "gen": 1.0}},
		{map[string]any{"operation": "release", "result": "ok", "sessions": 1.0, "released": 0.0}},
		{map[string]any{"operation": "device_put", "result": "ok", "client_id": id.String()}},
		{map[string]any{"operation": "revoke", "result": "ok", "client_id": id.String()}},
		{map[string]any{"operation": "device_list", "result": "unauthorized"}},
	}
	lines := w.log.lines(t, "audit")
	if len(lines) != len(want) {
		t.Fatalf("%d audit lines, want %d: %v", len(lines), len(want), lines)
	}
	for i, line := range lines {
		for name, value := range want[i].fields {
			if line[name] != value {
				t.Errorf("line %d: %s = %v, want %v", i+1, name, line[name], value)
			}
		}
		expected := slices.Sorted(slices.Values(slices.Concat(always, slices.Collect(maps.Keys(want[i].fields)))))
		if got := slices.Sorted(maps.Keys(line)); !slices.Equal(got, slices.Compact(expected)) {
			t.Errorf("line %d has the fields %v, want %v", i+1, got, slices.Compact(expected))
		}
		op, _ := want[i].fields["operation"].(string)
		result, _ := want[i].fields["result"].(string)
		if w.counter("goshield_auth_operations_total", op, result) != 1 {
			t.Errorf("goshield_auth_operations_total %s %s = %v, want 1", op, result, w.counter("goshield_auth_operations_total", op, result))
		}
	}
}

// TestAuditIsComplete: the process's log is sampled, and the audit in it is not.
func TestAuditIsComplete(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	w := embedded(t, nil)
	cfg := w.cfg
	cfg.Listen = "127.0.0.1:0"
	srv, err := auth.New(cfg, service.Deps{Log: logging.New(f, zap.InfoLevel), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	defer srv.Kill()
	first := w.srv
	w.srv = srv
	id := newID()
	issued := w.enrol(id)
	const n = 300
	for range n {
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token}, nil)
	}
	w.srv = first
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(text), `"operation":"verify","result":"ok"`); got != n {
		t.Errorf("%d audit lines of verify, want %d", got, n)
	}
}
