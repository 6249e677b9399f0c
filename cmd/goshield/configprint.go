package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/goshield/goshield/internal/configdb"
	"github.com/goshield/goshield/internal/dynamic"
)

// What the config commands print: for people, or with --json for programs.

const clock = "2006-01-02 15:04:05 MST"

// versionJSON is a version for programs.
type versionJSON struct {
	Version   int64             `json:"version"` // 0: Redis has no document
	ChangedAt *time.Time        `json:"changed_at,omitempty"`
	ChangedBy string            `json:"changed_by,omitempty"`
	Source    source            `json:"source,omitempty"`
	Changes   []dynamic.Change  `json:"changes,omitempty"` // from the version before, where that is kept
	Document  *dynamic.Document `json:"document,omitempty"`
	Error     string            `json:"error,omitempty"` // why the document cannot be read
}

func versionOf(e configdb.Entry) versionJSON {
	v := versionJSON{Version: e.Version, ChangedBy: e.By}
	if !e.At.IsZero() {
		at := e.At.UTC()
		v.ChangedAt = &at
	}
	return v
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func printYAML(out io.Writer, v any) error {
	enc := yaml.NewEncoder(out)
	enc.SetIndent(2)
	return errors.Join(enc.Encode(v), enc.Close())
}

// printDocument prints a document that `config apply` reads.
func (c *configCommand) printDocument(out io.Writer, v version) error {
	if c.json {
		j := versionOf(v.Entry)
		j.Source, j.Document = v.source, &v.doc
		return printJSON(out, j)
	}
	if v.source == fromRedis {
		fmt.Fprintf(out, "# version %d, set %s by %s\n", v.Version, v.At.Local().Format(clock), v.By)
	} else {
		fmt.Fprintf(out, "# Redis has no document: these are the %s\n", v.source)
	}
	return printYAML(out, v.doc)
}

// printValue prints what is at one key.
func (c *configCommand) printValue(out io.Writer, value any) error {
	if c.json {
		return printJSON(out, value)
	}
	switch text := dynamic.Text(value); {
	case strings.HasPrefix(text, "{"):
		return printYAML(out, value)
	default:
		_, err := fmt.Fprintln(out, text)
		return err
	}
}

// printChanges prints a line for each key: "-" its old value, "+" its new one.
func (c *configCommand) printChanges(out io.Writer, changes []dynamic.Change) error {
	if c.json {
		if changes == nil {
			changes = []dynamic.Change{}
		}
		return printJSON(out, changes)
	}
	if len(changes) == 0 {
		fmt.Fprintln(out, "nothing changes")
	}
	for _, ch := range changes {
		switch {
		case ch.Old == "":
			fmt.Fprintf(out, "+ %s: %s\n", ch.Path, ch.New)
		case ch.New == "":
			fmt.Fprintf(out, "- %s: %s\n", ch.Path, ch.Old)
		default:
			fmt.Fprintf(out, "  %s: %s -> %s\n", ch.Path, ch.Old, ch.New)
		}
	}
	return nil
}

// printChanged tells of a change that was made; without changes, that there was none to make.
func (c *configCommand) printChanged(out io.Writer, n int64, changes []dynamic.Change) error {
	if c.json {
		return printJSON(out, versionJSON{Version: n, Changes: changes})
	}
	if err := c.printChanges(out, changes); err != nil {
		return err
	}
	if len(changes) == 0 {
		fmt.Fprintf(out, "version %d\n", n)
		return nil
	}
	fmt.Fprintf(out, "version %d: in force within 2 s\n", n)
	return nil
}

// printHistory prints the latest version first, each with what it changed.
func (c *configCommand) printHistory(out io.Writer, entries []configdb.Entry) error {
	versions := make([]versionJSON, len(entries))
	docs := make([]*dynamic.Document, len(entries))
	for i, e := range entries {
		versions[i] = versionOf(e)
		doc, err := e.Document()
		if err != nil {
			versions[i].Error = err.Error()
			continue
		}
		docs[i], versions[i].Document = &doc, &doc
	}
	for i := range len(entries) - 1 {
		if docs[i] != nil && docs[i+1] != nil {
			versions[i].Changes = dynamic.Diff(*docs[i+1], *docs[i])
		}
	}
	if c.json {
		return printJSON(out, versions)
	}
	if len(entries) == 0 {
		_, err := fmt.Fprintln(out, "Redis has no document: gateways go by their defaults")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VERSION\tSET\tBY\tCHANGES")
	for i, v := range versions {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", v.Version, entries[i].At.Local().Format(clock), v.ChangedBy, summary(v))
	}
	return w.Flush()
}

// summary is what a version changed, on part of a line.
func summary(v versionJSON) string {
	const most = 3
	if v.Error != "" {
		return "cannot be read: " + v.Error
	}
	var paths []string
	for i, ch := range v.Changes {
		if i == most {
			paths = append(paths, fmt.Sprintf("%d more", len(v.Changes)-most))
			break
		}
		paths = append(paths, ch.Path)
	}
	return strings.Join(paths, ", ")
}

// parseVersion reads a version's number.
func parseVersion(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, usagef("%q is no version: `goshield config history` lists them", text)
	}
	return n, nil
}
