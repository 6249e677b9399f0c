// Package configtest holds configurations against what is written about them:
// docs/CONFIGURATION.md and the example files beside the services.
//
//	func TestConfigurationIsDocumented(t *testing.T) {
//		cfg := balancer.DefaultConfig()
//		configtest.Documented(t, "lb", &cfg)
//		configtest.Example(t, "../lb.yaml", &cfg)
//	}
package configtest

import (
	"encoding"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/config"
)

// file is where configurations are documented, under the repository's root.
const file = "docs/CONFIGURATION.md"

// shared are the keys that several services have and that a section of their own describes.
var shared = []string{"redis", "defaults"}

// Documented checks that the tables of a section of docs/CONFIGURATION.md (a heading of level
// two) have a row for each key of defaults, a pointer to a struct, with its type, its default and
// its environment variable, and none besides:
//
//	| `health.interval` | duration | `1s` | `GOSHIELD_HEALTH_INTERVAL` | from start to start |
//
// A default that is empty is told in words.
func Documented(t *testing.T, section string, defaults any) {
	t.Helper()
	documented(t, section, rowsOf(config.Keys(defaults)))
}

// DocumentedPart is Documented for a configuration that is one key of others, as
// redisdb.Config is "redis". Its rows' keys are without that prefix, their variables with it.
func DocumentedPart(t *testing.T, section, prefix string, defaults any) {
	t.Helper()
	keys := config.Keys(defaults)
	for i := range keys {
		keys[i].Env = config.EnvPrefix + strings.ToUpper(prefix) + "_" + strings.TrimPrefix(keys[i].Env, config.EnvPrefix)
	}
	documented(t, section, rowsOf(keys))
}

// Example checks that an example file loads: defaults is what it is read on top of.
func Example(t *testing.T, path string, defaults any) {
	t.Helper()
	if err := config.Load(path, nil, defaults); err != nil {
		t.Errorf("load the example: %v", err)
	}
}

// row is one line of a table: key, type, default, variable.
type row struct{ key, kind, def, env string }

func (r row) String() string {
	return fmt.Sprintf("| `%s` | %s | %s | %s |", r.key, r.kind, r.def, r.env)
}

// rowsOf are the rows that keys should have.
func rowsOf(keys []config.Key) []row {
	var rows []row
	told := map[string]bool{}
	for _, k := range keys {
		if part, rest, ok := strings.Cut(k.Path, "."); ok && rest != "" && isShared(part) {
			if !told[part] {
				told[part] = true
				rows = append(rows, row{key: part, kind: "object"})
			}
			continue
		}
		rows = append(rows, row{key: k.Path, kind: kindOf(k.Value.Type()), def: defaultOf(k.Value), env: "`" + k.Env + "`"})
		rows = append(rows, elements(k.Path, k.Value.Type())...)
	}
	return rows
}

func isShared(part string) bool {
	for _, s := range shared {
		if part == s {
			return true
		}
	}
	return false
}

// elements are the rows of what a list or a map holds. No variable sets them.
func elements(path string, t reflect.Type) []row {
	switch t.Kind() {
	case reflect.Slice:
		path += "[]"
	case reflect.Map:
		path += ".<name>"
	default:
		return nil
	}
	if t.Elem().Kind() != reflect.Struct {
		return nil
	}
	var rows []row
	for _, k := range config.Keys(reflect.New(t.Elem()).Interface()) {
		rows = append(rows, row{key: path + "." + k.Path, kind: kindOf(k.Value.Type())})
	}
	return rows
}

// isDuration reports whether t is a time.Duration or, as the dynamic document has it, one that reads text
// itself.
func isDuration(t reflect.Type) bool {
	text := reflect.TypeFor[encoding.TextUnmarshaler]()
	return t == reflect.TypeFor[time.Duration]() || t.Kind() == reflect.Int64 && reflect.PointerTo(t).Implements(text)
}

// kindOf names a type in the words of the file's author.
func kindOf(t reflect.Type) string {
	if isDuration(t) {
		return "duration"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true, false"
	case reflect.Int, reflect.Int64:
		return "whole number"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return "list of objects"
		}
		return "list"
	case reflect.Map:
		return "map"
	case reflect.Pointer:
		return "object"
	}
	return t.String()
}

// defaultOf is the default as a table shows it; "" for one that is told in words.
func defaultOf(v reflect.Value) string {
	if isDuration(v.Type()) {
		return "`" + short(time.Duration(v.Int())) + "`"
	}
	switch v.Kind() {
	case reflect.String:
		if host, err := os.Hostname(); err == nil && v.String() == host || v.String() == "" {
			return ""
		}
		return "`" + v.String() + "`"
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.String || v.Len() == 0 {
			return ""
		}
		return "`[\"" + strings.Join(v.Interface().([]string), `", "`) + "\"]`"
	case reflect.Map, reflect.Pointer:
		return ""
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

// short is a duration as a person writes it: 10m and not 10m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// documented reports where the rows that there are differ from those that there should be.
func documented(t *testing.T, section string, want []row) {
	t.Helper()
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(string(text), section)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for _, fault := range compare(got, want) {
		t.Errorf("%s, section %q: %s", file, section, fault)
	}
}

// compare lists the differences.
func compare(got map[string]row, want []row) (faults []string) {
	known := map[string]bool{}
	for _, w := range want {
		known[w.key] = true
		g, ok := got[w.key]
		switch {
		case !ok:
			faults = append(faults, fmt.Sprintf("no row for a key:\nwant %v", w))
		case !g.fits(w):
			faults = append(faults, fmt.Sprintf("\n got %v\nwant %v", g, w))
		}
	}
	for key := range got {
		if !known[key] {
			faults = append(faults, fmt.Sprintf("%q is no key", key))
		}
	}
	return faults
}

// fits reports whether r says what w wants. An element of a list or a map has no variable, and its default is
// not known here; one that is empty is told in words.
func (r row) fits(w row) bool {
	if r.kind != w.kind || w.env != "" && r.env != w.env {
		return false
	}
	if w.env == "" {
		return true
	}
	return r.def == w.def || w.def == "" && r.def != "" && !strings.HasPrefix(r.def, "`")
}

// read is the rows of a section's tables whose first cell is code.
func read(text, section string) (map[string]row, error) {
	_, body, ok := strings.Cut(text, "\n## "+section+"\n")
	if !ok {
		return nil, fmt.Errorf("there is no section %q", section)
	}
	body, _, _ = strings.Cut(body, "\n## ")
	rows := map[string]row{}
	for line := range strings.Lines(body) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		key := strings.Trim(cells[1], "`")
		if _, twice := rows[key]; twice {
			return nil, fmt.Errorf("section %q: %q comes twice", section, key)
		}
		rows[key] = row{key: key, kind: cells[2], def: cells[3], env: cells[4]}
	}
	return rows, nil
}

// repository is the directory above the test's that has the documentation.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no %s above the test's directory", file)
		}
		dir = parent
	}
}
