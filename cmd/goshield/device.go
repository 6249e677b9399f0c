package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/wire"
)

// deviceCommand is what the device commands share: where auth-service and a gateway's push API are.
type deviceCommand struct {
	getenv func(string) string

	context              string
	auth, authSecretFile string
	push, pushSecretFile string
	json                 bool
	auths, pushes        *api // made by connect
	listed               deviceNames
	notes                io.Writer
}

func newDeviceCommand(getenv func(string) string) *cobra.Command {
	c := &deviceCommand{getenv: getenv}
	cmd := &cobra.Command{
		Use:   "device",
		Short: "Register, look at, push to and end devices",
		Long: `Register devices, see what is known of them, push to them, end their sessions and
tokens. A device is named by its MAC (any separators), its client_id (64 hex
digits), or by a CSV file of either (--file, the first column; "-" is standard
input; a first line without a name is a heading).

auth-service and the push API are those of "goshield up" (context.json), or
--auth and --push with the files of their secrets.`,
		Example: `  goshield device add 00:1a:2b:3c:4d:5e
  goshield device add --file fleet.csv
  goshield device show 001a2b3c4d5e
  goshield device push 001a2b3c4d5e --service news '{"hello":"device"}' --wait 5s
  goshield device kick 001a2b3c4d5e`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.addFlags(cmd.PersistentFlags())
	cmd.AddCommand(
		c.newEach("add", "Register devices (enrolment mode allowlist)", "registered", c.add),
		c.newEach("block", "Bar devices in every enrolment mode, and end what they have", "blocked", c.block),
		c.newEach("remove", "Forget registrations, and end what was enrolled under them", "removed", c.remove),
		c.newEach("revoke", "Revoke devices' tokens: they have to enrol anew", "revoked", c.revoke),
		c.newEach("kick", "End devices' sessions: they may come back at once", "kicked", c.kick),
		c.newShow(), c.newList(), c.newPush(), c.newKey(),
	)
	return cmd
}

func (c *deviceCommand) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&c.context, "context", "", "context `file` written by `goshield up` (default: "+filepath.Join(defaultDataDir, contextFile)+")")
	flags.StringVar(&c.auth, "auth", "", "`URL` of auth-service, such as http://10.0.0.3:8000")
	flags.StringVar(&c.authSecretFile, "auth-secret-file", "", "`file` with the administrators' secret of auth-service")
	flags.StringVar(&c.push, "push", "", "`URL` of a gateway's push API, such as http://10.0.0.7:9400")
	flags.StringVar(&c.pushSecretFile, "push-secret-file", "", "`file` with the push API's secret")
	flags.BoolVar(&c.json, "json", false, "print JSON")
}

// connect finds the two APIs; it does not call them. One that is nowhere named is told when it is needed.
func (c *deviceCommand) connect(cmd *cobra.Command) error {
	known, _, err := findContext(c.context, c.getenv)
	if err != nil {
		return err
	}
	c.notes = cmd.ErrOrStderr()
	if c.auths, err = newAPI("auth-service", "--auth", c.auth, known.Auth, c.authSecretFile, known.AuthAdminSecretFile); err != nil {
		return err
	}
	c.pushes, err = newAPI("push API", "--push", c.push, known.Push, c.pushSecretFile, known.PushSecretFile)
	return err
}

func (c *deviceCommand) add(ctx context.Context, id wire.ClientID) error {
	return c.auths.call(ctx, "PUT", "/v1/devices/"+id.String(), authapi.DeviceChange{}, nil)
}

func (c *deviceCommand) block(ctx context.Context, id wire.ClientID) error {
	yes := true
	return c.auths.call(ctx, "PUT", "/v1/devices/"+id.String(), authapi.DeviceChange{Blocked: &yes}, nil)
}

func (c *deviceCommand) remove(ctx context.Context, id wire.ClientID) error {
	return c.auths.call(ctx, "DELETE", "/v1/devices/"+id.String(), nil, nil)
}

func (c *deviceCommand) revoke(ctx context.Context, id wire.ClientID) error {
	return c.auths.call(ctx, "DELETE", "/v1/clients/"+id.String()+"/token", nil, nil)
}

func (c *deviceCommand) kick(ctx context.Context, id wire.ClientID) error {
	return c.pushes.call(ctx, "DELETE", "/v1/devices/"+id.String()+"/session", nil, nil)
}

// newKey derives a device's key; it calls nobody.
func (c *deviceCommand) newKey() *cobra.Command {
	var group, mac string
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Derive a device's key from the group key",
		Long: `Derive a device's key from the group key, for enrolment mode "key": 64 hex digits
for "goshield send --key-file", or to be written into the device. Keep it secret.
Without --mac, the keys of the devices in --file are printed as CSV.`,
		Example: "  goshield device key --group-key-file group.key --mac 00:1a:2b:3c:4d:5e > device.key",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if group == "" {
				return usagef("--group-key-file is missing")
			}
			key, err := readGroupKey(group)
			if err != nil {
				return err
			}
			return c.printKeys(cmd, key, mac)
		},
	}
	cmd.Flags().StringVar(&group, "group-key-file", "", "`file` with the fleet's group key (64 hex digits)")
	cmd.Flags().StringVar(&mac, "mac", "", "`MAC` or client_id of the device")
	c.listed.addFlag(cmd.Flags())
	return cmd
}

func (c *deviceCommand) printKeys(cmd *cobra.Command, group []byte, mac string) error {
	out := cmd.OutOrStdout()
	if mac != "" {
		id, err := parseDevice(mac)
		if err != nil {
			return usagef("--mac: %w", err)
		}
		key := wire.DeviceKey(group, id)
		_, err = fmt.Fprintln(out, hex.EncodeToString(key[:]))
		return err
	}
	names, err := c.listed.read(nil, cmd.InOrStdin())
	if err != nil {
		return err
	}
	for _, n := range names {
		key := wire.DeviceKey(group, n.id)
		if _, err := fmt.Fprintf(out, "%s,%s\n", n.text, hex.EncodeToString(key[:])); err != nil {
			return err
		}
	}
	return nil
}

// parseDevice reads a client_id or a MAC.
func parseDevice(text string) (wire.ClientID, error) {
	text = strings.TrimSpace(text)
	if len(text) == 64 {
		return wire.ParseClientID(strings.ToLower(text))
	}
	return wire.ClientIDFromMAC(text)
}

// openBearer reads a secret to show.
func openBearer(flag, path string) (*secret.Secret, error) {
	s, err := secret.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return s, nil
}
