package node

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

func recovery(a *cli.App) *cobra.Command {
	return &cobra.Command{Use: "recovery", Short: "Objects that are being brought back into a known state", Args: cobra.NoArgs,
		Long: "Objects that are being brought back into a known state, after a start or a failure:\n" +
			"work on them is repeated, with growing pauses, until it succeeds. Nothing is printed when there are none.",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.AdminAPI(func(cl admin.AdminClient) error {
				r, err := cl.Recovery(c.Context(), &admin.RecoveryRequest{})
				if err != nil {
					return err
				}
				if len(r.GetObjects()) == 0 && !a.Structured() {
					return nil
				}
				return a.Show(c.OutOrStdout(), r, cli.Table{Header: recoveryHeader, Rows: recoveryRows(a, r, time.Now())})
			})
		}}
}

func recoveryRows(a *cli.App, r *admin.RecoveryResponse, now time.Time) (rows [][]string) {
	for _, o := range r.GetObjects() {
		next := "now"
		if o.GetNext() != 0 {
			next = "in " + cli.Age(now.UnixNano(), time.Unix(0, o.GetNext()))
		}
		rows = append(rows, []string{o.GetKind(), a.ID(o.GetId()), o.GetDoing(), cli.Age(o.GetSince(), now) + " ago",
			fmt.Sprint(o.GetFailures()), next, o.GetError()})
	}
	return rows
}

func reconcile(a *cli.App) *cobra.Command {
	var dry bool
	c := &cobra.Command{Use: "reconcile", Short: "Compare records with the node, and reap what nobody knows", Args: cobra.NoArgs,
		Long: "Compare records with kernel and disk. What bears Berth's mark and belongs to no pod, container or image is\n" +
			"taken away; other people's things are not touched. The daemon does the same at a start and after failures.\n" +
			"Nothing is printed when all is as recorded. Exit code 1: something could not be done.",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.AdminAPI(func(cl admin.AdminClient) error {
				r, err := cl.Reconcile(c.Context(), &admin.ReconcileRequest{DryRun: dry})
				if err != nil {
					return err
				}
				rows, failed := reconcileRows(a, r)
				if len(rows) > 0 || a.Structured() {
					err = a.Show(c.OutOrStdout(), r, cli.Table{Header: reconcileHeader, Rows: rows})
				}
				if err == nil && failed {
					return &cli.ExitError{Code: cli.CodeFailed}
				}
				return err
			})
		}}
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done")
	return c
}

func reconcileRows(a *cli.App, r *admin.ReconcileResponse) (rows [][]string, failed bool) {
	for _, x := range r.GetActions() {
		rows = append(rows, []string{x.GetKind(), a.ID(x.GetId()), x.GetAction(), x.GetReason(), x.GetError()})
		failed = failed || x.GetError() != ""
	}
	return rows, failed
}

func quarantine(a *cli.App) *cobra.Command {
	c := cli.Group("quarantine", "Records that were set aside")
	c.Long = "Records that could not be read, or that lost what they stand for. They were set aside so that the rest works,\n" +
		"and are kept until they are dropped or their object is made anew."
	c.AddCommand(
		&cobra.Command{Use: "ls", Short: "List them", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return quarantined(a, c, func(r *admin.QuarantineResponse) error {
				var rows [][]string
				for _, q := range r.GetRecords() {
					rows = append(rows, []string{q.GetName(), cli.Age(q.GetFoundAt(), time.Now()), q.GetReason()})
				}
				return a.Show(c.OutOrStdout(), r, cli.Table{Header: "NAME AGE REASON", Rows: rows})
			})
		}},
		&cobra.Command{Use: "show NAME", Short: "Show one, with its bytes", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			return quarantined(a, c, func(r *admin.QuarantineResponse) error {
				q, err := findRecord(r.GetRecords(), args[0])
				if err != nil {
					return err
				}
				if err := a.Show(c.OutOrStdout(), q, cli.Table{Rows: [][]string{{"name", q.GetName()}, {"reason", q.GetReason()},
					{"found", time.Unix(0, q.GetFoundAt()).UTC().Format(time.RFC3339)}, {"bytes", fmt.Sprint(len(q.GetData()))}}}); err != nil || a.Structured() {
					return err
				}
				_, err = fmt.Fprint(c.OutOrStdout(), hex.Dump(q.GetData()))
				return err
			})
		}},
		&cobra.Command{Use: "drop NAME...", Short: "Delete some for good", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
			return a.AdminAPI(func(cl admin.AdminClient) error {
				for _, name := range args {
					if _, err := cl.DropQuarantined(c.Context(), &admin.DropQuarantinedRequest{Name: name}); err != nil {
						return err
					}
				}
				return nil
			})
		}},
	)
	return c
}

func quarantined(a *cli.App, c *cobra.Command, f func(*admin.QuarantineResponse) error) error {
	return a.AdminAPI(func(cl admin.AdminClient) error {
		r, err := cl.Quarantine(c.Context(), &admin.QuarantineRequest{})
		if err != nil {
			return err
		}
		return f(r)
	})
}

// findRecord returns the record with that name or unique prefix of an ID.
func findRecord(all []*admin.QuarantinedRecord, name string) (*admin.QuarantinedRecord, error) {
	var hits []*admin.QuarantinedRecord
	for _, q := range all {
		if q.GetName() == name {
			return q, nil
		}
		if strings.HasPrefix(q.GetKey(), name) {
			hits = append(hits, q)
		}
	}
	switch len(hits) {
	case 0:
		return nil, status.Errorf(codes.NotFound, "no record %q is in quarantine; see `berthctl quarantine ls`", name)
	case 1:
		return hits[0], nil
	}
	return nil, status.Errorf(codes.InvalidArgument, "%q is ambiguous; give the full name", name)
}

const (
	recoveryHeader  = "KIND ID DOING SINCE FAILURES NEXT ERROR"
	reconcileHeader = "KIND ID ACTION REASON ERROR"
)
