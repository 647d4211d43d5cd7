package pod

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// ratePause is what the daemon needs between two calls to tell a rate, and a
// little more.
const ratePause = 1100 * time.Millisecond

// twice asks once, and again after ratePause when rates are missing: the first
// call after a while has none.
func twice[T any](ctx context.Context, ask func() (T, error), complete func(T) bool) (T, error) {
	r, err := ask()
	if err != nil || complete(r) {
		return r, err
	}
	select {
	case <-ctx.Done():
		return r, ctx.Err()
	case <-time.After(ratePause):
	}
	return ask()
}

func statsCommand(a *cli.App) *cobra.Command {
	cmd := a.Command("stats [CONTAINER...]", "What containers use", cobra.ArbitraryArgs, func(c *cobra.Command, cl cli.Clients, args []string) error {
		var wanted []string
		for _, name := range args {
			k, err := cl.Container(c.Context(), name)
			if err != nil {
				return err
			}
			wanted = append(wanted, k.GetId())
		}
		r, err := twice(c.Context(), func() (*runtimeapi.ListContainerStatsResponse, error) {
			return cl.ListContainerStats(c.Context(), &runtimeapi.ListContainerStatsRequest{})
		}, func(r *runtimeapi.ListContainerStatsResponse) bool {
			return !slices.ContainsFunc(r.GetStats(), func(s *runtimeapi.ContainerStats) bool { return s.GetCpu().GetUsageNanoCores() == nil })
		})
		if err != nil {
			return err
		}
		if len(wanted) > 0 {
			r.Stats = slices.DeleteFunc(r.GetStats(), func(s *runtimeapi.ContainerStats) bool { return !slices.Contains(wanted, s.GetAttributes().GetId()) })
		}
		return a.Show(c.OutOrStdout(), r, statsTable(a, r.GetStats()))
	})
	cmd.Long = "What containers that are created or running use now. CPU is in cores, the average of the last second or more;\nmemory is the working set. See docs/statistics.md for where the figures are from."
	return cli.Completed(cmd, a.Containers(0))
}

func statsTable(a *cli.App, all []*runtimeapi.ContainerStats) cli.Table {
	t := cli.Table{Header: "ID NAME CPU MEMORY WRITABLE RSS SWAP INODES", Wide: 3}
	for _, s := range all {
		at := s.GetAttributes()
		t.Rows = append(t.Rows, []string{a.ID(at.GetId()), at.GetMetadata().GetName(), cores(s.GetCpu()), amount(s.GetMemory().GetWorkingSetBytes()),
			amount(s.GetWritableLayer().GetUsedBytes()), amount(s.GetMemory().GetRssBytes()), amount(s.GetSwap().GetSwapUsageBytes()),
			count(s.GetWritableLayer().GetInodesUsed())})
	}
	return t
}

// cores writes a rate of CPU time; "-" when it is not known yet.
func cores(c *runtimeapi.CpuUsage) string {
	if c.GetUsageNanoCores() == nil {
		return "-"
	}
	return fmt.Sprintf("%.3f", float64(c.GetUsageNanoCores().GetValue())/1e9)
}

func amount(v *runtimeapi.UInt64Value) string {
	if v == nil {
		return "-"
	}
	return cli.Bytes(v.GetValue())
}

func count(v *runtimeapi.UInt64Value) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprint(v.GetValue())
}

// sortPods orders pods by what they use most of.
func sortPods(all []*runtimeapi.PodSandboxStats, by string) {
	slices.SortStableFunc(all, func(x, y *runtimeapi.PodSandboxStats) int {
		a, b := x.GetLinux(), y.GetLinux()
		cpu := cmp.Compare(b.GetCpu().GetUsageNanoCores().GetValue(), a.GetCpu().GetUsageNanoCores().GetValue())
		memory := cmp.Compare(b.GetMemory().GetWorkingSetBytes().GetValue(), a.GetMemory().GetWorkingSetBytes().GetValue())
		if by == "memory" {
			cpu, memory = memory, cpu
		}
		m, n := x.GetAttributes().GetMetadata(), y.GetAttributes().GetMetadata()
		return cmp.Or(cpu, memory, cmp.Compare(m.GetNamespace(), n.GetNamespace()), cmp.Compare(m.GetName(), n.GetName()))
	})
}

func topTable(a *cli.App, all []*runtimeapi.PodSandboxStats) cli.Table {
	t := cli.Table{Header: "ID NAMESPACE NAME CPU MEMORY PROCESSES RECEIVED SENT"}
	for _, s := range all {
		at, l := s.GetAttributes(), s.GetLinux()
		net := l.GetNetwork().GetDefaultInterface()
		t.Rows = append(t.Rows, []string{a.ID(at.GetId()), at.GetMetadata().GetNamespace(), at.GetMetadata().GetName(), cores(l.GetCpu()),
			amount(l.GetMemory().GetWorkingSetBytes()), count(l.GetProcess().GetProcessCount()), amount(net.GetRxBytes()), amount(net.GetTxBytes())})
	}
	return t
}
