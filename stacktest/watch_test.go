package stacktest

// What watches: alerts, dashboards, the status page; and what must never be seen.

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fires waits until an alert fires and Alertmanager knows of it.
func fires(t *testing.T, alert string) {
	t.Helper()
	took := await(t, alert+" fires", patience, func() error {
		found, err := series(fmt.Sprintf("ALERTS{alertstate=%q,alertname=%q}", "firing", alert))
		if err == nil && len(found) == 0 {
			err = errors.New("it does not")
		}
		return err
	})
	await(t, "Alertmanager knows of "+alert, patience, func() error {
		body, err := get("http://127.0.0.1:9093/api/v2/alerts")
		if err == nil && !strings.Contains(body, `"`+alert+`"`) {
			err = errors.New("it does not")
		}
		return err
	})
	t.Logf("%s fired within %v", alert, took.Round(time.Second))
}

// queriesFindData asks the real Prometheus for what every panel shows and every alert compares.
func queriesFindData(t *testing.T, s *stack) {
	up(t)
	s.fleet.settle(t)
	var panels []struct{ Dashboard, Panel, Query string }
	var alerts []struct {
		Alert    string
		Operands []string
	}
	for flag, into := range map[string]any{"--queries": &panels, "--alerts": &alerts} {
		if err := json.Unmarshal([]byte(run(t, "go", "run", "./grafana", flag)), into); err != nil {
			t.Fatal(err)
		}
	}
	type question struct{ who, query string }
	var waiting []question
	for _, p := range panels {
		waiting = append(waiting, question{p.Dashboard + ": " + p.Panel, p.Query})
	}
	for _, a := range alerts {
		for _, operand := range a.Operands {
			waiting = append(waiting, question{a.Alert, operand})
		}
	}
	t.Logf("%d queries of panels, %d alerts", len(panels), len(alerts))
	// Rates need two scrapes, recorded ones up to a minute more.
	for deadline := time.Now().Add(patience); len(waiting) > 0; time.Sleep(time.Second) {
		last := time.Now().After(deadline)
		var still []question
		for _, q := range waiting {
			found, err := series(q.query)
			if err == nil && len(found) > 0 {
				continue
			}
			still = append(still, q)
			if last {
				t.Errorf("%s: no data (%v) for %s", q.who, err, q.query)
			}
		}
		waiting = still
		if last {
			return
		}
	}
}

// nothingSecret looks for every secret, and the tokens that devices hold, in all that is said: containers'
// descriptions, logs, metrics and pages.
func nothingSecret(t *testing.T, s *stack) {
	secrets := map[string]string{} // by value: whose
	dir := t.TempDir()
	compose(t, "cp", "init:/var/lib/goshield/authority/.", dir)
	files := os.DirFS(dir)
	if err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".pem") && !strings.HasSuffix(path, "-key.pem") {
			return err // a certificate is no secret
		}
		text, err := fs.ReadFile(files, path)
		for _, value := range strings.Fields(string(text)) {
			if len(value) >= 16 { // not "-----BEGIN"
				secrets[value] = filepath.Base(path)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(secrets) < 11 {
		t.Fatalf("%d secrets were found to look for", len(secrets))
	}
	for i := range s.fleet.devices {
		tokens, err := s.store.Load(s.keys.config(i, "", nil).ClientID)
		if err != nil {
			t.Fatal(err)
		}
		secrets[tokens.Current.Text()] = fmt.Sprintf("the token of device %d", i)
	}

	ids := strings.Fields(docker(t, "ps", "-aq", "--filter", "label=com.docker.compose.project="+project))
	seen := map[string]string{"docker inspect": docker(t, append([]string{"inspect"}, ids...)...)}
	for _, id := range ids {
		seen["the log of "+strings.TrimSpace(docker(t, "inspect", "-f", "{{.Name}}", id))] = run(t, "sh", "-c", "docker logs "+id+" 2>&1")
	}
	pages := []string{adminOf["a"] + "/metrics", adminOf["b"] + "/metrics", adminOf["a"] + "/api/status"}
	for _, service := range []string{"gateway", "auth-service", "echo-backend"} {
		for _, c := range containers(t, service) {
			pages = append(pages, "http://"+addressIn(t, c, "inside")+":9090/metrics")
		}
	}
	for _, page := range pages {
		body, err := get(page)
		if err != nil {
			t.Fatal(err)
		}
		seen[page] = body
	}
	size := 0
	for where, text := range seen {
		size += len(text)
		for value, whose := range secrets {
			for form, v := range forms(value) {
				if strings.Contains(text, v) {
					t.Errorf("%s is seen in %s, %s", whose, where, form)
				}
			}
		}
	}
	t.Logf("%d secrets looked for in %d bytes of %d places", len(secrets), size, len(seen))
}

// forms are those in which a secret could be seen.
func forms(value string) map[string]string {
	hash := sha256.Sum256([]byte(value))
	all := map[string]string{
		"as it is":           value,
		"in hex":             hex.EncodeToString([]byte(value)),
		"in base64":          base64.RawStdEncoding.EncodeToString([]byte(value)),
		"by its hash":        hex.EncodeToString(hash[:]),
		"by its base64 hash": base64.RawStdEncoding.EncodeToString(hash[:]),
	}
	// Those that are hex stand for bytes, which have forms of their own.
	if raw, err := hex.DecodeString(value); err == nil {
		hash := sha256.Sum256(raw)
		all["in base64 of its bytes"] = base64.RawStdEncoding.EncodeToString(raw)
		all["by the hash of its bytes"] = hex.EncodeToString(hash[:])
	}
	return all
}
