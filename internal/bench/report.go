//go:build linux

package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goshield/goshield/internal/figures"
)

// report is what a mode found.
type report struct {
	Mode     string            `json:"mode"`
	Origin   figures.Origin    `json:"origin"`
	Versions string            `json:"versions"`
	Settings any               `json:"settings"` // every round's figures
	body     []string          // paragraphs and tables in Markdown
	rows     [][]figures.Panel // of the plot
}

func (r *report) say(format string, args ...any) {
	r.body = append(r.body, strings.TrimRight(fmt.Sprintf(format, args...), "\n"))
}

// text is the whole body.
func (r *report) text() string {
	plot := fmt.Sprintf("![The same as a plot](%s)", filepath.Base(plotFile(r.Mode)))
	return strings.Join(append(r.body, plot), "\n\n")
}

// metric is one number of a contestant's rounds.
type metric[T any] struct {
	name     string // with its unit
	short    string // for the plot; without it, the metric is not drawn
	decimals int
	value    func(T) float64
	goal     goal
}

// goal is what ours is to reach.
type goal struct {
	ratio    float64 // to the first of the peers, that of the rounds and that of the medians; 0: none
	most     float64 // in the metric's unit; 0: none
	moreWins bool
}

// text says the goal, and whether it has been reached, "" if there is none. A
// ratio of 0 is one of nobody.
func (g goal) text(ratio, value float64, decimals int) string {
	var said []string
	met := true
	known := g.ratio == 0 || ratio != 0
	if g.ratio != 0 {
		said = append(said, fmt.Sprintf("%s %.2f", g.sign(), g.ratio))
		met = g.holds(ratio, g.ratio)
	}
	if g.most != 0 {
		said = append(said, fmt.Sprintf("≤ %.*f", decimals, g.most))
		met = met && value <= g.most
	}
	if len(said) == 0 {
		return ""
	}
	switch {
	case !known:
		return strings.Join(said, ", ")
	case met:
		return strings.Join(said, ", ") + ": met"
	}
	return strings.Join(said, ", ") + ": missed"
}

// worse is the ratio that is the harder one to reach the goal with: the median of the rounds' ratios, or that of the medians.
func (g goal) worse(s, to series) float64 {
	if g.moreWins {
		return min(s.ratio(to), s.ofMedians(to))
	}
	return max(s.ratio(to), s.ofMedians(to))
}

func (g goal) sign() string {
	if g.moreWins {
		return "≥"
	}
	return "≤"
}

func (g goal) holds(got, want float64) bool {
	if g.moreWins {
		return got >= want
	}
	return got <= want
}

// compare adds a table, and a row of the plot, of one setting.
func compare[T any](r *report, s *setting[T], opt options, metrics []metric[T]) {
	columns := []string{s.String()}
	var peers []string // whom ours is compared with
	for _, c := range opt.field {
		columns = append(columns, c.name)
		if slices.Contains(opt.against(), c.name) {
			peers = append(peers, c.name)
		}
	}
	ours := opt.ours()
	if ours != "" {
		for _, name := range peers {
			columns = append(columns, ours+" to "+name)
		}
		columns = append(columns, "goal")
	}
	table := figures.Table{Columns: columns}
	var panels []figures.Panel
	for _, m := range metrics {
		row := []string{m.name}
		for _, c := range opt.field {
			row = append(row, m.cell(s.of(c.name, m.value)))
		}
		if ours != "" {
			own := s.of(ours, m.value)
			for _, name := range peers {
				row = append(row, ratioText(own, s.of(name, m.value)))
			}
			row = append(row, m.goal.text(m.goal.worse(own, s.of(opt.against()[0], m.value)), own.median(), m.decimals))
		}
		table.Add(row...)
		if m.short != "" {
			panels = append(panels, m.panel(s, opt))
		}
	}
	r.say("%s", table.String())
	r.rows = append(r.rows, panels)
}

// compareVariants adds a table, and a row of the plot, of one setting: the first of the field with each of the others. The
// goal is that of the second, to the first.
func compareVariants[T any](r *report, s *setting[T], field []contestant, metrics []metric[T]) {
	base, others := field[0].name, field[1:]
	columns := []string{s.String()}
	for _, c := range field {
		columns = append(columns, c.name)
	}
	for _, c := range others {
		columns = append(columns, c.name+" to "+base)
	}
	table := figures.Table{Columns: append(columns, "goal of "+others[0].name)}
	var panels []figures.Panel
	for _, m := range metrics {
		reference, second := s.of(base, m.value), s.of(others[0].name, m.value)
		row := []string{m.name}
		for _, c := range field {
			row = append(row, m.cell(s.of(c.name, m.value)))
		}
		for _, c := range others {
			row = append(row, ratioText(s.of(c.name, m.value), reference))
		}
		table.Add(append(row, m.goal.text(m.goal.worse(second, reference), second.median(), m.decimals))...)
		if m.short != "" {
			panels = append(panels, m.panel(s, options{field: field}))
		}
	}
	r.say("%s", table.String())
	r.rows = append(r.rows, panels)
}

// cell is the median, with the lowest and the highest if there are several.
func (m metric[T]) cell(found series) string {
	if len(found) == 0 {
		return "–"
	}
	text := fmt.Sprintf("%.*f", m.decimals, found.median())
	if len(found) == 1 {
		return text
	}
	low, high := found.bounds()
	return text + fmt.Sprintf(" (%.*f–%.*f)", m.decimals, low, m.decimals, high)
}

// ratioText is the ratio of the rounds and that of the medians, which is the same where there is one round. It is empty where
// there is nobody to compare with.
func ratioText(s, to series) string {
	ratio := s.ratio(to)
	switch {
	case ratio == 0:
		return ""
	case len(s) == 1:
		return fmt.Sprintf("%.2f", ratio)
	}
	return fmt.Sprintf("%.2f / %.2f", ratio, s.ofMedians(to))
}

func (m metric[T]) panel(s *setting[T], opt options) figures.Panel {
	p := figures.Panel{Title: m.short, Subtitle: s.String() + ", less is better"}
	if m.goal.moreWins {
		p.Subtitle = s.String() + ", more is better"
	}
	for _, c := range opt.field {
		found := s.of(c.name, m.value)
		if len(found) == 0 {
			continue
		}
		low, high := found.bounds()
		p.Bars = append(p.Bars, figures.Bar{
			Name: c.name, Value: found.median(), Low: low, High: high, Text: fmt.Sprintf("%.*f", m.decimals, found.median()), Ours: c.ours != "",
		})
	}
	reference := s.of(opt.against()[0], m.value).median()
	switch {
	case m.goal.most != 0:
		p.Goal, p.GoalText = m.goal.most, fmt.Sprintf("goal ≤ %.*f", m.decimals, m.goal.most)
	case m.goal.ratio != 0 && reference != 0:
		p.Goal = m.goal.ratio * reference
		p.GoalText = fmt.Sprintf("goal %s %.2f of %s", m.goal.sign(), m.goal.ratio, opt.against()[0])
	}
	return p
}

// plot draws all settings.
func (r *report) plot() figures.Plot {
	return figures.Plot{Title: "scripts/bench " + r.Mode, Note: r.Origin.Line(), Rows: r.rows}
}
