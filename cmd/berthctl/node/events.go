package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

func events(a *cli.App) *cobra.Command {
	r := &admin.EventsRequest{}
	cmd := &cobra.Command{
		Use: "events", Short: "What has happened to pods, containers and images", Args: cobra.NoArgs,
		Long: `What has happened to pods, containers and images, in order: one line for each event, one JSON object
with -o json, one YAML document with -o yaml.

Every event has a number. With --since N the output goes on after event N; if the
daemon has dropped some of what follows, that is an error and not a gap. With
--follow it goes on as things happen, also when the daemon is restarted.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.AdminAPI(func(cl admin.AdminClient) error { return readEvents(a, c, cl, r) })
		},
	}
	cmd.Flags().Uint64Var(&r.Since, "since", 0, "go on after the event with this `number`; 0: the oldest that is kept")
	cmd.Flags().BoolVarP(&r.Follow, "follow", "f", false, "wait for more")
	return cmd
}

// readEvents prints events. A daemon that goes away while it is followed is
// waited for, and asked for what follows the last event that was printed.
func readEvents(a *cli.App, c *cobra.Command, cl admin.AdminClient, r *admin.EventsRequest) error {
	var opts []grpc.CallOption
	for {
		err := readEventStream(a, c, cl, r, opts)
		switch {
		case !r.Follow || err == nil || c.Context().Err() != nil:
			if r.Follow && errors.Is(c.Context().Err(), context.Canceled) {
				return nil // the user ended it
			}
			return err
		case status.Code(err) != codes.Unavailable || opts == nil && r.Since == 0:
			return err
		}
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "berthctl: the daemon is gone; waiting for it to go on after event %d\n", r.Since)
		opts = []grpc.CallOption{grpc.WaitForReady(true)}
		select {
		case <-c.Context().Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func readEventStream(a *cli.App, c *cobra.Command, cl admin.AdminClient, r *admin.EventsRequest, opts []grpc.CallOption) error {
	stream, err := cl.Events(c.Context(), r, opts...)
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = printEvent(a, c.OutOrStdout(), e)
		}
		if err != nil {
			return err
		}
		r.Since = e.GetSeq()
	}
}

// eventJSON is one line of -o json. Numbers stay numbers.
type eventJSON struct {
	Seq       uint64 `json:"seq"`
	Time      string `json:"time"`
	Kind      string `json:"kind"`
	ID        string `json:"id"`
	Pod       string `json:"pod,omitempty"`
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	ExitCode  *int32 `json:"exitCode,omitempty"` // of container.stopped
	Reason    string `json:"reason,omitempty"`
}

func printEvent(a *cli.App, w io.Writer, e *admin.Event) error {
	at := time.Unix(0, e.GetAt()).UTC().Format(time.RFC3339Nano)
	ended := e.GetKind() == "container.stopped"
	if a.Structured() {
		j := eventJSON{Seq: e.GetSeq(), Time: at, Kind: e.GetKind(), ID: e.GetId(), Pod: e.GetPodId(), Name: e.GetName(),
			Namespace: e.GetNamespace(), Reason: e.GetReason()}
		if ended {
			j.ExitCode = &e.ExitCode
		}
		if a.Output == "json" {
			return json.NewEncoder(w).Encode(j)
		}
		if _, err := io.WriteString(w, "---\n"); err != nil {
			return err
		}
		return a.ShowDocument(w, j)
	}
	name := cli.Clean(e.GetName())
	if e.GetNamespace() != "" {
		name = cli.Clean(e.GetNamespace()) + "/" + name
	}
	line := fmt.Sprintf("%d  %s  %-17s  %s  %s", e.GetSeq(), at, e.GetKind(), a.ID(e.GetId()), name)
	if ended {
		line += fmt.Sprintf("  exit code %d (%s)", e.GetExitCode(), cli.Clean(e.GetReason()))
	}
	_, err := fmt.Fprintln(w, strings.TrimRight(line, " "))
	return err
}
