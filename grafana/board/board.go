// Package board builds Grafana dashboards: rows of panels with queries to Prometheus, laid out by themselves,
// written as the JSON that Grafana provisions.
//
//	d := board.Dashboard{UID: "goshield-lb", Title: "Load balancer", Rows: []board.Row{{
//		Title: "Traffic",
//		Panels: []board.Panel{{
//			Title: "Connections", Description: "Relayed now, by gateway.", Unit: board.Count,
//			Queries: []board.Query{{Expr: "sum by (upstream) (goshield_lb_connections)", Legend: "{{upstream}}"}},
//		}},
//	}}}
//	text, err := d.JSON()
//
// It knows what these dashboards use of Grafana, and nothing else.
package board

import "strings"

// A Dashboard is one page.
type Dashboard struct {
	UID         string // in its address; must not change
	Title       string
	Description string
	Variables   []Variable
	Rows        []Row
}

// A Variable is a choice at the top of the page, of one or more values of a label. Queries
// use it as label=~"$name".
type Variable struct {
	Name   string // as queries call it
	Label  string // as people see it
	Values string // label_values(metric, label)
}

// A Row is a titled group of panels, which flow from left to right.
type Row struct {
	Title  string
	Panels []Panel
}

// Kind is how a panel shows its series.
type Kind string

// The kinds of panels.
const (
	Graph    Kind = "timeseries"     // lines over time; the kind of a Panel that names none
	Stat     Kind = "stat"           // the latest value, large
	Timeline Kind = "state-timeline" // bars whose colour is the state: for what is up or down
)

// Unit is what values are shown in.
type Unit string

// The units, by Grafana's names.
const (
	Count      Unit = "short"
	Ratio      Unit = "percentunit" // of 1
	Seconds    Unit = "s"
	Bytes      Unit = "bytes"
	BytesRate  Unit = "Bps"
	PerSecond  Unit = "ops"
	Cores      Unit = "none"
	State      Unit = "bool_on_off"
	DurationOf Unit = "dtdurations" // days and hours
)

// A Panel is one chart.
type Panel struct {
	Kind        Kind
	Title       string
	Description string // what it shows, and what to make of it
	Unit        Unit
	Queries     []Query
	Thresholds  []Threshold   // the first one's Value is ignored: it begins at the bottom
	Stacked     bool          // of a Graph: areas on top of each other
	ShowName    bool          // of a Stat: the name of the series, not its value
	States      []StateColour // of a Timeline
	Width       int           // of 24; 0: what suits the kind
}

// A Query is one expression of PromQL. It may use the dashboard's variables and $__rate_interval.
type Query struct {
	Expr   string
	Legend string // {{label}} is replaced
}

// A Threshold colours what is at or above Value.
type Threshold struct {
	Value  float64
	Colour string
}

// A StateColour says what a value of a Timeline means.
type StateColour struct {
	Value  float64
	Text   string
	Colour string
}

// UpDown are the states of what should be 1.
var UpDown = []StateColour{{0, "down", "red"}, {1, "up", "green"}}

// Below returns thresholds for what is good while it is low.
func Below(warn, bad float64) []Threshold {
	return []Threshold{{0, "green"}, {warn, "orange"}, {bad, "red"}}
}

// Above returns thresholds for what is good while it is high.
func Above(bad, warn float64) []Threshold {
	return []Threshold{{0, "red"}, {bad, "orange"}, {warn, "green"}}
}

// interval is what queries are asked over where Grafana would fill in $__rate_interval:
// some scrapes, and few enough to follow a change.
const interval = "1m"

// Fill puts values into a query's variables, each standing for all there are.
func (d Dashboard) Fill(expr string) string {
	expr = strings.ReplaceAll(expr, "$__rate_interval", interval)
	for _, v := range d.Variables {
		expr = strings.ReplaceAll(expr, "$"+v.Name, ".*")
	}
	return expr
}
