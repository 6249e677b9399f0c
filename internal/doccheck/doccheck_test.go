package doccheck

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// root is the repository's, from here.
const root = "../.."

// files are the repository's files with a suffix, hidden directories and test data left out.
func files(t *testing.T, suffix string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && (name == "testdata" || strings.HasPrefix(name, ".") && path != root) {
			return filepath.SkipDir
		}
		if strings.HasSuffix(name, suffix) {
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatalf("no %s in the repository", suffix)
	}
	return paths
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMetricsAreDocumented(t *testing.T) {
	quoted := regexp.MustCompile(`"(goshield_[a-z0-9_]+)"`)
	registered := map[string]bool{}
	for _, path := range files(t, ".go") {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(read(t, path), -1) {
			registered[m[1]] = true
		}
	}
	row := regexp.MustCompile("(?m)^\\| `(goshield_[a-z0-9_]+)` \\|")
	documented := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(read(t, filepath.Join(root, "docs/ARCHITECTURE.md")), -1) {
		documented[m[1]] = true
	}
	got, want := slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(registered))
	if !slices.Equal(got, want) {
		t.Errorf("metrics in docs/ARCHITECTURE.md:\n got %q\nwant %q", got, want)
	}
}

// Every test that docs/reliability.md names exists, and every row of it names one.
func TestReliabilityNamesTests(t *testing.T) {
	row := regexp.MustCompile(`(?m)^\| ([0-9]+) \|.*\| ([^|]*) \|$`)
	named := regexp.MustCompile("^`([a-z0-9/-]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`$")
	rows := row.FindAllStringSubmatch(read(t, filepath.Join(root, "docs/reliability.md")), -1)
	if len(rows) == 0 {
		t.Fatal("docs/reliability.md has no rows")
	}
	last := 0
	for _, r := range rows {
		n, err := strconv.Atoi(r[1])
		if err != nil || n <= last {
			t.Errorf("row %s comes after row %d", r[1], last)
		}
		last = n
		names := strings.Fields(r[2])
		if len(names) == 0 {
			t.Errorf("row %d names no test", n)
		}
		for _, name := range names {
			m := named.FindStringSubmatch(name)
			if m == nil {
				t.Errorf("row %d: %s is not the name of a test", n, name)
			} else if !hasTest(t, m[1], m[2]) {
				t.Errorf("row %d: there is no %s in %s", n, m[2], m[1])
			}
		}
	}
}

// hasTest reports whether a package has a test of that name.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(paths, func(path string) bool {
		return strings.Contains(read(t, path), "\nfunc "+name+"(")
	})
}

// link is one link or image of Markdown, without its title.
var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for _, path := range files(t, ".md") {
		for _, m := range link.FindAllStringSubmatch(read(t, path), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := path
			if target != "" {
				file = filepath.Join(filepath.Dir(path), target)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: a link to %q: %v", path, m[1], err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, file)), anchor) {
				t.Errorf("%s: a link to %q: no such heading", path, m[1])
			}
		}
	}
}

// anchors are the names that headings get on GitHub: lower case, without punctuation, spaces as dashes.
func anchors(text string) []string {
	var names []string
	punctuation := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	for line := range strings.Lines(text) {
		if heading, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			name := punctuation.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
			names = append(names, strings.ReplaceAll(name, " ", "-"))
		}
	}
	return names
}
