package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Result is what came of trying a rule.
type Result string

// The results.
const (
	Kept     Result = "ok"
	Broken   Result = "failed"
	NotTried Result = "not tried" // Outcome.Seen says why
)

// Outcome is one rule, tried one way.
type Outcome struct {
	Way    string // version and transport
	Rule   string
	Demand string // what it demands
	Result Result
	Seen   string // what the gateway did
	Took   time.Duration
}

// MarshalJSON implements json.Marshaler.
func (o Outcome) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"way": o.Way, "rule": o.Rule, "demand": o.Demand, "result": o.Result, "seen": o.Seen, "took_ms": o.Took.Milliseconds(),
	})
}

// Report is what a run found, in the order of the rules.
type Report struct {
	Outcomes []*Outcome `json:"outcomes"`
}

// Count is how many outcomes have that result.
func (r *Report) Count(result Result) (n int) {
	for _, o := range r.Outcomes {
		if o.Result == result {
			n++
		}
	}
	return n
}

// Summary is the report in one line.
func (r *Report) Summary() string {
	return fmt.Sprintf("%d rules tried: %d ok, %d failed; %d not tried", r.Count(Kept)+r.Count(Broken), r.Count(Kept), r.Count(Broken), r.Count(NotTried))
}

// Err is not nil if a rule was broken, or none was tried.
func (r *Report) Err() error {
	switch {
	case r.Count(Broken) > 0:
		return fmt.Errorf("%d of %d rules are broken", r.Count(Broken), r.Count(Kept)+r.Count(Broken))
	case r.Count(Kept) == 0:
		return errors.New("no rule could be tried")
	}
	return nil
}

// Widths of the table's columns, in characters; longer texts go on in the next line.
const (
	demandWidth = 46
	seenWidth   = 56
)

// WriteText writes a table for each version and transport.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	nameWidth := 0
	for _, o := range r.Outcomes {
		nameWidth = max(nameWidth, len(o.Rule))
	}
	way := ""
	for _, o := range r.Outcomes {
		if o.Way != way {
			if way != "" {
				b.WriteByte('\n')
			}
			way = o.Way
			fmt.Fprintf(&b, "%s\n", way)
			writeRow(&b, nameWidth, "rule", "demands", "", "seen")
			fmt.Fprintf(&b, "%s\n", strings.Repeat("─", 2+nameWidth+2+demandWidth+2+len(NotTried)+2+seenWidth))
		}
		writeRow(&b, nameWidth, o.Rule, o.Demand, string(o.Result), o.Seen)
	}
	fmt.Fprintf(&b, "\n%s\n", r.Summary())
	_, err := io.WriteString(w, b.String())
	return err
}

// writeRow writes the cells of one rule, wrapped.
func writeRow(b *strings.Builder, nameWidth int, name, demand, result, seen string) {
	demands, seens := wrap(demand, demandWidth), wrap(seen, seenWidth)
	for i := range max(len(demands), len(seens), 1) {
		line := fmt.Sprintf("  %-*s  %s  %-*s  %s", nameWidth, name, pad(at(demands, i), demandWidth), len(NotTried), result, at(seens, i))
		b.WriteString(strings.TrimRight(line, " ") + "\n")
		name, result = "", ""
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-utf8.RuneCountInString(s), 0))
}

// wrap breaks a text at spaces, and a word that is longer than a line within.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
		for utf8.RuneCountInString(line) > width {
			runes := []rune(line)
			lines = append(lines, string(runes[:width]))
			line = string(runes[width:])
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
