package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
)

func (a *app) version() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Versions of berthctl and the daemon", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.cri(func(cl clients) error {
			r, err := cl.Version(c.Context(), &runtimeapi.VersionRequest{})
			if err != nil {
				return err
			}
			return a.show(c.OutOrStdout(), r, "", [][]string{
				{"berthctl", config.Version}, {r.GetRuntimeName(), r.GetRuntimeVersion()}, {"CRI", r.GetRuntimeApiVersion()},
			})
		})
	}}
}

func (a *app) info() *cobra.Command {
	return &cobra.Command{Use: "info", Short: "The daemon, its handlers and its store", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.adminAPI(func(cl admin.AdminClient) error {
			r, err := cl.Info(c.Context(), &admin.InfoRequest{})
			if err != nil {
				return err
			}
			return a.show(c.OutOrStdout(), r, "", infoRows(r))
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
			n.GetSandboxes(), n.GetContainers(), n.GetImages(), n.GetLayers(), n.GetOperations(), bytesText(uint64(max(0, n.GetDatabaseBytes()))))},
	}
	for _, h := range r.GetHandlers() {
		name := "handler " + h.GetName()
		if h.GetDefault() {
			name += " (default)"
		}
		rows = append(rows, []string{name, h.GetPath() + " " + strings.Join(h.GetFeatures(), " ")})
	}
	return rows
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Whether the node is ready; exit code 1 if not", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.cri(func(cl clients) error {
			r, err := cl.Status(c.Context(), &runtimeapi.StatusRequest{})
			if err != nil {
				return err
			}
			rows, ready := conditionRows(r.GetStatus().GetConditions())
			if err := a.show(c.OutOrStdout(), r, "CONDITION STATUS REASON MESSAGE", rows); err != nil {
				return err
			}
			if !ready {
				return &exitError{code: 1}
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

func (a *app) ops() *cobra.Command {
	return &cobra.Command{Use: "ops", Short: "Operations that have begun and not ended", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.adminAPI(func(cl admin.AdminClient) error {
			r, err := cl.Operations(c.Context(), &admin.OperationsRequest{})
			if err != nil {
				return err
			}
			var rows [][]string
			for _, o := range r.GetOperations() {
				rows = append(rows, []string{o.GetId(), o.GetKind(), short(o.GetSubject()), age(o.GetStartedAt(), time.Now())})
			}
			return a.show(c.OutOrStdout(), r, "ID KIND SUBJECT AGE", rows)
		})
	}}
}
