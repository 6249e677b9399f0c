package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/goshield/goshield/internal/service"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "goshield %s %s %s/%s\n",
				service.VersionString(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
