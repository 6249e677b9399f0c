package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/goshield/goshield/cmd/goshield/conformance"
	"github.com/goshield/goshield/sdk/wire"
)

// conformanceFlags are the flags of `goshield conformance`.
type conformanceFlags struct {
	target      target
	run         conformance.Config
	mac         string
	noBinding   bool
	shed        []string
	adminSecret string
	asJSON      bool
}

func newConformanceCommand(getenv func(string) string) *cobra.Command {
	f := conformanceFlags{target: target{getenv: getenv}}
	cmd := &cobra.Command{
		Use:   "conformance",
		Short: "Hold a gateway against the rules of the device protocol",
		Long: `Play devices that keep and break the rules of the device protocol (docs/PROTOCOL.md), and
see whether the gateway does what it must: one line for each rule, in each version, over TCP and
WebSocket.

The devices have addresses of their own (--mac, else random ones), enrol, and leave token records
behind. Rules that wait for a silence longer than --patience, and what the gateway's
configuration does not show, are not tried; the line says why. With --shed all devices of the
gateways that it names are asked to reconnect, again and again: name only gateways that
nobody uses.

Ends with 1 if a rule is broken.`,
		Example: `  goshield conformance
  goshield conformance --addr gateway.example.org:8443 --ca ca.pem --websocket gateway.example.org:8444
  goshield conformance --protocol-version 2 --patience 2m --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.tryAll(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	f.target.addFlags(flags)
	flags.Uint8Var(&f.target.version, "protocol-version", 0, "only this `version` of the device protocol (default: 1 and 2)")
	flags.StringVar(&f.run.WebSocket, "websocket", "", "`host:port` where devices connect by WebSocket (default: context.json's, unless --addr is given)")
	flags.StringArrayVar(&f.run.Rules, "rule", nil, "only rules whose `name` begins so; may be repeated")
	flags.StringVar(&f.mac, "mac", "", fmt.Sprintf("MAC `address` of the first device, where enrolment is allowlist; %d are used", conformance.DevicesNeeded()))
	flags.BoolVar(&f.noBinding, "no-channel-binding", false, "the gateway has tls.channel_binding: none")
	flags.StringVar(&f.run.Service, "service", conformance.DefaultService, "service to ask; it must echo")
	flags.StringVar(&f.run.PushService, "push-service", conformance.DefaultPushService, `service that pushes what it is asked to, as echo-backend does; "-": there is none`)
	flags.DurationVar(&f.run.Patience, "patience", conformance.DefaultPatience, "how long a rule may wait for a silence to be noticed")
	flags.IntVar(&f.run.Concurrency, "concurrency", conformance.DefaultConcurrency, "how many rules are tried at once")
	flags.StringArrayVar(&f.shed, "shed", nil, "`URL` of a gateway's admin server, whose /api/shed then sends all devices away; may be repeated")
	flags.StringVar(&f.adminSecret, "admin-secret-file", "", "`file` with the secret for --shed (default: context.json's)")
	flags.BoolVar(&f.asJSON, "json", false, "print the report as JSON")
	return cmd
}

func (f *conformanceFlags) tryAll(ctx context.Context, out, errOut io.Writer) error {
	cfg, where, err := f.config()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := reachable(ctx, cfg); err != nil {
		return explainDial(err, where)
	}
	if live := terminalOf(errOut); live != nil {
		cfg.Progress = func(done, all int) { fmt.Fprintf(live, "\r\x1b[K%d of %d rules", done, all) }
		defer fmt.Fprint(live, "\r\x1b[K")
	}
	report, err := conformance.Run(ctx, cfg)
	if live := terminalOf(errOut); live != nil {
		fmt.Fprint(live, "\r\x1b[K")
	}
	if err != nil {
		return usageError{err}
	}
	if f.asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		err = report.WriteText(out)
	}
	if err != nil {
		return err
	}
	return report.Err()
}

// config is what the flags ask for.
func (f *conformanceFlags) config() (cfg conformance.Config, r resolved, err error) {
	cfg = f.run
	if r, err = f.target.resolve(); err != nil {
		return cfg, r, err
	}
	c, _, err := findContext(f.target.context, f.target.getenv)
	if err != nil {
		return cfg, r, err
	}
	cfg.Addr, cfg.TLS, cfg.NoChannelBinding = r.addr, r.tls, f.noBinding
	if cfg.WebSocket == "" && f.target.addr == "" {
		cfg.WebSocket = c.WebSocket
	}
	if f.target.version != 0 {
		cfg.Versions = []byte{f.target.version}
	}
	if cfg.Patience <= 0 {
		return cfg, r, usagef("--patience: must be above 0, got %v", cfg.Patience)
	}
	if f.mac != "" {
		if cfg.FirstMAC, err = parseMAC(f.mac); err != nil {
			return cfg, r, usagef("--mac: %w", err)
		}
	}
	if r.groupKey != nil {
		cfg.DeviceKey = func(id wire.ClientID) *[32]byte { return r.deviceKey(id) }
	}
	if len(f.shed) > 0 {
		if cfg.Shed, err = f.shedder(c); err != nil {
			return cfg, r, err
		}
	}
	return cfg, r, nil
}

// shedder asks each gateway to send all its devices away, within half a second.
func (f *conformanceFlags) shedder(c Context) (func(context.Context) error, error) {
	file := f.adminSecret
	if file == "" {
		file = c.AdminSecretFile
	}
	if file == "" {
		return nil, usagef("--shed needs --admin-secret-file")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--admin-secret-file: %w", err)
	}
	secret, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
	return func(ctx context.Context) error {
		for _, url := range f.shed {
			if err := shed(ctx, strings.TrimSuffix(url, "/")+"/api/shed", strings.TrimSpace(secret)); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// allDevices is more than a gateway has.
const allDevices = 1 << 20

func shed(ctx context.Context, url, secret string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body := fmt.Sprintf(`{"connections":%d,"over_ms":500}`, allDevices)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("POST %s: %s", url, resp.Status)
	}
	return nil
}

// reachable connects once, so that a wrong address is told as such and not as broken rules.
func reachable(ctx context.Context, cfg conformance.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return conformance.Reach(ctx, cfg)
}
