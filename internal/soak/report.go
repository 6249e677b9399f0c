package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/goshield/goshield/internal/figures"
)

// event is a line of `go test -json`: see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	Test       string // empty for a package's own
	Elapsed    float64
	Output     string
	Key, Value string
}

// worthTelling is how long a test that measured nothing must have run to be
// listed.
const worthTelling = 10 * time.Second

// report is what came out of a run of tests.
type report struct {
	passed, failed int // tests, subtests included
	tests          []*test
}

// test is one test as far as it has been read.
type test struct {
	pkg, name string
	took      time.Duration
	output    []string
	figures   []string
}

// read reads all events and writes to out what go test would have: the lines
// of packages, and those of tests that failed.
func read(in io.Reader, out io.Writer) (*report, error) {
	var r report
	running := map[[2]string]*test{}
	dec := json.NewDecoder(bufio.NewReader(in))
	for {
		var e event
		if err := dec.Decode(&e); err == io.EOF {
			return &r, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading go test -json: %w", err)
		}
		if e.Test == "" {
			if e.Action == "fail" {
				r.failed++ // a package may fail without a test of it
			}
			if _, err := io.WriteString(out, e.Output); err != nil {
				return nil, err
			}
			continue
		}
		key := [2]string{e.Package, e.Test}
		t := running[key]
		if t == nil {
			t = &test{pkg: e.Package, name: e.Test}
			running[key] = t
		}
		switch e.Action {
		case "output":
			t.output = append(t.output, e.Output)
		case "attr":
			t.figures = append(t.figures, e.Key+": "+e.Value)
		case "pass", "skip", "fail":
			t.took = time.Duration(e.Elapsed * float64(time.Second))
			delete(running, key)
			if err := r.end(t, e.Action, out); err != nil {
				return nil, err
			}
		}
	}
}

func (r *report) end(t *test, action string, out io.Writer) error {
	switch action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		for _, line := range t.output {
			if _, err := io.WriteString(out, line); err != nil {
				return err
			}
		}
	}
	if len(t.figures) > 0 || t.took >= worthTelling {
		r.tests = append(r.tests, t)
	}
	return nil
}

// body is the figures in Markdown.
func (r *report) body() string {
	table := figures.Table{Columns: []string{"test", "took", "measured"}}
	slices.SortFunc(r.tests, func(a, b *test) int {
		return strings.Compare(a.pkg+" "+a.name, b.pkg+" "+b.name)
	})
	for _, t := range r.tests {
		name := path.Base(t.pkg) + " " + t.name
		table.Add(name, t.took.Round(time.Second/10).String(), strings.Join(t.figures, "; "))
	}
	return fmt.Sprintf("%d tests passed, none failed. Listed are those that measured something or ran for %s.\n\n%s",
		r.passed, worthTelling, table.String())
}
