// The soak program reads `go test -json` from its standard input, prints what
// go test would have printed without -json, and keeps what long tests
// measured:
//
//	GOSHIELD_TEST_LONG=1 go test -json work | go run ./internal/soak --write-docs docs/soak.md
//
// A test says what it measured with testing.T's Attr: the key is the figure's
// name, without spaces, the value comes with its unit.
//
//	t.Attr("devices_locked_out", "0 of 60000")
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/goshield/goshield/internal/figures"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is 0 if every test passed and was recorded.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.SetOutput(stderr)
	document := flags.String("write-docs", "", "put the figures into this `file`, between its markers")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	r, err := read(stdin, stdout)
	if err != nil {
		fmt.Fprintln(stderr, "soak:", err)
		return 1
	}
	if r.failed > 0 || r.passed == 0 {
		fmt.Fprintf(stderr, "soak: %d tests passed, %d failed: no figures are kept\n", r.passed, r.failed)
		return 1
	}
	section := figures.Section{Name: "soak", Origin: figures.Here(context.Background()), Body: r.body()}
	if *document == "" {
		fmt.Fprint(stdout, section)
		return 0
	}
	if err := section.WriteTo(*document); err != nil {
		fmt.Fprintln(stderr, "soak:", err)
		return 1
	}
	return 0
}
