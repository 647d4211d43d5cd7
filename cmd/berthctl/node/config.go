package node

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/config"
)

// configCommand needs no daemon: it works on files.
func configCommand() *cobra.Command {
	c := cli.Group("config", "Work on configuration files")
	c.AddCommand(
		&cobra.Command{Use: "default", Short: "Print the commented default file", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(c.OutOrStdout(), config.DefaultFile())
			return err
		}},
		fileCommand("check [FILE]", "Check a file", func(c *cobra.Command, _ config.Config, source string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), source+": ok")
			return err
		}),
		fileCommand("dump [FILE]", "Print a file with all defaults filled in", func(c *cobra.Command, cfg config.Config, _ string) error {
			_, err := fmt.Fprint(c.OutOrStdout(), config.Dump(cfg))
			return err
		}),
		fileCommand("diff [FILE]", "Print what a file changes of the defaults", func(c *cobra.Command, cfg config.Config, _ string) error {
			for _, d := range config.Diff(config.Default(), cfg) {
				if _, err := fmt.Fprintf(c.OutOrStdout(), "%s: %s -> %s\n", d.Path, orNone(d.Old), orNone(d.New)); err != nil {
					return err
				}
			}
			return nil
		}),
	)
	return c
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

func fileCommand(use, short string, f func(*cobra.Command, config.Config, string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short + " (default " + config.DefaultPath + ")", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			path, mayMiss := config.DefaultPath, true
			if len(args) == 1 {
				path, mayMiss = args[0], false
			}
			cfg, source, err := config.Load(path, mayMiss)
			if err != nil {
				return cli.Failed(err, "")
			}
			return f(c, cfg, source)
		}}
}
