package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/configdb"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/services/gateway/registry"
)

// configLimit is how long one config command may take.
const configLimit = 15 * time.Second

// configCommand is what the config commands share.
type configCommand struct {
	redis redisFlags
	json  bool
	by    string

	rdb redis.UniversalClient // while a command runs
}

func newConfigCommand(getenv func(string) string) *cobra.Command {
	c := &configCommand{redis: redisFlags{getenv: getenv}}
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show and change the configuration of what runs",
		Long: `Show and change the dynamic document: what concerns devices and routes, one
document in Redis for all gateways. A change is checked first, is a new version,
and is in force everywhere within 2 s, without touching a connection. The last 20
versions are kept.

Redis is the one of "goshield up" (context.json), or the one that --config,
GOSHIELD_REDIS_ADDRESSES and the other variables of services, or --redis name.
docs/CONFIGURATION.md lists the document's keys.`,
		Example: `  goshield config get
  goshield config set heartbeat.interval 30s
  goshield config set services.echo.endpoints 10.0.0.5:9000,10.0.0.6:9000
  goshield config get > fleet.yaml; $EDITOR fleet.yaml; goshield config apply fleet.yaml
  goshield config rollback 7`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.redis.addFlags(cmd.PersistentFlags())
	cmd.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON")
	cmd.AddCommand(c.newGet(), c.newSet(), c.newApply(), c.newHistory(), c.newRollback())
	return cmd
}

func (c *configCommand) newGet() *cobra.Command {
	return &cobra.Command{
		Use:   "get [PATH]",
		Short: "Show the document, or what is at PATH",
		Example: `  goshield config get
  goshield config get services.echo
  goshield config get heartbeat.interval --json`,
		Args: atMost(1),
		RunE: c.withStore(func(ctx context.Context, store *configdb.Store, args []string, out io.Writer) error {
			v, err := inForce(ctx, store)
			if err == nil {
				err = v.readable()
			}
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return c.printDocument(out, v)
			}
			value, err := v.doc.Get(args[0])
			if err != nil {
				return usageError{err}
			}
			return c.printValue(out, value)
		}),
	}
}

func (c *configCommand) newSet() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set PATH VALUE",
		Short: "Change what is at PATH",
		Long: `Change what is at PATH. VALUE is plain (30s, 100, true, a list split at commas),
or YAML or JSON for an object. A service is replaced as a whole; "null" removes it.`,
		Example: `  goshield config set heartbeat.interval 30s
  goshield config set services.echo.limit '{"rate": 10000, "burst": 20000}'
  goshield config set services.pay '{"dns": "pay:9000", "idempotent": true}'
  goshield config set services.pay null`,
		Args: exactly("PATH", "VALUE"),
	}
	cmd.RunE = c.withStore(func(ctx context.Context, store *configdb.Store, args []string, out io.Writer) error {
		return c.change(ctx, store, out, cmd.ErrOrStderr(), func(v version) (dynamic.Document, error) {
			if err := v.readable(); err != nil {
				return dynamic.Document{}, err
			}
			doc, err := v.doc.Set(args[0], args[1])
			if err != nil {
				return doc, usageError{err}
			}
			return doc, nil
		})
	})
	c.addBy(cmd)
	return cmd
}

func (c *configCommand) newApply() *cobra.Command {
	dryRun := false
	cmd := &cobra.Command{
		Use:   "apply FILE",
		Short: "Replace the document by a file's",
		Long: `Replace the document by the one in FILE, YAML or JSON ("-" is standard input).
What the file leaves out takes its built-in default. What changes is shown; with
--dry-run nothing else is done.`,
		Example: "  goshield config apply fleet.yaml --dry-run",
		Args:    exactly("FILE"),
	}
	cmd.RunE = c.withStore(func(ctx context.Context, store *configdb.Store, args []string, out io.Writer) error {
		doc, err := readFile(args[0], cmd.InOrStdin())
		if err != nil {
			return usageError{err}
		}
		if dryRun {
			v, err := inForce(ctx, store)
			if err != nil {
				return err
			}
			return c.printChanges(out, dynamic.Diff(v.doc, doc))
		}
		return c.change(ctx, store, out, cmd.ErrOrStderr(), func(version) (dynamic.Document, error) { return doc, nil })
	})
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would change")
	c.addBy(cmd)
	return cmd
}

func (c *configCommand) newHistory() *cobra.Command {
	return &cobra.Command{
		Use:   "history",
		Short: "Show the versions that are kept",
		Args:  noArgs,
		RunE: c.withStore(func(ctx context.Context, store *configdb.Store, _ []string, out io.Writer) error {
			entries, err := store.History(ctx)
			if err != nil {
				return err
			}
			return c.printHistory(out, entries)
		}),
	}
}

