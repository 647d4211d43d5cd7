package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/test/golden"
)

const (
	referenceFile = "../../docs/berthctl.md"
	referenceMark = "<!-- From here on BERTH_REWRITE=1 go test ./cmd/berthctl writes it, out of the commands. -->\n"
)

// The reference in docs is that of the commands there are.
func TestReference(t *testing.T) {
	b, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	prose, _, found := strings.Cut(string(b), referenceMark)
	if !found {
		t.Fatalf("%s has lost the line %q", referenceFile, referenceMark)
	}
	golden.File(t, referenceFile, prose+referenceMark+reference(newRoot()))
}

// reference is a table of all commands, and then what their help says.
func reference(root *cobra.Command) string {
	var table, text strings.Builder
	table.WriteString("\n## Commands\n\n| command | what it does |\n| --- | --- |\n")
	for _, c := range leaves(root) {
		use := strings.TrimSuffix(strings.TrimPrefix(c.UseLine(), "berthctl "), " [flags]")
		fmt.Fprintf(&table, "| `%s` | %s |\n", strings.ReplaceAll(use, "|", "\\|"), c.Short)
		flags := c.NonInheritedFlags().FlagUsages()
		if c.Long == "" && c.Example == "" && flags == "" {
			continue // the table has said all
		}
		fmt.Fprintf(&text, "\n### berthctl %s\n\n", strings.TrimPrefix(c.CommandPath(), "berthctl "))
		if c.Long != "" {
			text.WriteString(strings.TrimSpace(c.Long) + "\n\n")
		} else {
			text.WriteString(c.Short + ".\n\n")
		}
		if c.Example != "" {
			text.WriteString("```\n" + strings.Trim(c.Example, "\n") + "\n```\n\n")
		}
		if flags != "" {
			text.WriteString("```\n" + flags + "```\n")
		}
	}
	return table.String() + strings.TrimRight(text.String(), "\n") + "\n"
}

// leaves are the commands that do something, in order.
func leaves(c *cobra.Command) (out []*cobra.Command) {
	for _, k := range c.Commands() {
		if !k.HasSubCommands() {
			out = append(out, k)
		}
		out = append(out, leaves(k)...)
	}
	return out
}

// Every command says what it does, and takes no argument unseen.
func TestCommands(t *testing.T) {
	for _, c := range leaves(newRoot()) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || c.Args == nil {
			t.Errorf("%s: help %q must be a phrase, and arguments be checked (%v)", c.CommandPath(), c.Short, c.Args != nil)
		}
	}
}

func TestMan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	var b strings.Builder
	if code := run(t.Context(), []string{"man", dir}, &b, &b); code != 0 {
		t.Fatal(b.String())
	}
	pages, err := filepath.Glob(filepath.Join(dir, "berthctl*.1"))
	if err != nil {
		t.Fatal(err)
	}
	if want := len(leaves(newRoot())); len(pages) <= want {
		t.Errorf("%d pages for %d commands and their groups", len(pages), want)
	}
	page, err := os.ReadFile(filepath.Join(dir, "berthctl-run.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`.TH "BERTHCTL-RUN" "1" "Nov 2023"`, ".SH NAME", ".SH EXAMPLE", `\fB--rm\fP`} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page of run lacks %s:\n%.600s", want, page)
		}
	}
}

// The completion scripts are such that their shells take them.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var b strings.Builder
		if code := run(t.Context(), []string{"completion", shell}, &b, &b); code != 0 || b.Len() < 1000 {
			t.Errorf("%s: code %d, %s", shell, code, b.String())
		}
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not installed: its script is not parsed", shell)
			continue
		}
		cmd := exec.CommandContext(t.Context(), shell, "-n")
		cmd.Stdin = strings.NewReader(b.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s does not take its script: %v\n%s", shell, err, out)
		}
	}
}
