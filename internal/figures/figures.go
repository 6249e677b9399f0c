// Package figures keeps what benchmarks and soaks measure: tables in Markdown,
// with the date, the commit and the machine they were taken on, put into a
// document between two markers.
//
//	table := figures.Table{Columns: []string{"proxy", "µs"}}
//	table.Add("lb", "17.2")
//	section := figures.Section{Name: "bench relay", Origin: figures.Here(ctx), Body: table.String()}
//	err := section.WriteTo("docs/benchmarks.md")
//
// A document is written by hand; only what stands between
// "<!-- bench relay: begin -->" and "<!-- bench relay: end -->" is replaced.
package figures

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// Table is a table of text. The first column is aligned to the left, the
// others, usually numbers, to the right.
type Table struct {
	Columns []string
	rows    [][]string
}

// Add appends a row. Missing cells are empty.
func (t *Table) Add(cells ...string) { t.rows = append(t.rows, cells) }

// String is the table in Markdown, padded so that it reads well as text too.
func (t *Table) String() string {
	widths := make([]int, len(t.Columns))
	for _, row := range append([][]string{t.Columns}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell), 2)
		}
	}
	var b strings.Builder
	line := func(row []string) {
		for i, width := range widths {
			cell := ""
			if i < len(row) {
				cell = row[i]
			}
			padding := strings.Repeat(" ", width-utf8.RuneCountInString(cell))
			if i == 0 {
				b.WriteString("| " + cell + padding + " |")
			} else {
				b.WriteString(" " + padding + cell + " |")
			}
		}
		b.WriteByte('\n')
	}
	line(t.Columns)
	for i, width := range widths {
		if i == 0 {
			b.WriteString("|" + strings.Repeat("-", width+2) + "|")
		} else {
			b.WriteString(strings.Repeat("-", width+1) + ":|")
		}
	}
	b.WriteByte('\n')
	for _, row := range t.rows {
		line(row)
	}
	return b.String()
}

// Section is the part of a document that a measurement owns.
type Section struct {
	Name   string // of its markers
	Origin Origin
	Body   string // Markdown
}

// WriteTo replaces the section in the document at path, which must have its
// two markers.
func (s Section) WriteTo(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := s.replaceIn(string(old))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // G306: a document, for everybody
		return err
	}
	return nil
}

func (s Section) replaceIn(document string) (string, error) {
	begin := "<!-- " + s.Name + ": begin -->\n"
	end := "<!-- " + s.Name + ": end -->\n"
	before, rest, ok := strings.Cut(document, begin)
	if !ok {
		return "", fmt.Errorf("no line %q", strings.TrimSpace(begin))
	}
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		return "", fmt.Errorf("no line %q after its beginning", strings.TrimSpace(end))
	}
	return before + begin + s.String() + end + after, nil
}

// String is what stands between the markers.
func (s Section) String() string {
	return fmt.Sprintf("%s\n%s\n", s.Origin, strings.TrimRight(s.Body, "\n"))
}

// Origin says where figures come from.
type Origin struct {
	Time    time.Time `json:"time"`
	Commit  string    `json:"commit"`  // abbreviated; "+" appended if the tree differed from it
	Machine string    `json:"machine"` // cores, processor, kernel, Go
}

// String is one line of Markdown and an empty one.
func (o Origin) String() string {
	return fmt.Sprintf("Taken on %s at commit `%s`: %s.\n", o.Time.UTC().Format(time.DateOnly), o.Commit, o.Machine)
}

// Line is the same without Markdown.
func (o Origin) Line() string {
	return fmt.Sprintf("%s, commit %s: %s", o.Time.UTC().Format(time.DateOnly), o.Commit, o.Machine)
}
