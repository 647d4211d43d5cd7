package doctor

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

const long = `Check the node, with a remedy for each finding. Needs root to see everything;
works with the daemon dead, as far as that is possible.

--leaks compares kernel and disk with the records instead, and prints what
belongs to no pod or container any more: pinned namespaces, mounts, cgroups,
processes, interfaces, addresses, packet filter rules, directories. It prints
nothing and ends with 0 when there is none.

--bundle writes an archive to send to whoever helps. Environment values,
annotations, credentials and container logs are left out of it.

Exit codes: 0 no check failed (warnings do not count), nothing is leaked;
1 something failed or is leaked.`

// Command is berthctl's sub-command. It looks at the sockets of the
// configuration unless it is told others.
func Command(a *cli.App) *cobra.Command {
	var f Flags
	var leaks bool
	var bundle string
	c := &cobra.Command{Use: "doctor", Short: "Check the node, look for leaks, or write a support archive", Long: long, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			where := f
			if c.Flags().Changed("address") {
				where.CRI = a.Address
			}
			if c.Flags().Changed("admin-address") {
				where.Admin = a.Admin
			}
			n, done, err := connect(c.Context(), where)
			if err != nil {
				return err
			}
			defer done()
			switch {
			case bundle != "" && leaks:
				return errors.New("use one of --leaks and --bundle")
			case bundle != "":
				return writeBundleFile(c.Context(), n, bundle, c.OutOrStdout())
			case leaks:
				return runLeaks(c, n, a)
			}
			return runCheck(c, n, a)
		}}
	fl := c.Flags()
	fl.StringVar(&f.ConfigFile, "config", "", "configuration file of a daemon that does not run (default /etc/berth/config.toml)")
	fl.StringVar(&f.Root, "root", "", "its state directory, when not as configured")
	fl.StringVar(&f.Run, "run", "", "its run-time directory, when not as configured")
	fl.BoolVar(&leaks, "leaks", false, "list what no record knows")
	fl.StringVar(&bundle, "bundle", "", "write a support archive (tar.gz) to this `file`")
	return c
}

func runLeaks(c *cobra.Command, n Node, a *cli.App) error {
	leaks, err := FindLeaks(c.Context(), n)
	if err != nil {
		return err
	}
	if a.Structured() {
		if err := a.ShowDocument(c.OutOrStdout(), append([]Leak{}, leaks...)); err != nil {
			return err
		}
	} else if _, err := fmt.Fprint(c.OutOrStdout(), writeLeaks(leaks)); err != nil {
		return err
	}
	if len(leaks) > 0 {
		return &cli.ExitError{Code: cli.CodeFailed}
	}
	return nil
}

func runCheck(c *cobra.Command, n Node, a *cli.App) error {
	all := Check(Gather(c.Context(), n))
	if a.Structured() {
		if err := a.ShowDocument(c.OutOrStdout(), all); err != nil {
			return err
		}
	} else if err := writeFindings(c.OutOrStdout(), all); err != nil {
		return err
	}
	if Count(all, Fail) > 0 {
		return &cli.ExitError{Code: cli.CodeFailed}
	}
	return nil
}
