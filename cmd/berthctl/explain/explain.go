// Package explain is berthctl explain: where the time of a pod went.
package explain

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

// barWidth is the width of a waterfall in a terminal, in characters.
const barWidth = 40

// Command is berthctl's sub-command.
func Command(a *cli.App) *cobra.Command {
	cmd := cli.Group("explain", "Where the time of a pod went, and what it waits for")
	html := ""
	pod := &cobra.Command{
		Use: "pod [POD]", Short: "Starts and stops of a pod as a waterfall; without POD, the pods that are remembered", Args: cobra.MaximumNArgs(1),
		Long: `Shows what the daemon did for a pod, how long each piece took, what is under way and since when, and the processes
it may be waiting for: with the kernel functions that a process in uninterruptible sleep (D) hangs in.

POD is an ID, the beginning of one, a name, or NAMESPACE/NAME. The daemon remembers the latest pods (explain.pods) since its start.`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.AdminAPI(func(cl admin.AdminClient) error {
				r, err := cl.Explain(c.Context(), &admin.ExplainRequest{Pod: strings.Join(args, "")})
				if err != nil {
					return err
				}
				return showExplained(a, c, r, len(args) == 0, html)
			})
		},
	}
	pod.ValidArgsFunction = a.Pods(1)
	pod.Flags().StringVar(&html, "html", "", "write a page to this `file` instead")
	cmd.AddCommand(pod)
	return cmd
}

