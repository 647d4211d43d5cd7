package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/config"
)

// manCommand writes a manual page for each command.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man DIRECTORY", Short: "Write manual pages", Args: cobra.ExactArgs(1),
		Long: "Write manual pages of berthctl and all its commands into a directory, which is made. Their date is today's,\n" +
			"or that of SOURCE_DATE_EPOCH.",
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return cli.Failed(err, "")
			}
			header := &doc.GenManHeader{Section: "1", Source: "Berth " + config.Version, Manual: "Berth"}
			if err := doc.GenManTree(c.Root(), header, args[0]); err != nil {
				return cli.Failed(err, "")
			}
			return nil
		},
	}
}
