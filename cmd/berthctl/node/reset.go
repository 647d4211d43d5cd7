package node

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cni"
	"github.com/berth-dev/berth/config"
)

// reset works on the node itself: the daemon need not run, and may.
func resetCommand() *cobra.Command {
	var network bool
	file := config.DefaultPath
	c := &cobra.Command{Use: "reset --network", Short: "Remove the built-in network from this node", Args: cobra.NoArgs,
		Long: "Remove the built-in network from this node: its bridge, its packet filter rules, its addresses, and\n" +
			"IP forwarding where it was off before the first pod came. Needs root; the daemon may run or not. Nothing\n" +
			"is done while pods are attached. The next pod without a network of its own brings it back.",
		RunE: func(c *cobra.Command, _ []string) error {
			if !network {
				return errors.New("say what is to be reset: --network")
			}
			cfg, _, err := config.Load(file, !c.Flags().Changed("config"))
			if err != nil {
				return cli.Failed(err, "")
			}
			done, err := cni.ResetBuiltin(c.Context(), filepath.Join(cfg.Paths.Root, "cni"))
			for _, line := range done {
				if _, err := fmt.Fprintln(c.OutOrStdout(), line); err != nil {
					return err
				}
			}
			if err != nil {
				return cli.Failed(fmt.Errorf("reset network: %w", err), "")
			}
			if len(done) == 0 {
				_, err = fmt.Fprintln(c.OutOrStdout(), "there is nothing of the built-in network")
			}
			return err
		}}
	c.Flags().BoolVar(&network, "network", false, "remove the built-in network")
	c.Flags().StringVar(&file, "config", file, "the daemon's configuration file")
	return c
}
