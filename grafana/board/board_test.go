package board

import (
	"encoding/json"
	"testing"
)

// page is what of a dashboard's JSON the tests look at.
type page struct {
	Panels []struct {
		ID      int
		Type    string
		GridPos struct{ X, Y, W, H int }
		Targets []struct {
			RefID string `json:"refId"`
			Expr  string
		}
		FieldConfig struct {
			Defaults struct {
				Thresholds struct {
					Steps []struct{ Value *float64 }
				}
				Mappings []struct {
					Options map[string]struct{ Text string }
				}
			}
		}
	}
}

func render(t *testing.T, d Dashboard) (p page) {
	t.Helper()
	text, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLayout(t *testing.T) {
	graph, wide, stat := Panel{}, Panel{Width: 24}, Panel{Kind: Stat}
	got := render(t, Dashboard{Rows: []Row{{Panels: []Panel{stat, graph, graph, graph, wide}}, {Panels: []Panel{stat}}}})
	want := [][4]int{ // x, y, w, h
		{0, 0, 24, 1},
		{0, 1, 4, 4}, {4, 1, 8, 8}, {12, 1, 8, 8},
		{0, 9, 8, 8}, // does not fit beside the others
		{0, 17, 24, 8},
		{0, 25, 24, 1},
		{0, 26, 4, 4},
	}
	if len(got.Panels) != len(want) {
		t.Fatalf("got %d panels, want %d", len(got.Panels), len(want))
	}
	for i, p := range got.Panels {
		if g := p.GridPos; [4]int{g.X, g.Y, g.W, g.H} != want[i] || p.ID != i+1 {
			t.Errorf("panel %d: got id %d at %v, want id %d at %v", i, p.ID, g, i+1, want[i])
		}
	}
}

func TestPanel(t *testing.T) {
	got := render(t, Dashboard{Rows: []Row{{Panels: []Panel{{
		Kind: Timeline, States: UpDown, Thresholds: Below(1, 2), Queries: []Query{{Expr: "a"}, {Expr: "b"}},
	}}}}}).Panels[1]
	if got.Type != "state-timeline" || len(got.Targets) != 2 || got.Targets[1].RefID != "B" || got.Targets[1].Expr != "b" {
		t.Errorf("got %+v, want a state-timeline of a (A) and b (B)", got)
	}
	steps := got.FieldConfig.Defaults.Thresholds.Steps
	if len(steps) != 3 || steps[0].Value != nil || steps[2].Value == nil || *steps[2].Value != 2 {
		t.Errorf("thresholds: got %+v, want one from the bottom, 1 and 2", steps)
	}
	if m := got.FieldConfig.Defaults.Mappings; len(m) != 1 || m[0].Options["1"].Text != "up" || m[0].Options["0"].Text != "down" {
		t.Errorf("mappings: got %+v, want 0 down, 1 up", m)
	}
}

func TestFill(t *testing.T) {
	d := Dashboard{Variables: []Variable{{Name: "instance"}}}
	got, want := d.Fill(`rate(x{instance=~"$instance"}[$__rate_interval])`), `rate(x{instance=~".*"}[1m])`
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
