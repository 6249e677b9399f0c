// Command goshield is GoShield's one tool: it runs the whole of it on one
// machine, plays devices, measures, changes the configuration of what runs, and makes certificates.
//
//	goshield up                                   # everything in one process
//	goshield send --mac 00:1a:2b:3c:4d:5e '{"hello":"world"}'
//	goshield bench --devices 1000 --rate 5000 --duration 30s
//	goshield config set heartbeat.interval 30s
//
// It ends with 0, with 1 when what it was to do failed, and with 2 when it was
// told something that it cannot make sense of.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/redisdb"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	redisdb.LogTo(zap.NewNop()) // of what its library has to say, all that matters comes back as an error
	os.Exit(run(os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

// run is main with all it takes from the process; it returns the exit code.
func run(args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand(getenv)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "goshield: %v\n", err)
	if errors.As(err, new(usageError)) {
		return exitUsage
	}
	return exitFailed
}

func newRootCommand(getenv func(string) string) *cobra.Command {
	root := &cobra.Command{
		Use:   "goshield",
		Short: "A front door for fleets of devices on long-lived TCP connections",
		Long: `GoShield balances, authenticates, limits and keeps alive the long-lived
connections of a fleet of devices, and speaks to the services behind.

"goshield up" runs all of it on this machine; the other commands find it by the
file context.json that it writes (--context, or GOSHIELD_CONTEXT, names another).`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },

		SuggestionsMinimumDistance: 2,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w\nTry %q.", err, cmd.CommandPath()+" --help")
	})
	root.AddCommand(
		newUpCommand(),
		newSendCommand(getenv),
		newBenchCommand(getenv),
		newConformanceCommand(getenv),
		newConfigCommand(getenv),
		newDeviceCommand(getenv),
		newCertsCommand(),
		newInitCommand(),
		newVersionCommand(),
	)
	return root
}

// usageError is an error of whoever typed the command.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// noArgs wants no arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usagef("unexpected argument %q\nTry %q.", args[0], cmd.CommandPath()+" --help")
}

// noSuchCommand wants no arguments of the root: they would be commands that there are not.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	try := cmd.CommandPath() + " --help"
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		try = cmd.CommandPath() + " " + similar[0]
	}
	return usagef("unknown command %q\nTry %q.", args[0], try)
}

// atMost wants no more than so many arguments.
func atMost(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= n {
			return nil
		}
		return usagef("unexpected argument %q\nTry %q.", args[n], cmd.CommandPath()+" --help")
	}
}

// exactly wants arguments of these names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing\nTry %q.", names[len(args)], cmd.CommandPath()+" --help")
		}
		return atMost(len(names))(cmd, args)
	}
}
