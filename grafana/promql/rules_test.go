package promql

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// root is the repository's, from here.
const root = "../.."

func readRules(t *testing.T) []Rule {
	t.Helper()
	rules, err := ReadRules(root)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// alerts are the names of all alerts.
func alerts(t *testing.T) []string {
	t.Helper()
	names := map[string]bool{}
	for _, r := range readRules(t) {
		if r.Alert != "" {
			names[r.Alert] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRulesUseWhatExists(t *testing.T) {
	inv := readInventory(t)
	rules := readRules(t)
	for _, r := range rules {
		if r.Record != "" {
			inv.AddRecorded(r.Record)
		}
	}
	for _, r := range rules {
		if err := inv.Check(r.Expr); err != nil {
			t.Error(err)
		}
	}
}

func TestAlertsSayWhatToDo(t *testing.T) {
	const url = "https://github.com/goshield/goshield/blob/main/docs/OPERATIONS.md#"
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		if !slices.Contains([]string{"critical", "warning", "info", "none"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: wants a summary and a description", r.Alert)
		}
		if got, want := r.Annotations["runbook_url"], url+strings.ToLower(r.Alert); got != want {
			t.Errorf("%s: runbook_url\n got %s\nwant %s", r.Alert, got, want)
		}
	}
}

// TestRunbook: one entry for each alert, each saying what is wrong, where to look and what to do.
func TestRunbook(t *testing.T) {
	_, text, _ := strings.Cut(read(t, "docs/OPERATIONS.md"), "\n## Alerts\n")
	text, _, _ = strings.Cut(text, "\n## ")
	var got []string
	for _, section := range strings.Split(text, "\n### ")[1:] {
		name, body, _ := strings.Cut(section, "\n")
		got = append(got, name)
		for _, want := range []string{"*Means:*", "*Look:*", "*Do:*"} {
			if !strings.Contains(body, want) {
				t.Errorf("the entry of %s has no %s", name, want)
			}
		}
	}
	slices.Sort(got)
	if want := alerts(t); !slices.Equal(got, want) {
		t.Errorf("entries in docs/OPERATIONS.md:\n got %q\nwant %q", got, want)
	}
}

// promtoolTest is what a file of prometheus/tests holds, as far as it matters here.
type promtoolTest struct {
	Tests []struct {
		Name   string           `yaml:"name"`
		Series []map[string]any `yaml:"input_series"`
		Alerts []struct {
			Name string `yaml:"alertname"`
			Want []struct {
				Labels map[string]string `yaml:"exp_labels"`
			} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	} `yaml:"tests"`
}

// TestAlertsAreTested: promtool says whether the tests hold, this one whether there are enough: each
// alert fires with each of its severities, is silent beside series, and is tested without any.
func TestAlertsAreTested(t *testing.T) {
	fires, silent, absent := map[string]bool{}, map[string]bool{}, map[string]bool{}
	files, err := filepath.Glob(filepath.Join(root, "prometheus/tests/*.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		var doc promtoolTest
		if err := yaml.Unmarshal([]byte(read(t, strings.TrimPrefix(file, root))), &doc); err != nil {
			t.Fatal(err)
		}
		for _, test := range doc.Tests {
			for _, a := range test.Alerts {
				for _, w := range a.Want {
					fires[a.Name+" "+w.Labels["severity"]] = true
				}
				if len(a.Want) == 0 && len(test.Series) > 0 {
					silent[a.Name] = true
				}
				if len(test.Series) == 0 {
					absent[a.Name] = true
				}
			}
		}
	}
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		if s := r.Labels["severity"]; !fires[r.Alert+" "+s] {
			t.Errorf("no test lets %s fire with severity %s", r.Alert, s)
		}
		if !silent[r.Alert] && r.Alert != "Watchdog" {
			t.Errorf("no test shows that %s can be silent", r.Alert)
		}
		if !absent[r.Alert] {
			t.Errorf("no test shows what %s does without its series", r.Alert)
		}
	}
}

// alertmanager is the part of its configuration that names alerts.
type alertmanager struct {
	Route        any              `yaml:"route"`
	InhibitRules []map[string]any `yaml:"inhibit_rules"`
	Receivers    []struct {
		Name string `yaml:"name"`
	} `yaml:"receivers"`
}

func readAlertmanager(t *testing.T, name string) (cfg alertmanager) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, name)), &cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestInhibitionNamesAlerts(t *testing.T) {
	text := read(t, "alertmanager/alertmanager.yml")
	known := alerts(t)
	for _, m := range regexp.MustCompile(`alertname =~? ("[^"]+"|\w+)`).FindAllStringSubmatch(text, -1) {
		for name := range strings.SplitSeq(strings.Trim(m[1], `"`), "|") {
			if !slices.Contains(known, name) {
				t.Errorf("alertmanager.yml names %s, which is no alert", name)
			}
		}
	}
}

// TestWebhookExample: the example differs from what is in use in its receivers' integrations only.
func TestWebhookExample(t *testing.T) {
	inUse, example := readAlertmanager(t, "alertmanager/alertmanager.yml"), readAlertmanager(t, "alertmanager/webhook.example.yml")
	got, err := yaml.Marshal(example)
	if err != nil {
		t.Fatal(err)
	}
	want, err := yaml.Marshal(inUse)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("webhook.example.yml:\n got %s\nwant %s", got, want)
	}
}
