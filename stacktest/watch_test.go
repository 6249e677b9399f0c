package stacktest

// What watches: alerts, dashboards, the status page; and what must never be seen.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// firing are the alerts of a name, and with some labels more, that fire: label="value", …
func firing(alert string, labels ...string) ([]string, error) {
	return series(fmt.Sprintf("ALERTS{%s}", strings.Join(append(labels, `alertstate="firing"`, fmt.Sprintf("alertname=%q", alert)), ",")))
}

// fires waits until an alert fires and Alertmanager knows of it.
func fires(t *testing.T, alert string, labels ...string) {
	t.Helper()
	took := await(t, alert+" fires", patience, func() error {
		found, err := firing(alert, labels...)
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

// ends waits until an alert fires no more.
func ends(t *testing.T, alert string, labels ...string) {
	t.Helper()
	took := await(t, alert+" ends", patience, func() error {
		found, err := firing(alert, labels...)
		if err == nil && len(found) > 0 {
			err = errors.New("it does not")
		}
		return err
	})
	t.Logf("%s ended within %v", alert, took.Round(time.Second))
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
	// Some are about devices that come, and have none to show of them while nobody does.
	comeAndGo(t, s.keys, true, func() {
		// Rates need two scrapes, recorded ones up to a minute more.
		for deadline := time.Now().Add(patience); len(waiting) > 0; time.Sleep(time.Second) {
			last := time.Now().After(deadline)
			var still []question
			for _, q := range waiting {
				found, err := series(q.query)
				if err == nil && slices.ContainsFunc(found, isData) {
					continue
				}
				still = append(still, q)
				if last {
					t.Errorf("%s: no data (%v, %v) for %s", q.who, found, err, q.query)
				}
			}
			waiting = still
			if last {
				return
			}
		}
	})
}

// isData: a quotient of nothing by nothing is none.
func isData(value string) bool { return value != "NaN" }

// nothingSecret looks for every secret, and every key and token that devices have had, in all that is said: containers'
// descriptions, logs, metrics and pages.
func nothingSecret(t *testing.T, s *stack) {
	secrets := authoritySecrets(t)
	s.addOtherDevices(t)
	for value, whose := range s.keys.known.all() {
		secrets[value] = whose
	}

	ids := strings.Fields(docker(t, "ps", "-aq", "--filter", "label=com.docker.compose.project="+project))
	seen := map[string]string{"docker inspect": docker(t, append([]string{"inspect"}, ids...)...)}
	for _, id := range ids {
		seen["the log of "+strings.TrimSpace(docker(t, "inspect", "-f", "{{.Name}}", id))] = run(t, "sh", "-c", "docker logs "+id+" 2>&1")
	}
	removed := gone.all()
	for who, said := range removed {
		seen["what was said by "+who] = said
	}
	exporter := "http://" + addressIn(t, name("redis-exporter"), "monitoring") + ":9121"
	pages := []string{
		adminOf["a"] + "/metrics", adminOf["b"] + "/metrics", adminOf["a"] + "/api/status", adminOf["b"] + "/api/status",
		"http://127.0.0.1:9090/metrics", "http://127.0.0.1:9090/api/v1/status/config", "http://127.0.0.1:9090/api/v1/targets",
		"http://127.0.0.1:9093/metrics", "http://127.0.0.1:9093/api/v2/status", "http://127.0.0.1:9093/api/v2/alerts",
		exporter + "/metrics",
	}
	for _, node := range redisNodes {
		pages = append(pages, exporter+"/scrape?target=redis://"+node+":6379")
	}
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
	wanted, size := newNeedles(secrets), 0
	for where, text := range seen {
		size += len(text)
		for _, what := range wanted.in(text) {
			t.Errorf("%s is seen in %s", what, where)
		}
	}
	t.Logf("%d secrets looked for in %d bytes of %d places, %d of them containers that are gone", len(secrets), size, len(seen), len(removed))
}

// authoritySecrets are those that were made on the first start: whose, by value.
func authoritySecrets(t *testing.T) map[string]string {
	t.Helper()
	secrets := map[string]string{}
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
	return secrets
}

// addOtherDevices puts what the devices of `cli` and `demo` have into the ledger.
func (s *stack) addOtherDevices(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	compose(t, "cp", "init:/var/lib/goshield/tokens/.", dir)
	store, err := client.FileStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		id, err := wire.ParseClientID(strings.TrimSuffix(filepath.Base(file), ".json"))
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := store.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		s.keys.known.addKey(id, wire.DeviceKey(s.keys.group, id))
		s.keys.known.addTokens(id, tokens)
	}
}
