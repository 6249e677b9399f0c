package promql

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/prometheus/model/labels"
)

// Inventory is every metric that there is, with its labels.
type Inventory struct {
	metrics map[string]words
	values  words // what documentation sets in backquotes: label values are among them
}

type words map[string]bool

// targetLabels are on every series that is scraped.
var targetLabels = words{"job": true, "instance": true, "le": true}

// others are metrics of programs that are not ours, with the labels that queries use. Those of
// Redis are redis_exporter's, the same in 1.45 and 1.67.
var others = map[string]string{
	"up": "", "ALERTS": "alertname alertstate severity",
	"redis_up": "", "redis_cluster_state": "", "redis_cluster_enabled": "", "redis_cluster_slots_ok": "",
	"redis_cluster_slots_fail": "", "redis_cluster_known_nodes": "", "redis_cluster_size": "",
	"redis_instance_info": "role redis_version", "redis_master_link_up": "master_host master_port", "redis_connected_slaves": "",
	"redis_memory_used_bytes": "", "redis_memory_max_bytes": "", "redis_connected_clients": "",
	"redis_commands_processed_total": "", "redis_commands_total": "cmd", "redis_commands_duration_seconds_total": "cmd",
	"redis_db_keys": "db", "redis_evicted_keys_total": "", "redis_aof_current_size_bytes": "",
	"redis_net_input_bytes_total": "", "redis_net_output_bytes_total": "", "redis_uptime_in_seconds": "",
	"redis_slowlog_length": "", "redis_master_repl_offset": "", "redis_slave_repl_offset": "master_host master_port",
}

var (
	metricRow = regexp.MustCompile("(?m)^\\| `(goshield_[a-z0-9_]+)` \\| (\\w+) \\|([^|]*)\\|")
	quoted    = regexp.MustCompile("`([^`]+)`")
)

// ReadInventory reads the table of metrics in the repository whose root is given.
func ReadInventory(root string) (*Inventory, error) {
	inv := &Inventory{metrics: map[string]words{}, values: words{}}
	var text strings.Builder
	for _, name := range []string{"/docs/ARCHITECTURE.md", "/docs/PROTOCOL.md"} {
		doc, err := os.ReadFile(root + name)
		if err != nil {
			return nil, err
		}
		text.Write(doc)
	}
	for _, m := range metricRow.FindAllStringSubmatch(text.String(), -1) {
		name, kind, labels := m[1], m[2], words{}
		for _, q := range quoted.FindAllStringSubmatch(m[3], -1) {
			labels[q[1]] = true
		}
		if kind == "histogram" {
			inv.metrics[name+"_bucket"], inv.metrics[name+"_sum"], inv.metrics[name+"_count"] = labels, labels, labels
		} else {
			inv.metrics[name] = labels
		}
	}
	for _, q := range quoted.FindAllStringSubmatch(text.String(), -1) {
		inv.values[q[1]] = true
	}
	if err := inv.addRuntime(); err != nil {
		return nil, err
	}
	for name, labels := range others {
		inv.add(name, strings.Fields(labels)...)
	}
	return inv, nil
}

// addRuntime adds what every process exports of itself, as internal/service registers it.
func (inv *Inventory) addRuntime() error {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	families, err := reg.Gather()
	if err != nil {
		return err
	}
	for _, f := range families {
		inv.add(f.GetName(), "quantile", "version")
	}
	return nil
}

func (inv *Inventory) add(name string, labels ...string) {
	set := words{}
	for _, l := range labels {
		set[l] = true
	}
	inv.metrics[name] = set
}

// AddRecorded adds the series of a recording rule. Its labels are the level of its name:
// service_code:goshield_requests:rate1m.
func (inv *Inventory) AddRecorded(name string) {
	level, _, _ := strings.Cut(name, ":")
	inv.add(name, strings.Split(level, "_")...)
}

// Check reports everything in a query that does not parse or does not exist.
func (inv *Inventory) Check(query string) error {
	expr, err := Parse(query)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range selectors(expr) {
		known, ok := inv.metrics[s.metric]
		if !ok {
			errs = append(errs, fmt.Errorf("%s: no metric %s", query, s.metric))
			continue
		}
		for _, m := range s.matchers {
			if !known[m.Name] && !targetLabels[m.Name] {
				errs = append(errs, fmt.Errorf("%s: %s has no label %s", query, s.metric, m.Name))
			}
			errs = append(errs, inv.checkValue(query, s.metric, m))
		}
	}
	for label, metrics := range groupings(expr) {
		for _, m := range metrics {
			if !inv.metrics[m][label] && !targetLabels[label] {
				errs = append(errs, fmt.Errorf("%s: %s has no label %s to group by", query, m, label))
			}
		}
	}
	return errors.Join(errs...)
}

// checkValue holds the values that a matcher names against the documentation.
func (inv *Inventory) checkValue(query, metric string, m *labels.Matcher) error {
	if targetLabels[m.Name] || !strings.HasPrefix(metric, "goshield_") {
		return nil
	}
	// A regular expression is an alternative of values, each of which may be a pattern itself.
	alternatives := []string{m.Value}
	if m.Type == labels.MatchRegexp || m.Type == labels.MatchNotRegexp {
		alternatives = strings.Split(m.Value, "|")
	}
	for _, a := range alternatives {
		pattern, err := regexp.Compile("^(?:" + a + ")$")
		if err != nil {
			return fmt.Errorf("%s: %w", query, err)
		}
		found := inv.values[a]
		for v := range inv.values {
			found = found || pattern.MatchString(v)
		}
		if !found {
			return fmt.Errorf("%s: %s has no %s %s", query, metric, m.Name, a)
		}
	}
	return nil
}
