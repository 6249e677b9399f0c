// Command grafana writes the dashboards into grafana/dashboards, from their
// definitions in this package. Run it after changing one:
//
//	go run ./grafana
//
// For those who test a running environment it prints, as JSON:
//
//	go run ./grafana --queries   the query of every panel, with variables filled in
//	go run ./grafana --alerts    for every alert, what its expression compares
//
// Each must return series from Prometheus while all is well.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/goshield/goshield/grafana/board"
	"github.com/goshield/goshield/grafana/promql"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("grafana", flag.ContinueOnError)
	flags.SetOutput(stderr)
	root := flags.String("root", ".", "the repository")
	listQueries := flags.Bool("queries", false, "print the queries of all panels")
	listAlerts := flags.Bool("alerts", false, "print what alerts compare")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	var err error
	switch {
	case *listQueries:
		err = printJSON(stdout, queries())
	case *listAlerts:
		var all []alert
		if all, err = alerts(*root); err == nil {
			err = printJSON(stdout, all)
		}
	default:
		err = write(filepath.Join(*root, "grafana/dashboards"))
	}
	if err != nil {
		fmt.Fprintln(stderr, "grafana:", err)
		return 1
	}
	return 0
}

// dashboards are all of them, in the order of a request's way.
func dashboards() []board.Dashboard {
	return []board.Dashboard{overview(), loadBalancer(), gateway(), auth(), backends(), redis()}
}

// write renders every dashboard into dir, one file each.
func write(dir string) error {
	for _, d := range dashboards() {
		text, err := d.JSON()
		if err != nil {
			return err
		}
		//nolint:gosec // G306: Grafana runs as another user and must read it
		if err := os.WriteFile(filepath.Join(dir, fileName(d)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func fileName(d board.Dashboard) string { return d.UID + ".json" }

// query is one of a panel's, as it can be asked of Prometheus.
type query struct {
	Dashboard string `json:"dashboard"`
	Panel     string `json:"panel"`
	Query     string `json:"query"`
}

func queries() []query {
	var all []query
	for _, d := range dashboards() {
		for _, r := range d.Rows {
			for _, p := range r.Panels {
				for _, q := range p.Queries {
					all = append(all, query{d.Title, p.Title, d.Fill(q.Expr)})
				}
			}
		}
	}
	return all
}

// alert is a rule, and what of it has series while it is silent.
type alert struct {
	Alert    string   `json:"alert"`
	Severity string   `json:"severity"`
	Expr     string   `json:"expr"`
	Operands []string `json:"operands"`
}

func alerts(root string) ([]alert, error) {
	rules, err := promql.ReadRules(root)
	if err != nil {
		return nil, err
	}
	var all []alert
	for _, r := range rules {
		if r.Alert == "" {
			continue
		}
		operands, err := promql.Operands(r.Expr)
		if err != nil {
			return nil, err
		}
		all = append(all, alert{r.Alert, r.Labels["severity"], r.Expr, operands})
	}
	return all, nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
