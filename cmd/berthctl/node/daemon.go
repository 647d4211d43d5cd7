// Package node is berthctl's commands on the daemon and the node as a whole.
package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
)

// Commands are the commands of this package.
func Commands(a *cli.App) []*cobra.Command {
	return []*cobra.Command{version(a), info(a), statusCommand(a), ops(a), recovery(a), reconcile(a), quarantine(a), configCommand(),
		resetCommand(), events(a), pprofCommand(a), metrics(a)}
}

func version(a *cli.App) *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Versions of berthctl and the daemon", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.CRI(func(cl cli.Clients) error {
			r, err := cl.Version(c.Context(), &runtimeapi.VersionRequest{})
			if err != nil {
				return err
			}
			return a.Show(c.OutOrStdout(), r, cli.Table{Rows: [][]string{
				{"berthctl", config.Version}, {r.GetRuntimeName(), r.GetRuntimeVersion()}, {"CRI", r.GetRuntimeApiVersion()},
			}})
		})
	}}
}

func info(a *cli.App) *cobra.Command {
	return &cobra.Command{Use: "info", Short: "The daemon, its handlers and its store", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.AdminAPI(func(cl admin.AdminClient) error {
			r, err := cl.Info(c.Context(), &admin.InfoRequest{})
			if err != nil {
				return err
			}
			return a.Show(c.OutOrStdout(), r, cli.Table{Rows: infoRows(r)})
		})
	}}
}

func infoRows(r *admin.InfoResponse) [][]string {
	n := r.GetCounts()
	rows := [][]string{
		{"version", r.GetVersion()},
		{"pid", fmt.Sprint(r.GetPid())},
		{"started", time.Unix(0, r.GetStartedAt()).UTC().Format(time.RFC3339)},
		{"configuration", r.GetConfigSource()},
		{"state", r.GetRoot()},
		{"run-time", r.GetRun()},
		{"cgroup driver", r.GetCgroupDriver()},
		{"streaming", r.GetStreamingUrl()},
		{"store", fmt.Sprintf("%d sandboxes, %d containers, %d images, %d layers, %d unfinished operations, %s",
			n.GetSandboxes(), n.GetContainers(), n.GetImages(), n.GetLayers(), n.GetOperations(), cli.Bytes(uint64(max(0, n.GetDatabaseBytes()))))},
	}
	if s := r.GetStorage(); s != nil {
		rows = append(rows, []string{"storage", fmt.Sprintf("%s on %s, %s of %s free, images take %s", s.GetDriver(), s.GetFilesystem(),
			cli.Bytes(uint64(s.GetFreeBytes())), cli.Bytes(uint64(s.GetSizeBytes())), cli.Bytes(uint64(s.GetImageBytes())))})
	}
	for _, w := range r.GetNetworks() {
		rows = append(rows, networkRow(w))
	}
	rows = append(rows, []string{"CNI in-process", strings.Join(r.GetBuiltinPlugins(), " ")},
		[]string{"NRI plugins", fmt.Sprint(r.GetNriPlugins())})
	for _, h := range r.GetHandlers() {
		name := "handler " + h.GetName()
		if h.GetDefault() {
			name += " (default)"
		}
		rows = append(rows, []string{name, h.GetPath() + " " + strings.Join(h.GetFeatures(), " ")})
	}
	return rows
}

func networkRow(w *admin.Network) []string {
	name := "network"
	if len(w.GetHandlers()) > 0 {
		name += " of " + strings.Join(w.GetHandlers(), ", ")
	}
	if !w.GetReady() {
		return []string{name, "not ready: " + w.GetReason()}
	}
	return []string{name, w.GetName() + " " + w.GetFile()}
}

func statusCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Whether the node is ready; exit code 1 if not", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.CRI(func(cl cli.Clients) error {
			r, err := cl.Status(c.Context(), &runtimeapi.StatusRequest{})
			if err != nil {
				return err
			}
			rows, ready := conditionRows(r.GetStatus().GetConditions())
			if err := a.Show(c.OutOrStdout(), r, cli.Table{Header: "CONDITION STATUS REASON MESSAGE", Rows: rows}); err != nil {
				return err
			}
			if !ready {
				return &cli.ExitError{Code: cli.CodeFailed}
			}
			return nil
		})
	}}
}

func conditionRows(conditions []*runtimeapi.RuntimeCondition) (rows [][]string, ready bool) {
	ready = true
	for _, k := range conditions {
		rows = append(rows, []string{k.GetType(), fmt.Sprint(k.GetStatus()), k.GetReason(), k.GetMessage()})
		ready = ready && k.GetStatus()
	}
	return rows, ready
}

func ops(a *cli.App) *cobra.Command {
	return &cobra.Command{Use: "ops", Short: "Operations that have begun and not ended", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.AdminAPI(func(cl admin.AdminClient) error {
			r, err := cl.Operations(c.Context(), &admin.OperationsRequest{})
			if err != nil {
				return err
			}
			var rows [][]string
			for _, o := range r.GetOperations() {
				rows = append(rows, []string{o.GetId(), o.GetKind(), a.ID(o.GetSubject()), cli.Age(o.GetStartedAt(), time.Now())})
			}
			return a.Show(c.OutOrStdout(), r, cli.Table{Header: "ID KIND SUBJECT AGE", Rows: rows})
		})
	}}
}