func (c *configCommand) newRollback() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback VERSION",
		Short: "Go back to a version: what it says becomes the latest one",
		Args:  exactly("VERSION"),
	}
	cmd.RunE = c.withStore(func(ctx context.Context, store *configdb.Store, args []string, out io.Writer) error {
		n, err := parseVersion(args[0])
		if err != nil {
			return err
		}
		e, err := store.Version(ctx, n)
		if errors.Is(err, configdb.ErrNoVersion) {
			return fmt.Errorf("%w; `goshield config history` lists them", err)
		}
		if err != nil {
			return err
		}
		doc, err := e.Document()
		if err != nil {
			return fmt.Errorf("version %d cannot be used: %w", n, err)
		}
		return c.change(ctx, store, out, cmd.ErrOrStderr(), func(version) (dynamic.Document, error) { return doc, nil })
	})
	c.addBy(cmd)
	return cmd
}

func (c *configCommand) addBy(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.by, "by", "", "`name` for the history (default: user@host)")
}

// withStore runs a command on the document in Redis.
func (c *configCommand) withStore(do func(ctx context.Context, store *configdb.Store, args []string, out io.Writer) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		ctx, cancel := context.WithTimeout(cmd.Context(), configLimit)
		defer cancel()
		rdb, err := c.redis.open(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rdb.Close()) }()
		c.rdb = rdb
		return do(ctx, configdb.New(rdb), args, cmd.OutOrStdout())
	}
}

// source tells where a document comes from.
type source string

const (
	fromRedis    source = "redis"
	fromGateways source = "gateways' defaults"
	fromBuiltIn  source = "built-in defaults"
)

// version is a document and what is known about it.
type version struct {
	configdb.Entry // zero, unless it is from Redis
	source         source
	doc            dynamic.Document
	broken         error // why what is in Redis is no document; doc is the built-in default then
}

func (v version) readable() error {
	if v.broken == nil {
		return nil
	}
	return fmt.Errorf("what is in Redis (version %d) cannot be used, gateways keep the one before: %w\n"+
		"  `goshield config rollback` and `goshield config apply` replace it", v.Version, v.broken)
}

// inForce is the document that gateways go by.
func inForce(ctx context.Context, store *configdb.Store) (version, error) {
	e, err := store.Current(ctx)
	switch {
	case err == nil:
		v := version{Entry: e, source: fromRedis}
		if v.doc, v.broken = e.Document(); v.broken != nil {
			v.doc = dynamic.Default()
		}
		return v, nil
	case !errors.Is(err, configdb.ErrNone):
		return version{}, err
	}
	doc, err := store.Defaults(ctx)
	if errors.Is(err, configdb.ErrNone) {
		return version{source: fromBuiltIn, doc: dynamic.Default()}, nil
	}
	return version{source: fromGateways, doc: doc}, err
}

// attempts is how often a change is tried anew when somebody else was faster.
const attempts = 5

// change replaces the document by what next makes of it, and shows the difference.
func (c *configCommand) change(ctx context.Context, store *configdb.Store, out, notes io.Writer, next func(version) (dynamic.Document, error)) error {
	for range attempts {
		before, err := inForce(ctx, store)
		if err != nil {
			return err
		}
		doc, err := next(before)
		if err != nil {
			return err
		}
		changes := dynamic.Diff(before.doc, doc)
		if len(changes) == 0 && before.source == fromRedis && before.broken == nil {
			return c.printChanged(out, before.Version, changes)
		}
		if err := c.servable(ctx, before.doc, doc); err != nil {
			return err
		}
		entry, err := store.Put(ctx, doc, before.Version, c.author())
		if errors.Is(err, configdb.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		if before.source == fromBuiltIn {
			fmt.Fprintln(notes, "note: Redis had no document, and no gateway has told its defaults: this one began with the built-in ones")
		}
		return c.printChanged(out, entry.Version, changes)
	}
	return fmt.Errorf("%w, %d times in a row: try again", configdb.ErrConflict, attempts)
}

// servable refuses a change that gateways would refuse for want of something, while auth-service, which needs nothing
// for it, goes by it: no device could enrol.
func (c *configCommand) servable(ctx context.Context, before, after dynamic.Document) error {
	if after.Enrolment != dynamic.EnrolMTLS || before.Enrolment == dynamic.EnrolMTLS {
		return nil
	}
	nodes, err := registry.Nodes(ctx, c.rdb)
	if err != nil {
		return fmt.Errorf("see whether the gateways can check certificates: %w", err)
	}
	var lacking []string
	for _, n := range nodes {
		if n.NoClientCA {
			lacking = append(lacking, n.Name)
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	return config.Errorf("enrolment", "mtls needs tls.client_ca at every gateway, to check certificates with; there is none at %s", strings.Join(lacking, ", "))
}

// author is who the history names.
func (c *configCommand) author() string {
	if c.by != "" {
		return c.by
	}
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// readFile reads a document; "-" is standard input.
func readFile(path string, stdin io.Reader) (dynamic.Document, error) {
	if path == "-" {
		doc, err := dynamic.Read(stdin)
		if err != nil {
			err = fmt.Errorf("standard input: %w", err)
		}
		return doc, err
	}
	f, err := os.Open(path)
	if err != nil {
		return dynamic.Document{}, err
	}
	defer f.Close()
	doc, err := dynamic.Read(f)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return doc, err
}
