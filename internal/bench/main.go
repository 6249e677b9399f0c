//go:build linux

// The bench program measures GoShield's parts side by side with the programs
// its users would choose between, in one run, on one machine:
//
//	scripts/bench relay          CPU per round trip through a load balancer
//	scripts/bench idle           memory per idle connection
//	scripts/bench connect        CPU per connection opened and closed
//	scripts/bench bulk           MB per second
//	scripts/bench gateway        CPU per request of a device
//	scripts/bench idle-tls       memory per idle TLS device
//	scripts/bench handshake      CPU per TLS handshake
//	scripts/bench auth           operations on tokens per second
//
// Every program under test, the echo server behind it and the clients in front
// of it are processes of their own; what is read is the program's own CPU time
// and memory, from /proc. Rounds are interleaved (A B C A B C), so that a
// change of the machine's mood meets all, and ratios are taken round by round.
//
// A mode is one entry of the table in modes: it starts contestants and load
// through a rig and returns a report. Linux only.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/goshield/goshield/internal/figures"
)

const docs = "docs/benchmarks.md"

// A mode is one kind of benchmark.
type mode struct {
	name     string
	summary  string
	defaults func(quick bool) options
	run      func(ctx context.Context, r *rig, opt options) (*report, error)
}

var modes = []mode{
	{"relay", "CPU per 64-byte round trip, round trips per second, latency", relayDefaults, relay},
	{"idle", "memory and descriptors per idle connection", idleDefaults, idle},
	{"connect", "CPU per connection opened, one round trip, closed", connectDefaults, connect},
	{"bulk", "MB per second", bulkDefaults, bulk},
	{"gateway", "CPU per request of a device, requests per second, latency", gatewayDefaults, gateway},
	{"idle-tls", "memory per idle TLS device, waking one", idleTLSDefaults, idleTLS},
	{"handshake", "CPU per TLS handshake, full and resumed", handshakeDefaults, handshake},
	{"auth", "operations on tokens per second, latency, memory in Redis", authDefaults, auth},
}

func main() {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			os.Exit(runRole(role, os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		}
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	os.Exit(code)
}

// run returns the exit code: 2 for arguments that cannot be used.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	m, opt, out, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	if err := bench(ctx, m, opt, out, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "bench %s: %v\n", m.name, err)
		return 1
	}
	return 0
}

// output says where a report goes, apart from standard output.
type output struct {
	json  string // file; "" for none
	write bool   // into docs
}

func parse(args []string, stderr io.Writer) (m mode, opt options, out output, err error) {
	usage := func() {
		fmt.Fprintln(stderr, "usage: bench MODE [flags]")
		for _, m := range modes {
			fmt.Fprintf(stderr, "  %-9s %s\n", m.name, m.summary)
		}
		fmt.Fprintln(stderr, "bench MODE -help tells the flags")
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		usage()
		return m, opt, out, errors.New("name a mode")
	}
	m, ok := modeByName(args[0])
	if !ok {
		usage()
		return m, opt, out, fmt.Errorf("no mode %q", args[0])
	}
	quick := false
	for _, arg := range args[1:] {
		quick = quick || arg == "-quick" || arg == "--quick"
	}
	opt = m.defaults(quick)
	flags := flag.NewFlagSet("bench "+m.name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Bool("quick", quick, "smaller sizes and one round: to try it, not to believe it")
	flags.StringVar(&out.json, "json", "", "write every round's figures to this `file`")
	flags.BoolVar(&out.write, "write-docs", false, "put the figures into "+docs)
	opt.register(flags)
	if err := flags.Parse(args[1:]); err != nil {
		return m, opt, out, err
	}
	if flags.NArg() > 0 {
		return m, opt, out, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return m, opt, out, opt.validate()
}

func modeByName(name string) (mode, bool) {
	for _, m := range modes {
		if m.name == name {
			return m, true
		}
	}
	return mode{}, false
}

// bench runs one mode and hands its report out.
func bench(ctx context.Context, m mode, opt options, out output, stdout, stderr io.Writer) error {
	origin := figures.Here(ctx)
	r, err := newRig(stderr)
	if err != nil {
		return err
	}
	defer r.close()
	rep, err := m.run(ctx, r, opt)
	if err != nil {
		return err
	}
	rep.Mode, rep.Origin = m.name, origin
	section := figures.Section{Name: "bench " + m.name, Origin: origin, Body: rep.text()}
	fmt.Fprint(stdout, section)
	if out.json != "" {
		text, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(out.json, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if out.write {
		return errors.Join(section.WriteTo(docs), os.WriteFile(plotFile(m.name), []byte(rep.plot().SVG()), 0o644))
	}
	return nil
}

// plotFile is the plot of a mode, beside docs.
func plotFile(mode string) string { return filepath.Join(filepath.Dir(docs), "bench-"+mode+".svg") }
