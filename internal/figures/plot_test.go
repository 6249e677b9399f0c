package figures

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestPlot(t *testing.T) {
	plot := Plot{
		Title: "relay", Note: `a < b & "c"`,
		Rows: [][]Panel{{{
			Title: "µs", Subtitle: "less is better", Goal: 15, GoalText: "goal ≤ 15",
			Bars: []Bar{{Name: "haproxy", Value: 20, Low: 18, High: 30, Text: "20.0"}, {Name: "lb", Value: 10, Low: 10, High: 10, Text: "10.0", Ours: true}},
		}, {Title: "without figures"}}},
	}
	got := plot.SVG()
	decoder := xml.NewDecoder(strings.NewReader(got))
	for {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, got)
		}
	}
	// The longest bar is that of the highest value, 30: 216 pixels.
	for _, want := range []string{
		`class="theirs" x="90" y="122" width="144"`, `class="ours" x="90" y="152" width="72"`,
		`class="goal" x1="198"`, "goal ≤ 15", ">20.0<", "a &lt; b &amp;",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
