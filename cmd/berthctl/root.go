package main

import (
	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/bench"
	"github.com/berth-dev/berth/cmd/berthctl/checkpoint"
	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cmd/berthctl/doctor"
	"github.com/berth-dev/berth/cmd/berthctl/explain"
	"github.com/berth-dev/berth/cmd/berthctl/image"
	"github.com/berth-dev/berth/cmd/berthctl/migrate"
	"github.com/berth-dev/berth/cmd/berthctl/node"
	"github.com/berth-dev/berth/cmd/berthctl/pod"
	"github.com/berth-dev/berth/cmd/berthctl/session"
)

// newRoot puts the commands together.
func newRoot() *cobra.Command {
	a := &cli.App{}
	root := &cobra.Command{
		Use: "berthctl", Short: "Show and check a Berth node, and run things on it",
		Long:         "Show and check a Berth node, and run things on it.\n\n" + cli.ExitHelp,
		SilenceUsage: true, DisableAutoGenTag: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.Check() },
	}
	root.CompletionOptions.DisableDefaultCmd = true // ours has a page and an example
	a.Flags(root)
	root.AddCommand(node.Commands(a)...)
	root.AddCommand(pod.Commands(a)...)
	root.AddCommand(session.Commands(a)...)
	root.AddCommand(image.Commands(a)...)
	root.AddCommand(explain.Command(a), checkpoint.Command(a), doctor.Command(a), bench.Command(a), migrate.Command(a), manCommand(), completionCommand())
	return root
}
