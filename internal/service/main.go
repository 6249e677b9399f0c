package service

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/handover"
	"github.com/goshield/goshield/internal/logging"
)

// Version is set by the linker (-X) in release builds.
var Version = ""

// VersionString is Version, or what the Go tool recorded of the build.
func VersionString() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return "devel-" + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return "devel"
}

// Process describes a service's process to Main.
type Process[C any] struct {
	Name     string   // "lb"
	Defaults func() C // the configuration before file and environment
	// New makes the service: it opens the files that the configuration names, and starts nothing. The configuration is
	// loaded and valid. --check-config calls it, and nothing else of the service.
	New func(cfg C, deps Deps) (Server, error)
	// Admin is the admin server's address, Drain how long Shutdown may take.
	Admin func(cfg *C) string
	Drain func(cfg *C) time.Duration
}

// Main is a service's main: it returns the exit code. 0 after a clean end, 1
// after a failure, 2 for flags or a configuration that cannot be used.
func Main[C any](p Process[C]) int {
	return run(p, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
}

func run[C any](p Process[C], args, environ []string, stdout io.Writer, stderr *os.File) int {
	flags := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "read the configuration from this YAML `file`")
	check := flags.Bool("check-config", false, "check the configuration and exit")
	version := flags.Bool("version", false, "print the version and exit")
	probe := flags.String("probe", "", "GET this `URL` and exit 0 if it answers 200, else 1")
	level := zapcore.InfoLevel
	flags.TextVar(&level, "log-level", zapcore.InfoLevel, "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "%s: unexpected argument %q\n", p.Name, flags.Arg(0))
		return 2
	}
	switch {
	case *version:
		fmt.Fprintf(stdout, "%s %s %s\n", p.Name, VersionString(), runtime.Version())
		return 0
	case *probe != "":
		if err := Probe(*probe); err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", p.Name, err)
			return 1
		}
		return 0
	}
	load := func() (C, error) {
		cfg := p.Defaults()
		err := config.Load(*path, environ, &cfg)
		return cfg, err
	}
	cfg, err := load()
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", p.Name, err)
		return 2
	}
	if *check {
		if _, err := p.New(cfg, Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}); err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", p.Name, err)
			return 2
		}
		fmt.Fprintln(stdout, "configuration ok")
		return 0
	}
	log := logging.New(stderr, level)
	defer func() { _ = log.Sync() }()
	inherited, err := handover.Receive(environ)
	if err != nil {
		log.Error("cannot replace the process that started this one", zap.Error(err))
		return 1
	}
	r := running[C]{
		Process: p, load: load, log: log, inherited: inherited,
		ends: make(chan os.Signal, 2), reloads: make(chan os.Signal, 1), restarts: make(chan os.Signal, 1),
	}
	signal.Notify(r.ends, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(r.ends)
	defer signal.Stop(r.reloads)
	defer signal.Stop(r.restarts)
	if err := r.serve(cfg); err != nil {
		log.Error("ended with a fault", zap.Error(err))
		return 1
	}
	return 0
}

// NewRegistry is a registry with the metrics of the Go runtime and of the
// process.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// RegisterBuildInfo registers goshield_build_info{version}.
func RegisterBuildInfo(reg prometheus.Registerer) {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "goshield_build_info",
		Help:        "1, with the version of the running build.",
		ConstLabels: prometheus.Labels{"version": VersionString()},
	})
	g.Set(1)
	reg.MustRegister(g)
}

// Probe asks url and returns nil if it answers 200 within two seconds: the health
// check of a container image that has no shell.
func Probe(url string) error { return probe(url, 2*time.Second) }

// probe is Probe with another time to answer.
func probe(url string, timeout time.Duration) error {
	client := http.Client{Timeout: timeout}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return nil
}