func showExplained(a *cli.App, c *cobra.Command, r *admin.ExplainResponse, all bool, html string) error {
	switch {
	case html != "":
		if err := os.WriteFile(html, []byte(explainPage(r, time.Now())), 0o644); err != nil {
			return cli.Failed(err, "")
		}
		_, err := fmt.Fprintln(c.OutOrStdout(), html)
		return err
	case a.Structured():
		return a.ShowDocument(c.OutOrStdout(), r)
	case all:
		return a.Show(c.OutOrStdout(), r, cli.Table{Header: "ID NAMESPACE NAME LAST TOOK STATE", Rows: explainedRows(a, r, time.Now())})
	}
	for _, p := range r.GetPods() {
		if err := printWaterfall(c.OutOrStdout(), p, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// calls returns the parts of a timeline that belong together: each begins with
// work of depth 0.
func calls(p *admin.PodTimeline) (out [][]*admin.Work) {
	for _, w := range p.GetWork() {
		if w.GetDepth() == 0 || len(out) == 0 {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], w)
	}
	return out
}

func explainedRows(a *cli.App, r *admin.ExplainResponse, now time.Time) (rows [][]string) {
	for _, p := range r.GetPods() {
		all := calls(p)
		if len(all) == 0 {
			continue
		}
		last := all[len(all)-1][0]
		rows = append(rows, []string{a.ID(p.GetId()), p.GetNamespace(), p.GetName(), last.GetName() + " " + cli.Age(last.GetBegan(), now) + " ago",
			took(last.GetTook()), stateOf(p)})
	}
	return rows
}

// stateOf says whether a pod waits for anything.
func stateOf(p *admin.PodTimeline) string {
	for _, w := range p.GetWork() {
		if w.GetRunning() {
			return "under way: " + innermost(p)
		}
	}
	if len(p.GetUnfinished()) > 0 {
		return "unfinished: " + p.GetUnfinished()[0].GetKind()
	}
	return "idle"
}

// innermost is the deepest work under way.
func innermost(p *admin.PodTimeline) string {
	var deepest *admin.Work
	for _, w := range p.GetWork() {
		if w.GetRunning() && (deepest == nil || w.GetDepth() >= deepest.GetDepth()) {
			deepest = w
		}
	}
	return label(deepest)
}

// label names a piece of work: calls and verbs have names of their own, the
// rest needs its kind.
func label(w *admin.Work) string {
	switch w.GetKind() {
	case "call", "verb", "wait":
		return w.GetName()
	}
	return w.GetKind() + " " + w.GetName()
}

// took writes a duration so that it is read at a glance.
func took(ns int64) string {
	d := time.Duration(ns)
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d µs", d.Microseconds())
}

func printWaterfall(w io.Writer, p *admin.PodTimeline, now time.Time) error {
	_, _ = fmt.Fprintf(w, "Pod %s/%s %s\n", p.GetNamespace(), p.GetName(), p.GetId())
	if p.GetDropped() > 0 {
		_, _ = fmt.Fprintf(w, "(%d earlier pieces of work are remembered no longer)\n", p.GetDropped())
	}
	for _, call := range calls(p) {
		top := call[0]
		_, _ = fmt.Fprintf(w, "\n%s, %s ago\n", time.Unix(0, top.GetBegan()).UTC().Format("2006-01-02 15:04:05.000"), cli.Age(top.GetBegan(), now))
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, s := range call {
			name := strings.Repeat("  ", int(s.GetDepth())) + label(s)
			if s.GetDepth() <= 1 && s.GetObject() != "" && s.GetObject() != p.GetId() {
				name += " " + cli.Short(s.GetObject())
			}
			_, _ = fmt.Fprintf(tw, "%s\t%s\t|%s|%s\n", name, took(s.GetTook()), bar(top, s), outcome(s))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	printWaiting(w, p, now)
	return nil
}

// outcome tells of what is not simply done.
func outcome(s *admin.Work) string {
	switch {
	case s.GetRunning():
		return " under way"
	case s.GetError() != "":
		return " failed"
	}
	return ""
}

// bar draws when within the call a piece of work ran.
func bar(top, s *admin.Work) string {
	from, width := share(top, s)
	a := min(int(from*barWidth), barWidth-1)
	n := max(1, min(int(width*barWidth+0.5), barWidth-a))
	return strings.Repeat(" ", a) + strings.Repeat("#", n) + strings.Repeat(" ", barWidth-a-n)
}

// share is the part of the call's time before a piece of work, and within it.
func share(top, s *admin.Work) (from, width float64) {
	whole := float64(max(1, top.GetTook()))
	from = min(1, max(0, float64(s.GetBegan()-top.GetBegan())/whole))
	return from, min(1-from, max(0, float64(s.GetTook())/whole))
}

// printWaiting says what failed last, what is under way, and who is in the way.
func printWaiting(w io.Writer, p *admin.PodTimeline, now time.Time) {
	all := calls(p)
	if len(all) > 0 && all[len(all)-1][0].GetError() != "" {
		_, _ = fmt.Fprintf(w, "\nThe last call failed: %s\n", all[len(all)-1][0].GetError())
	}
	for _, call := range all {
		var path []string
		var since int64
		for _, s := range call {
			if s.GetRunning() {
				path, since = append(path, label(s)), s.GetBegan()
			}
		}
		if len(path) > 0 {
			_, _ = fmt.Fprintf(w, "\nUnder way: %s, for %s\n", strings.Join(path, " > "), took(now.UnixNano()-since))
		}
	}
	for _, o := range p.GetUnfinished() {
		_, _ = fmt.Fprintf(w, "Not finished since %s: %s of %s; see berthctl recovery\n",
			time.Unix(0, o.GetStartedAt()).UTC().Format(time.RFC3339), o.GetKind(), cli.Short(o.GetSubject()))
	}
	for _, x := range p.GetProcesses() {
		_, _ = fmt.Fprintf(w, "Process %d (%s), %s, is in state %s%s\n", x.GetPid(), x.GetName(), x.GetRole(), x.GetState(), uninterruptible(x))
		for _, f := range x.GetStack() {
			_, _ = fmt.Fprintf(w, "    %s\n", f)
		}
	}
}

func uninterruptible(x *admin.Process) string {
	if x.GetState() == "D" {
		return ", which no signal ends: it waits for a device or a file system"
	}
	return ""
}
