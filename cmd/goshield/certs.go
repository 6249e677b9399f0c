package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/goshield/goshield/internal/certs"
)

func newCertsCommand() *cobra.Command {
	var dir string
	var hosts []string
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Make a development CA and a server certificate",
		Long: `Make a development certificate authority and a server certificate signed by it,
for localhost, 127.0.0.1, ::1 and every --host. What is there and good is kept:
run it again to renew what is near its end, or with more hosts.

The authority's key lies unencrypted beside the certificates. For production,
have your own authority sign the gateways' certificates.`,
		Example: "  goshield certs --dir certs --host gateway.example.org --host 10.0.0.5",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			paths, err := certs.EnsureDir(dir, hosts...)
			if err != nil {
				return fmt.Errorf("certificates in %s: %w", dir, err)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), describeCerts(paths))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "certs", "`directory` to keep them in")
	cmd.Flags().StringArrayVar(&hosts, "host", nil, "another `name` or address of the server; may be repeated")
	return cmd
}

func describeCerts(p certs.Paths) string {
	verb := map[bool]string{true: "made", false: "kept"}
	var b strings.Builder
	line := func(what, path string, isNew bool, note string) {
		fmt.Fprintf(&b, "%s  %-40s  %s%s\n", verb[isNew], path, what, note)
	}
	line("authority", p.CA, p.NewCA, ": devices trust it (--ca)")
	line("its key", p.CAKey, p.NewCA, ": keep it to yourself")
	line("server", p.Server, p.NewServer, fmt.Sprintf(": until %s, for %s", p.NotAfter.Format(time.DateOnly), strings.Join(p.Hosts, ", ")))
	line("its key", p.ServerKey, p.NewServer, "")
	return b.String()
}
