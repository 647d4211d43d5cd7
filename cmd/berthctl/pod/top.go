package pod

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

func top(a *cli.App) *cobra.Command {
	by := "cpu"
	every := 2 * time.Second
	cmd := a.Command("top", "Pods by what they use, live on a terminal", cobra.NoArgs, func(c *cobra.Command, cl cli.Clients, _ []string) error {
		switch {
		case by != "cpu" && by != "memory":
			return fmt.Errorf("--sort %q is unknown; use cpu or memory", by)
		case every < time.Second:
			return fmt.Errorf("--interval %s is too short: rates take a second", every)
		}
		ask := func() (*runtimeapi.ListPodSandboxStatsResponse, error) {
			return cl.ListPodSandboxStats(c.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
		}
		if _, tty := cli.Terminal(c.OutOrStdout()); tty && !a.Structured() {
			return (&live{a: a, by: by, every: every, ask: ask, out: c.OutOrStdout()}).run(c.Context(), c.InOrStdin())
		}
		r, err := twice(c.Context(), ask, func(r *runtimeapi.ListPodSandboxStatsResponse) bool {
			return !slices.ContainsFunc(r.GetStats(), func(s *runtimeapi.PodSandboxStats) bool { return s.GetLinux().GetCpu().GetUsageNanoCores() == nil })
		})
		if err != nil {
			return err
		}
		sortPods(r.GetStats(), by)
		return a.Show(c.OutOrStdout(), r, topTable(a, r.GetStats()))
	})
	cmd.Long = `Ready pods by what they use: CPU in cores, memory as the working set. On a terminal the table is live;
c and m sort by CPU and memory, q ends it. Elsewhere, and with -o json or yaml, it is printed once.`
	cmd.Flags().StringVar(&by, "sort", by, "cpu or memory")
	cmd.Flags().DurationVar(&every, "interval", every, "time between two looks")
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions([]string{"cpu", "memory"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// live is a table that is drawn again and again.
type live struct {
	a     *cli.App
	by    string
	every time.Duration
	ask   func() (*runtimeapi.ListPodSandboxStatsResponse, error)
	out   io.Writer
	last  []*runtimeapi.PodSandboxStats
}

const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // a screen of our own, without a cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
)

// run draws until ctx ends or the user presses q.
func (l *live) run(ctx context.Context, in io.Reader) error {
	restore, err := cli.RawMode(in, true)
	if err != nil {
		return err
	}
	defer restore()
	if err := l.look(); err != nil {
		return err // on the screen where the user reads it
	}
	_, _ = io.WriteString(l.out, enterScreen)
	defer func() { _, _ = io.WriteString(l.out, leaveScreen) }()
	pressed := keys(in)
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	resized := cli.WatchSize(ctx, l.out)
	for {
		if size, ok := cli.Terminal(l.out); ok {
			if _, err := io.WriteString(l.out, l.screen(size, time.Now())); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := l.look(); err != nil && ctx.Err() == nil {
				return err
			}
		case _, ok := <-resized:
			if !ok {
				resized = nil
			}
		case k, ok := <-pressed:
			switch {
			case !ok:
				pressed = nil
			case k == 'q':
				return nil
			case k == 'c':
				l.by = "cpu"
			case k == 'm':
				l.by = "memory"
			}
		}
	}
}

func (l *live) look() error {
	r, err := l.ask()
	if err == nil {
		l.last = r.GetStats()
	}
	return err
}

// keys passes on what is typed; the goroutine ends with the program.
func keys(in io.Reader) <-chan byte {
	out := make(chan byte)
	go func() {
		defer close(out)
		var b [1]byte
		for {
			if n, err := in.Read(b[:]); err != nil || n == 0 {
				return
			}
			out <- b[0]
		}
	}()
	return out
}

// screen is one drawing: a line of sums, and as much of the table as fits.
func (l *live) screen(size cli.Size, now time.Time) string {
	var cpu, memory uint64
	for _, s := range l.last {
		cpu += s.GetLinux().GetCpu().GetUsageNanoCores().GetValue()
		memory += s.GetLinux().GetMemory().GetWorkingSetBytes().GetValue()
	}
	sortPods(l.last, l.by)
	lines := []string{fmt.Sprintf("%s  %d pods  %.3f cores  %s  by %s (c, m, q)", now.Format("15:04:05"), len(l.last), float64(cpu)/1e9, cli.Bytes(memory), l.by)}
	lines = append(lines, strings.Split(strings.TrimSuffix(topTable(l.a, l.last).Plain(), "\n"), "\n")...)
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, line := range lines[:min(len(lines), max(size.Rows-1, 1))] {
		if r := []rune(line); len(r) > size.Cols {
			line = string(r[:size.Cols])
		}
		if i == 1 && cli.Coloured(l.out) {
			line = "\x1b[1m" + line + "\x1b[0m"
		}
		b.WriteString(line + "\x1b[K\r\n")
	}
	b.WriteString("\x1b[J")
	return b.String()
}
