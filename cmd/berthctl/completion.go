package main

import (
	"github.com/spf13/cobra"
)

// completionCommand prints what teaches a shell our commands.
func completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Print the script that completes commands and names in a shell",
		Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs), ValidArgs: []string{"bash", "zsh", "fish"},
		Long: "Print the script that completes commands, flags and the names of pods, containers and images in a shell.\n" +
			"The one for bash needs the package bash-completion.",
		Example: "  source <(berthctl completion bash)\n  berthctl completion zsh >\"${fpath[1]}/_berthctl\"\n  berthctl completion fish >~/.config/fish/completions/berthctl.fish",
		RunE: func(c *cobra.Command, args []string) error {
			switch args[0] {
			case "zsh":
				return c.Root().GenZshCompletion(c.OutOrStdout())
			case "fish":
				return c.Root().GenFishCompletion(c.OutOrStdout(), true)
			}
			return c.Root().GenBashCompletionV2(c.OutOrStdout(), true)
		},
	}
}
