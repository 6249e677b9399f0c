//go:build linux

package main

import (
	"strings"
	"testing"
)

func TestGoal(t *testing.T) {
	for _, test := range []struct {
		name         string
		goal         goal
		ratio, value float64
		want         string
	}{
		{"none", goal{}, 2, 2, ""},
		{"less, met", goal{ratio: 0.9}, 0.9, 5, "≤ 0.90: met"},
		{"less, missed", goal{ratio: 0.9}, 0.91, 5, "≤ 0.90: missed"},
		{"more, met", goal{ratio: 1.1, moreWins: true}, 1.2, 5, "≥ 1.10: met"},
		{"more, missed", goal{ratio: 1.1, moreWins: true}, 1, 5, "≥ 1.10: missed"},
		{"nobody to compare with", goal{ratio: 0.9}, 0, 5, "≤ 0.90"},
		{"both, met", goal{ratio: 0.15, most: 0.5}, 0.1, 0.4, "≤ 0.15, ≤ 0.5: met"},
		{"both, one missed", goal{ratio: 0.15, most: 0.5}, 0.1, 0.6, "≤ 0.15, ≤ 0.5: missed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.goal.text(test.ratio, test.value, 1); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestCompare: the ratio of the rounds is not that of the medians, which here is 10/10. The goal is reached by both or not at all.
func TestCompare(t *testing.T) {
	s := &setting[float64]{Threads: 1, Connections: 8, Rounds: map[string][]float64{
		haproxyName: {10, 100, 1},
		lbName:      {5, 50, 10},
	}}
	opt := options{field: []contestant{{name: haproxyName}, {name: lbName, ours: "lb"}}}
	value := func(v float64) float64 { return v }
	var rep report
	compare(&rep, s, opt, []metric[float64]{{"µs", "time", 1, value, goal{ratio: 0.9}}})
	got := strings.Join(rep.body, "")
	for _, want := range []string{
		"8 connections, 1 thread", "10.0 (1.0–100.0)", "10.0 (5.0–50.0)", "lb to haproxy", "0.50 / 1.00 |", "≤ 0.90: missed",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	rep.body = nil
	compareVariants(&rep, s, []contestant{{name: haproxyName}, {name: lbName}}, []metric[float64]{{"µs", "", 1, value, goal{ratio: 0.4}}})
	got = strings.Join(rep.body, "")
	for _, want := range []string{"lb to haproxy", "goal of lb", "0.50 / 1.00 |", "≤ 0.40: missed"} {
		if !strings.Contains(got, want) {
			t.Errorf("variants: no %q in\n%s", want, got)
		}
	}
	panel := rep.rows[0][0]
	if panel.Goal != 9 || len(panel.Bars) != 2 || !panel.Bars[1].Ours || panel.Bars[1].High != 50 {
		t.Errorf("got the panel %+v, want both bars and a goal at 0.9 of haproxy's", panel)
	}
}

// TestWorse: whichever of the two ratios is further from the goal.
func TestWorse(t *testing.T) {
	own, other := series{5, 50, 10}, series{10, 100, 1} // 0.5 by the rounds, 1 by the medians
	if got := (goal{}).worse(own, other); got != 1 {
		t.Errorf("less wins: got %v, want 1", got)
	}
	if got := (goal{moreWins: true}).worse(own, other); got != 0.5 {
		t.Errorf("more wins: got %v, want 0.5", got)
	}
	if got := (goal{}).worse(own, nil); got != 0 {
		t.Errorf("nobody to compare with: got %v, want 0", got)
	}
}
