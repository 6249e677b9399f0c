package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/goshield/goshield/grafana/board"
	"github.com/goshield/goshield/grafana/promql"
)

// root is the repository, from here.
const root = ".."

func TestDashboardsAreFresh(t *testing.T) {
	var want []string
	for _, d := range dashboards() {
		text, err := d.JSON()
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("dashboards", fileName(d)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, text) {
			t.Errorf("grafana/dashboards/%s is not what its definition says: go run ./grafana", fileName(d))
		}
		want = append(want, filepath.Join("dashboards", fileName(d)))
	}
	got, err := filepath.Glob("dashboards/*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files in grafana/dashboards:\n got %q\nwant %q", got, want)
	}
}

// inventory knows all metrics, and what recording rules make of them.
func inventory(t *testing.T) *promql.Inventory {
	t.Helper()
	inv, err := promql.ReadInventory(root)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := promql.ReadRules(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if r.Record != "" {
			inv.AddRecorded(r.Record)
		}
	}
	return inv
}

func TestQueriesUseWhatExists(t *testing.T) {
	inv := inventory(t)
	for _, q := range queries() {
		if err := inv.Check(q.Query); err != nil {
			t.Errorf("%s, %s: %v", q.Dashboard, q.Panel, err)
		}
	}
	for _, a := range board.Annotations {
		if err := inv.Check(a.Expr); err != nil {
			t.Errorf("annotation %s: %v", a.Name, err)
		}
	}
	values := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	for _, d := range dashboards() {
		for _, v := range d.Variables {
			m := values.FindStringSubmatch(v.Values)
			if m == nil {
				t.Errorf("%s: variable %s: %q is not label_values(metric, label)", d.Title, v.Name, v.Values)
				continue
			}
			if err := inv.Check("sum by (" + m[2] + ") (" + m[1] + ")"); err != nil {
				t.Errorf("%s: variable %s: %v", d.Title, v.Name, err)
			}
		}
	}
}

func TestPanelsExplainThemselves(t *testing.T) {
	uids := map[string]bool{}
	for _, d := range dashboards() {
		if uids[d.UID] || d.Description == "" {
			t.Errorf("%s: wants a uid of its own and a description", d.Title)
		}
		uids[d.UID] = true
		for _, r := range d.Rows {
			for _, p := range r.Panels {
				if p.Title == "" || p.Description == "" || p.Unit == "" || len(p.Queries) == 0 {
					t.Errorf("%s, %s, %q: wants title, description, unit and queries", d.Title, r.Title, p.Title)
				}
				for _, q := range p.Queries {
					if q.Legend == "" && p.Kind != board.Stat {
						t.Errorf("%s, %s: %s has no legend", d.Title, p.Title, q.Expr)
					}
				}
			}
		}
	}
}

// TestNoQueryIsNeverEmpty: with a constant beside it, a panel whose series are gone looks like one where all is well.
func TestNoQueryIsNeverEmpty(t *testing.T) {
	for _, q := range queries() {
		if strings.Contains(q.Query, "vector(") || strings.Contains(q.Query, "absent") {
			t.Errorf("%s, %s: %s always has an answer", q.Dashboard, q.Panel, q.Query)
		}
	}
}

// TestThresholds: shares, latencies and times until something ends have colours for good and bad.
func TestThresholds(t *testing.T) {
	for _, d := range dashboards() {
		for _, r := range d.Rows {
			for _, p := range r.Panels {
				if slices.Contains([]board.Unit{board.Ratio, board.Seconds, board.DurationOf}, p.Unit) && len(p.Thresholds) == 0 {
					t.Errorf("%s, %s: a panel in %s wants thresholds", d.Title, p.Title, p.Unit)
				}
			}
		}
	}
}

// TestVariables: each is used, and none is used that is not there.
func TestVariables(t *testing.T) {
	variable := regexp.MustCompile(`\$(\w+)`)
	for _, d := range dashboards() {
		used := map[string]bool{"__rate_interval": true}
		for _, r := range d.Rows {
			for _, p := range r.Panels {
				for _, q := range p.Queries {
					for _, m := range variable.FindAllStringSubmatch(q.Expr, -1) {
						used[m[1]] = true
					}
				}
			}
		}
		for _, v := range d.Variables {
			if !used[v.Name] {
				t.Errorf("%s: nothing uses $%s", d.Title, v.Name)
			}
			delete(used, v.Name)
		}
		if !slices.ContainsFunc(d.Variables, func(v board.Variable) bool { return v.Name == "instance" }) {
			t.Errorf("%s: has no choice of instances", d.Title)
		}
		delete(used, "__rate_interval")
		if len(used) > 0 {
			t.Errorf("%s: no variables %v", d.Title, used)
		}
	}
}

// TestProvisioning: the data source has the uid that dashboards name.
func TestProvisioning(t *testing.T) {
	text, err := os.ReadFile("provisioning/datasources/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Datasources []struct{ UID, Type string } `yaml:"datasources"`
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Datasources) != 1 || doc.Datasources[0].UID != "prometheus" || doc.Datasources[0].Type != "prometheus" {
		t.Errorf("data sources: got %+v, want one with uid and type prometheus", doc.Datasources)
	}
}

// TestPromtoolAcceptsQueries asks the promtool that is installed, which may be older than the
// parser here. scripts/test installs one.
func TestPromtoolAcceptsQueries(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is not installed: Debian's package prometheus has it, and scripts/test installs it")
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	for _, q := range queries() {
		rules = append(rules, rule{"x", q.Query})
	}
	for _, a := range board.Annotations {
		rules = append(rules, rule{"x", a.Expr})
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "panels.yml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", "--lint=none", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestLists(t *testing.T) {
	for _, tt := range []struct {
		flag string
		want string // in the first object
	}{{"--queries", "query"}, {"--alerts", "operands"}} {
		var stdout, stderr strings.Builder
		if code := run([]string{"--root", root, tt.flag}, &stdout, &stderr); code != 0 {
			t.Fatalf("%s: exit %d: %s", tt.flag, code, stderr.String())
		}
		var list []map[string]any
		if err := json.Unmarshal([]byte(stdout.String()), &list); err != nil {
			t.Fatalf("%s: %v", tt.flag, err)
		}
		if _, ok := list[0][tt.want]; !ok {
			t.Errorf("%s: got %v, want a key %s", tt.flag, list[0], tt.want)
		}
		for _, o := range list {
			if o["operands"] == nil && o["alert"] != nil && o["alert"] != "Watchdog" {
				t.Errorf("%v compares nothing", o["alert"])
			}
			if q, _ := o["query"].(string); strings.Contains(q, "$") {
				t.Errorf("a variable is left in %s", q)
			}
		}
	}
}
