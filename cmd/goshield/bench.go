package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/sdk/client"
)

// spareFiles is how many descriptors a run needs beside its devices'.
const spareFiles = 64

// benchFlags are the flags of `goshield bench`.
type benchFlags struct {
	target target
	run    bench.Config
	mac    string
	asJSON bool
}

func newBenchCommand(getenv func(string) string) *cobra.Command {
	f := benchFlags{target: target{getenv: getenv}}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a gateway with a fleet of simulated devices",
		Long: `Connect many devices over real TLS, then send requests at a constant rate,
spread over all of them, and check that each answer is its own request's.

The loop is open: a request is sent when it is due, whether or not earlier ones
were answered, and its latency counts from then. So a stall of the gateway shows
in full (no coordinated omission). How late the generator was itself stands
under "lag": if that is large, this machine was the limit.

Ends with 1 if any device could not connect or any request failed.`,
		Example: `  goshield bench --devices 1000 --rate 5000 --duration 30s
  goshield bench --addr gateway.example.org:8443 --ca ca.pem --devices 10000 --rate 0 --duration 10m`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBench(cmd.Context(), &f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	f.target.addFlags(flags)
	f.target.addVersionFlag(flags)
	flags.IntVar(&f.run.Devices, "devices", 1000, "how many devices")
	flags.Float64Var(&f.run.Rate, "rate", 5000, "requests a second, of all devices together (0: connect only)")
	flags.DurationVar(&f.run.Duration, "duration", 30*time.Second, "how long requests are sent")
	flags.StringVar(&f.run.Service, "service", bench.DefaultService, "service to ask; it must echo")
	flags.IntVar(&f.run.Size, "size", bench.DefaultSize, "`bytes` of a body")
	flags.StringVar(&f.mac, "mac", fmt.Sprintf("%012x", uint64(bench.DefaultFirstMAC)), "MAC `address` of the first device; the others count up")
	flags.IntVar(&f.run.Connecting, "connecting", bench.DefaultConnecting, "how many devices connect at once")
	flags.DurationVar(&f.run.ConnectLimit, "connect-limit", bench.DefaultConnectLimit, "how long a device goes on trying to connect")
	flags.DurationVar(&f.run.RequestTimeout, "timeout", bench.DefaultRequestTimeout, "how long a request may take")
	flags.StringVar(&f.target.tokenDir, "token-dir", "", "keep tokens in this `directory`, so that the next run resumes (default: in memory)")
	flags.BoolVar(&f.asJSON, "json", false, "print the result as JSON")
	return cmd
}

func runBench(ctx context.Context, f *benchFlags, out, errOut io.Writer) error {
	cfg, where, err := f.config()
	if err != nil {
		return err
	}
	if err := enoughFiles(cfg.Devices); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	live := terminalOf(errOut)
	if live != nil {
		cfg.Progress = func(p bench.Progress) { fmt.Fprintf(live, "\r\x1b[K%s", progressLine(p)) }
	}
	if !f.asJSON {
		fmt.Fprintf(out, "%d devices to %s, %g requests a second for %v\n", cfg.Devices, cfg.Addr, cfg.Rate, cfg.Duration)
	}
	result, err := bench.Run(ctx, cfg)
	if live != nil {
		fmt.Fprint(live, "\r\x1b[K")
	}
	if err != nil {
		return explainDial(err, where)
	}
	if f.asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(result)
	} else {
		err = result.WriteText(out)
	}
	if err != nil {
		return err
	}
	return result.Err()
}

// config is what the flags ask for.
func (f *benchFlags) config() (cfg bench.Config, r resolved, err error) {
	cfg = f.run
	if r, err = f.target.resolve(); err != nil {
		return cfg, r, err
	}
	cfg.Addr, cfg.TLS, cfg.Version, cfg.Logger = r.addr, r.tls, f.target.version, slog.New(slog.DiscardHandler)
	if r.groupKey != nil {
		cfg.DeviceKey = r.deviceKey
	}
	switch {
	case cfg.Devices <= 0:
		return cfg, r, usagef("--devices: must be at least 1, got %d", cfg.Devices)
	case cfg.Rate < 0 || math.IsNaN(cfg.Rate) || cfg.Rate > 1e7:
		return cfg, r, usagef("--rate: must be from 0 to 10000000, got %g", cfg.Rate)
	case cfg.Duration <= 0:
		return cfg, r, usagef("--duration: must be above 0, got %v", cfg.Duration)
	case cfg.Size < 1 || cfg.Size > 16000:
		return cfg, r, usagef("--size: must be from 1 to 16000, got %d", cfg.Size)
	}
	if cfg.FirstMAC, err = parseMAC(f.mac); err != nil {
		return cfg, r, usagef("--mac: %w", err)
	}
	if f.target.tokenDir != "" {
		if cfg.TokenStore, err = client.FileStore(f.target.tokenDir); err != nil {
			return cfg, r, err
		}
	}
	return cfg, r, nil
}

// parseMAC reads an address as wire.ClientIDFromMAC does, as a number.
func parseMAC(mac string) (uint64, error) {
	digits := strings.NewReplacer(":", "", "-", "", ".", "", " ", "").Replace(mac)
	n, err := strconv.ParseUint(digits, 16, 48)
	if err != nil || len(digits) != 12 || n == 0 {
		return 0, fmt.Errorf("%q is not a MAC address: want twelve hex digits, as in 02:67:73:00:00:00", mac)
	}
	return n, nil
}

// enoughFiles says at once what would otherwise show as devices that cannot connect.
func enoughFiles(devices int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil //nolint:nilerr // then it has to show
	}
	if need := uint64(devices) + spareFiles; need > limit.Cur {
		return fmt.Errorf("%d devices need %d open files, and this process may have %d: raise it with `ulimit -n %d`", devices, need, limit.Cur, need)
	}
	return nil
}

// terminalOf returns w if it is a terminal, else nil.
func terminalOf(w any) *os.File {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

func progressLine(p bench.Progress) string {
	if p.Phase == "connecting" {
		return fmt.Sprintf("%3.0fs  connecting  %d of %d", p.Elapsed.Seconds(), p.Online, p.Devices)
	}
	return fmt.Sprintf("%3.0fs  %-10s  %d online  %.0f answers/s  p99 %v  %d in flight  %d failed",
		p.Elapsed.Seconds(), p.Phase, p.Online, p.PerSecond, p.P99, p.Outstanding, p.Failed)
}
