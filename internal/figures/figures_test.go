package figures

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	table := Table{Columns: []string{"proxy", "µs"}}
	table.Add("HAProxy", "20.1")
	table.Add("lb")
	want := strings.Join([]string{
		"| proxy   |   µs |",
		"|---------|-----:|",
		"| HAProxy | 20.1 |",
		"| lb      |      |",
		"",
	}, "\n")
	if got := table.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestSectionReplacesOnlyItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	section := Section{
		Name:   "bench relay",
		Origin: Origin{Time: time.Date(2025, 3, 1, 23, 0, 0, 0, time.UTC), Commit: "abc", Machine: "2 cores"},
		Body:   "new figures\n\n",
	}
	document := "# Figures\n<!-- bench relay: begin -->\nold\n<!-- bench relay: end -->\n" +
		"by hand\n<!-- bench idle: begin -->\nkept\n<!-- bench idle: end -->\n"
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	want := "# Figures\n<!-- bench relay: begin -->\nTaken on 2025-03-01 at commit `abc`: 2 cores.\n\nnew figures\n" +
		"<!-- bench relay: end -->\nby hand\n<!-- bench idle: begin -->\nkept\n<!-- bench idle: end -->\n"
	for range 2 { // the second time replaces what the first wrote
		if err := section.WriteTo(path); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

func TestSectionNeedsItsMarkers(t *testing.T) {
	for _, test := range []struct{ name, document, want string }{
		{"none", "# Figures\n", `no line "<!-- relay: begin -->"`},
		{"no end", "<!-- relay: begin -->\n", `no line "<!-- relay: end -->" after its beginning`},
		{"end first", "<!-- relay: end -->\n<!-- relay: begin -->\n", `no line "<!-- relay: end -->" after its beginning`},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "doc.md")
			if err := os.WriteFile(path, []byte(test.document), 0o600); err != nil {
				t.Fatal(err)
			}
			err := Section{Name: "relay"}.WriteTo(path)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if got, _ := os.ReadFile(path); string(got) != test.document {
				t.Errorf("the document was changed to %q", got)
			}
		})
	}
}

func TestHere(t *testing.T) {
	got := Here(t.Context())
	if time.Since(got.Time) > time.Minute || got.Commit == "" || got.Machine == "" {
		t.Errorf("got %+v", got)
	}
}
