package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/cmd/goshield/stack"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/logging"
	"github.com/goshield/goshield/internal/redisdb"
)

// drainLimit is how long `up` may take to end after the first Ctrl-C.
const drainLimit = 15 * time.Second

// upFlags are the flags of `goshield up`.
type upFlags struct {
	stack     stack.Config
	defaults  string
	readyFile string
	logLevel  zapcore.Level
}

func newUpCommand() *cobra.Command {
	f := upFlags{logLevel: zapcore.WarnLevel}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything on this machine in one process",
		Long: `Run load balancer, gateways, auth-service, echo backends and an embedded Redis
in one process: the very packages that their own processes run.

Certificates of a development CA and the secrets that the parts share are made
under --data-dir and kept for the next time. The embedded Redis forgets
everything when it ends: devices then enrol again.

With --redis, a document that "goshield config" has left there counts, and not
--defaults. Where it sends an echo service to backends of this machine that are
gone, as those of an earlier run are, it is given the new ones.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runUp(cmd.Context(), f, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	c := &f.stack
	flags.StringVar(&c.Listen, "listen", "127.0.0.1:8443", "`address` for devices (TLS)")
	flags.StringVar(&c.WebSocket, "websocket", "127.0.0.1:8444", "`address` for devices by WebSocket over TLS")
	flags.StringVar(&c.MQTT, "mqtt", "127.0.0.1:8883", "`address` for devices that speak MQTT over TLS")
	flags.StringVar(&c.Admin, "admin", "127.0.0.1:9090", "`address` of metrics, health and the admin API")
	flags.StringVar(&c.Push, "push", "127.0.0.1:9400", "`address` of the push API")
	flags.IntVar(&c.Gateways, "gateways", 2, "how many gateways")
	flags.IntVar(&c.Backends, "backends", 3, "how many echo backends")
	flags.StringVar(&c.DataDir, "data-dir", defaultDataDir, "`directory` of certificates, secrets and context.json")
	flags.StringSliceVar(&c.Redis, "redis", nil, "Redis servers, `host:port[,host:port…]`, instead of the embedded one")
	flags.StringVar(&f.defaults, "defaults", "", "YAML or JSON `file` with dynamic configuration (docs/CONFIGURATION.md)")
	flags.StringVar(&f.readyFile, "ready-file", "", "write this `file` when the first device could connect")
	flags.TextVar(&f.logLevel, "log-level", zapcore.WarnLevel, "debug, info, warn or error")
	flags.Float64Var(&c.PerIP.ConnectionsPerSecond, "per-ip-rate", 0, "new connections a second from one address (0: no limit)")
	flags.IntVar(&c.PerIP.MaxConnections, "per-ip-connections", 0, "connections at once from one address (0: no limit)")
	return cmd
}

// runUp runs the stack until a signal ends it.
func runUp(ctx context.Context, f upFlags, out io.Writer) (err error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	f.stack.Log = logging.New(os.Stderr, f.logLevel)
	f.stack.Rebalance = true
	if f.stack.Document, err = readDocument(f.defaults); err != nil {
		return err
	}
	redisdb.LogTo(f.stack.Log.Named("redis"))
	if f.readyFile != "" { // one of an earlier run would tell whoever waits for it a lie
		if err := os.Remove(f.readyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("--ready-file: %w", err)
		}
	}
	s, err := startStack(f.stack, signals)
	if err != nil {
		return nameRedis(err, f.stack.Redis)
	}
	if err := announce(s, f, out); err != nil {
		s.Kill()
		return err
	}
	select {
	case <-signals:
	case <-ctx.Done():
	}
	fmt.Fprintln(out, "draining; Ctrl-C again ends at once")
	return drain(s, signals)
}

// startStack starts the stack, unless a signal comes first: then the process is to end at once.
func startStack(cfg stack.Config, signals <-chan os.Signal) (*stack.Stack, error) {
	type result struct {
		stack *stack.Stack
		err   error
	}
	started := make(chan result, 1)
	go func() { // ends with Start, or with the process
		s, err := stack.Start(cfg)
		started <- result{s, err}
	}()
	select {
	case r := <-started:
		return r.stack, r.err
	case <-signals:
		return nil, errors.New("ended by a signal before it was ready")
	}
}

// nameRedis names the flag where the Redis it gave cannot be used.
func nameRedis(err error, addresses []string) error {
	if ce := (*config.Error)(nil); errors.As(err, &ce) && ce.Key == "redis.addresses" && len(addresses) > 0 {
		return fmt.Errorf("--redis %s: %w", strings.Join(addresses, ","), ce.Err)
	}
	return err
}

// drain ends the stack, at once if another signal comes.
func drain(s *stack.Stack, signals <-chan os.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(ctx) }() // ends with the drain, or with the process
	select {
	case err := <-ended:
		return err
	case <-signals:
		return errors.New("ended at once by a second signal")
	}
}

// readDocument reads the dynamic configuration to start with. The services
// check its values.
func readDocument(path string) (dynamic.Document, error) {
	doc := dynamic.Default()
	if path == "" {
		return doc, nil
	}
	r, err := os.Open(path)
	if err != nil {
		return doc, fmt.Errorf("--defaults: %w", err)
	}
	defer r.Close()
	if err := config.Decode(r, &doc); err != nil {
		return doc, fmt.Errorf("--defaults %s: %w", path, err)
	}
	return doc, nil
}

// announce writes context.json, says where everything listens, and then that
// it is ready.
func announce(s *stack.Stack, f upFlags, out io.Writer) error {
	dir, err := filepath.Abs(f.stack.DataDir)
	if err != nil {
		return err
	}
	c := Context{
		Addr:            s.Addr(),
		WebSocket:       s.WebSocketAddr(),
		MQTT:            s.MQTTAddr(),
		Admin:           s.AdminAddr(),
		Push:            s.PushAddr(),
		Auth:            s.AuthAddr(),
		Redis:           s.RedisAddrs(),
		CA:              filepath.Join(dir, "ca.pem"),
		DataDir:         dir,
		PushSecretFile:  filepath.Join(dir, "secrets", "push"),
		AdminSecretFile: filepath.Join(dir, "secrets", "admin"),

		AuthAdminSecretFile: filepath.Join(dir, "secrets", "admin"),
	}
	if err := c.Save(filepath.Join(dir, contextFile)); err != nil {
		return err
	}
	redis := strings.Join(c.Redis, ",")
	if len(f.stack.Redis) == 0 {
		redis += "  (embedded: forgets everything at the end)"
	}
	redis += documentFound(s.Found(), f.defaults)
	hint := contextHint(f.stack.DataDir)
	fmt.Fprintf(out, `GoShield on this machine: %d gateways, %d backends
  devices     %s  (TLS)
  websocket   wss://%s/device  (https://%s/ makes a browser a device)
  mqtt        %s  (TLS)
  admin       http://%s  (/status /metrics /readyz /api/upstreams)
  push API    http://%s
  redis       %s
  CA          %s

Try, in another terminal:
  go run ./cmd/goshield send --mac 00:1a:2b:3c:4d:5e --service echo '{"hello":"world"}'%s
  go run ./cmd/goshield config set heartbeat.interval 30s%s

`, f.stack.Gateways, f.stack.Backends, c.Addr, c.WebSocket, c.WebSocket, c.MQTT, c.Admin, c.Push, redis, c.CA, hint, hint)
	if f.readyFile != "" {
		if err := os.WriteFile(f.readyFile, []byte(c.Addr+"\n"), 0o644); err != nil { //nolint:gosec // an address, for whoever waits for it
			return fmt.Errorf("--ready-file: %w", err)
		}
	}
	fmt.Fprintln(out, "ready: Ctrl-C ends it")
	return nil
}

// documentFound tells, on a line of its own, what counts if there is a document in Redis.
func documentFound(d stack.Found, defaults string) string {
	if d.Version == 0 {
		return ""
	}
	text := fmt.Sprintf("\n  rules       version %d of the document in Redis", d.Version)
	if defaults != "" {
		text += "; --defaults does not count while there is one"
	}
	if len(d.Mended) > 0 {
		text += "\n              (its endpoints of " + strings.Join(d.Mended, ", ") + " were gone: it has this run's now)"
	}
	return text
}

// contextHint is the flag that send needs when context.json is not where it
// looks by itself.
func contextHint(dataDir string) string {
	if dataDir == defaultDataDir {
		return ""
	}
	return " --context " + filepath.Join(dataDir, contextFile)
}
