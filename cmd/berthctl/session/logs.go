package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

type logFlags struct {
	follow, raw bool
	since       string
	logView
}

func logsCommand(a *cli.App) *cobra.Command {
	var f logFlags
	cmd := a.Command("logs CONTAINER", "Print what a container wrote", cobra.ExactArgs(1), func(c *cobra.Command, cl cli.Clients, args []string) error {
		var err error
		if f.logView.since, err = parseSince(f.since, time.Now()); err != nil {
			return err
		}
		k, err := cl.Container(c.Context(), args[0])
		if err != nil {
			return err
		}
		r, err := cl.ContainerStatus(c.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: k.GetId()})
		if err != nil {
			return err
		}
		path := r.GetStatus().GetLogPath()
		if path == "" {
			return cli.Failed(fmt.Errorf("container %s was made without a log file", k.GetId()), "`berthctl attach` shows what it writes from now on.")
		}
		if f.raw {
			return copyFile(c.OutOrStdout(), path)
		}
		f.out, f.err = c.OutOrStdout(), c.ErrOrStderr()
		ended := make(chan struct{})
		if f.follow {
			go func() {
				// An error leaves the log open: the daemon may be gone, the container not.
				if _, err := waitExit(c.Context(), cl, k.GetId()); err == nil {
					close(ended)
				}
			}()
		} else {
			close(ended)
		}
		if err := showLog(c.Context(), path, f.logView, ended); err != nil && !errors.Is(err, context.Canceled) {
			return cli.Failed(fmt.Errorf("log of container %s: %w", k.GetId(), err), "")
		}
		return nil
	})
	cmd.Long = `Print what a container wrote: its standard output on standard output, its standard error on standard error.

With --follow it goes on as the container writes, over rotations of the log, until the container
ends. --tail, --since and --timestamps are as kubectl has them. --raw prints the file as it is, in the CRI's format.`
	cmd.Example = "  berthctl logs -f --tail 20 web\n  berthctl logs --since 10m --timestamps shop/web"
	fl := cmd.Flags()
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on until the container ends")
	fl.BoolVar(&f.raw, "raw", false, "print the file as it is")
	fl.IntVar(&f.tail, "tail", -1, "only the last `lines` of what is there")
	fl.StringVar(&f.since, "since", "", "only what was written after this `time`, such as 10m or 2026-01-02T15:04:05Z")
	fl.BoolVar(&f.timestamps, "timestamps", false, "when each line was written")
	for _, other := range []string{"follow", "tail", "since", "timestamps"} {
		cmd.MarkFlagsMutuallyExclusive("raw", other)
	}
	return cli.Completed(cmd, a.Containers(1))
}

// parseSince takes a duration before now or a time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, fmt.Errorf("--since %q is neither a duration such as 10m nor a time such as 2026-01-02T15:04:05Z", s)
	}
	return t, nil
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return cli.Failed(err, "")
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
