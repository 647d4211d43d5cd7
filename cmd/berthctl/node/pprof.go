package node

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

func pprofCommand(a *cli.App) *cobra.Command {
	r := &admin.ProfileRequest{}
	file := ""
	cmd := &cobra.Command{
		Use: "pprof PROFILE", Short: "Take a profile of the daemon", Args: cobra.ExactArgs(1),
		Long:      "Take a profile of the daemon: cpu, heap, goroutine, allocs, mutex, block or threadcreate. Read it with `go tool pprof FILE`.",
		ValidArgs: []string{"cpu", "heap", "goroutine", "allocs", "mutex", "block", "threadcreate"},
		RunE: func(c *cobra.Command, args []string) error {
			r.Name = args[0]
			if file == "" {
				file = r.Name + ".pprof"
			}
			return a.AdminAPI(func(cl admin.AdminClient) error { return saveProfile(c, cl, r, file) })
		},
	}
	cmd.Flags().Uint32Var(&r.Seconds, "seconds", 30, "length of a cpu profile")
	cmd.Flags().StringVar(&file, "file", "", "where to write it (default PROFILE.pprof here)")
	return cmd
}

// saveProfile writes the profile beside the file and renames it: what is there
// is whole.
func saveProfile(c *cobra.Command, cl admin.AdminClient, r *admin.ProfileRequest, file string) (err error) {
	stream, err := cl.Profile(c.Context(), r)
	if err != nil {
		return err
	}
	tmp := file + ".part"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return cli.Failed(err, "")
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			_, err = f.Write(part.GetData())
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(f.Close(), os.Rename(tmp, file)); err != nil {
		return cli.Failed(err, "")
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), file)
	return err
}

func metrics(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "metrics", Short: "The daemon's metrics, in the text format of Prometheus", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.AdminAPI(func(cl admin.AdminClient) error {
				r, err := cl.Metrics(c.Context(), &admin.MetricsRequest{})
				if err != nil {
					return err
				}
				_, err = c.OutOrStdout().Write(r.GetText())
				return err
			})
		},
	}
}
