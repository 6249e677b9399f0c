package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/goshield/goshield/cmd/goshield/provision"
)

func newInitCommand() *cobra.Command {
	var cfg provision.Config
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the certificates and secrets of an installation",
		Long: `Make the certificates and secrets that the parts of an installation share: in a
directory for each part with what it needs and nothing else, and the originals in
DIR/authority. The compose file runs it first, with a volume for each.

What is there is kept; certificates near their end are renewed. To bring your
own, put it in the place of an original and run it again: it is handed on to
the parts, which read it without a restart (docs/CONFIGURATION.md).`,
		Example: "  goshield init --dir secrets --host gateway.example.org,10.0.0.5 --redis-host redis-1,redis-2,redis-3",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			changes, err := provision.Ensure(cfg)
			for _, path := range changes {
				fmt.Fprintf(cmd.OutOrStdout(), "made  %s\n", path)
			}
			if err != nil {
				return fmt.Errorf("in %s: %w", cfg.Dir, err)
			}
			if len(changes) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "all is there")
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Dir, "dir", "secrets", "`directory` to keep them in")
	flags.StringSliceVar(&cfg.Hosts, "host", nil, "`names` or addresses by which devices know the gateways")
	flags.StringSliceVar(&cfg.RedisHosts, "redis-host", nil, "`names` or addresses of the Redis nodes")
	flags.StringVar(&cfg.RedisPort, "redis-port", "6379", "`port` of the Redis nodes")
	return cmd
}
