package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/test/harness"
)

// report compares the results, as a page with plots and as the document.
func (o options) report(ctx context.Context, p harness.Programs, results []string) error {
	ctl := filepath.Join(p.Bin, "berthctl")
	all, err := runCtl(ctx, ctl, append([]string{"bench", "--html", filepath.Join(o.out, "report.html"), "--compare"}, results...))
	if err != nil {
		return err
	}
	fmt.Print(all)
	if o.doc == "" {
		return nil
	}
	old, err := os.ReadFile(o.doc)
	if err != nil {
		return err
	}
	prose, _, found := strings.Cut(string(old), mark)
	if !found {
		return fmt.Errorf("%s has lost the line %q", o.doc, mark)
	}
	var doc strings.Builder
	doc.WriteString(prose + mark)
	fmt.Fprintf(&doc, "\nAdded to `berthctl bench`: `%s`.\n\n```\n%s```\n", o.args, all)
	for _, file := range results {
		one, err := runCtl(ctx, ctl, []string{"bench", "--compare", file})
		if err != nil {
			return err
		}
		fmt.Fprintf(&doc, "\n```\n%s```\n", one)
	}
	return os.WriteFile(o.doc, []byte(doc.String()), 0o644)
}

const mark = "<!-- From here on `make bench` writes it. -->\n"

func runCtl(ctx context.Context, program string, args []string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}
