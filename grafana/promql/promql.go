// Package promql checks the queries of alert rules and dashboards: that they parse, and that
// the metrics, labels and label values they name are documented in docs/ARCHITECTURE.md (which
// internal/doccheck holds against the code).
package promql

import (
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// Parse parses a query as Prometheus does with its default options.
func Parse(query string) (parser.Expr, error) {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	return expr, nil
}

// Operands are what an alert's expression compares: its parts with series in them, without comparisons,
// "and", "or", "unless" and absent() around them. Each returns series while all is well,
// where the expression itself returns none.
func Operands(query string) ([]string, error) {
	expr, err := Parse(query)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range operands(expr) {
		if s := e.String(); !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all, nil
}

func operands(expr parser.Expr) []parser.Expr {
	switch e := expr.(type) {
	case *parser.ParenExpr:
		return operands(e.Expr)
	case *parser.BinaryExpr:
		if e.Op.IsComparisonOperator() || e.Op.IsSetOperator() {
			return append(operands(e.LHS), operands(e.RHS)...)
		}
	case *parser.Call:
		if e.Func.Name == "absent" {
			return operands(e.Args[0])
		}
	}
	if len(parser.ExtractSelectors(expr)) == 0 {
		return nil // a constant
	}
	return []parser.Expr{expr}
}

// selector is one metric that a query asks for.
type selector struct {
	metric   string
	matchers []*labels.Matcher // without the one for the name
}

func selectors(expr parser.Expr) []selector {
	var all []selector
	for _, matchers := range parser.ExtractSelectors(expr) {
		var s selector
		for _, m := range matchers {
			if m.Name == "__name__" {
				s.metric = m.Value
			} else {
				s.matchers = append(s.matchers, m)
			}
		}
		all = append(all, s)
	}
	return all
}

// groupings are the labels that aggregations and joins of a query name, each with the metrics below it.
func groupings(expr parser.Expr) map[string][]string {
	named := map[string][]string{}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		var names []string
		switch e := node.(type) {
		case *parser.AggregateExpr:
			names = e.Grouping
		case *parser.BinaryExpr:
			if e.VectorMatching != nil {
				names = slices.Concat(e.VectorMatching.MatchingLabels, e.VectorMatching.Include)
			}
		}
		for _, name := range names {
			for _, s := range selectors(node.(parser.Expr)) {
				named[name] = append(named[name], s.metric)
			}
		}
		return nil
	})
	return named
}
