//go:build linux

package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "take the figures of docs/scaling.md over from docs/benchmarks.md")

// TestScalingCitesBenchmarks: a row of docs/scaling.md whose last cell reads "`mode` / table / row / column" begins its second one
// with what docs/benchmarks.md has there.
func TestScalingCitesBenchmarks(t *testing.T) {
	const scaling = "../../docs/scaling.md"
	benchmarks, err := os.ReadFile("../../" + docs)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(scaling)
	if err != nil {
		t.Fatal(err)
	}
	lines, cited := strings.Split(string(text), "\n"), 0
	for i, line := range lines {
		row := cells(line)
		if len(row) != 3 || strings.Count(row[2], " / ") != 3 {
			continue
		}
		cited++
		want, err := figureIn(string(benchmarks), strings.Split(row[2], " / "))
		if err != nil {
			t.Errorf("%s: %v", row[0], err)
			continue
		}
		got, unit := splitFigure(row[1])
		if got != want && *update {
			lines[i] = strings.Replace(line, "| "+row[1]+" |", "| "+strings.TrimSpace(want+" "+unit)+" |", 1)
		} else if got != want {
			t.Errorf("%s: docs/scaling.md says %q, docs/benchmarks.md %q (-update takes it over)", row[0], got, want)
		}
	}
	if cited < 20 {
		t.Errorf("%d rows cite docs/benchmarks.md, want all that were measured", cited)
	}
	if *update {
		if err := os.WriteFile(scaling, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// cells are those of a line of a table; none of any other line.
func cells(line string) []string {
	inner, ok := strings.CutPrefix(line, "|")
	inner, ends := strings.CutSuffix(inner, "|")
	if !ok || !ends {
		return nil
	}
	found := strings.Split(inner, "|")
	for i := range found {
		found[i] = strings.TrimSpace(found[i])
	}
	return found
}

// splitFigure cuts "1.5 (1–2) KB", or "1.5 KB", before the unit.
func splitFigure(text string) (figure, unit string) {
	if bounds, rest, ok := strings.Cut(text, ")"); ok {
		return bounds + ")", strings.TrimSpace(rest)
	}
	figure, unit, _ = strings.Cut(text, " ")
	return figure, unit
}

// figureIn finds a figure in benchmarks.md: where is a mode, the first cell of a table's head, a row and a column.
func figureIn(benchmarks string, where []string) (string, error) {
	mode := strings.Trim(where[0], "`")
	_, section, ok := strings.Cut(benchmarks, "<!-- bench "+mode+": begin -->")
	section, _, ends := strings.Cut(section, "<!-- bench "+mode+": end -->")
	if !ok || !ends {
		return "", fmt.Errorf("no mode %q", mode)
	}
	var head []string // of the table that a line is in
	for line := range strings.Lines(section) {
		row := cells(strings.TrimSpace(line))
		switch {
		case row == nil:
			head = nil
		case head == nil:
			head = row
		case head[0] == where[1] && row[0] == where[2]:
			for i, column := range head {
				if column == where[3] && i < len(row) {
					return row[i], nil
				}
			}
		}
	}
	return "", fmt.Errorf("nothing at %q", where)
}
