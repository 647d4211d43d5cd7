package pod

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/test/golden"
)

// fakeProc writes files as /proc has them.
func fakeProc(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestOwner(t *testing.T) {
	ids := []string{id, id2}
	for groups, want := range map[string]string{
		"0::/berth/" + id + "\n":                                                  id,
		"0::/berth/" + id + "/" + id2 + "/inner\n":                                id2,
		"12:pids:/berth/" + id + "\n0::/user.slice":                               id,
		"1:name=systemd:/kubepods.slice/pod1.slice/cri-berth-" + id2 + ".scope\n": id2,
		"0::/": "", "garbage": "", "0::/x" + id: "",
	} {
		if got := ownerOf(groups, ids); got != want {
			t.Errorf("%q: got %q, want %q", groups, got, want)
		}
	}
}

func TestProcesses(t *testing.T) {
	status := func(pid, parent, inside int, state string) string {
		return "Name:\tsh\nState:\t" + state + " (x)\nPPid:\t" + strconv.Itoa(parent) + "\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t" +
			strconv.Itoa(pid) + "\t" + strconv.Itoa(inside) + "\nThreads:\t3\nVmRSS:\t    64 kB\n"
	}
	root := fakeProc(t, map[string]string{
		"31/cgroup": "0::/berth/" + id2 + "\n", "31/status": status(31, 20, 1, "S"), "31/cmdline": "sh\x00-c\x00a b\x00",
		"32/cgroup": "0::/berth/" + id2 + "\n", "32/status": status(32, 31, 7, "Z"), "32/cmdline": "",
		"33/cgroup": "0::/berth/" + id2 + "\n", // ended meanwhile
		"34/cgroup": "0::/system.slice\n", "34/status": status(34, 1, 34, "R"), "34/cmdline": "other",
		"20/cgroup": "0::/\n", "20/status": status(20, 1, 20, "S"), "20/cmdline": "/bin/berth-shim\x00", "20/fd/0": "", "20/fd/1": "",
		"20/smaps_rollup": "0-1 ---p\nPss:  700 kB\nPrivate_Clean: 100 kB\nPrivate_Dirty: 400 kB\n",
		"uptime":          "1 1",
	})
	got, err := processesOf(root, []string{id, id2})
	if err != nil {
		t.Fatal(err)
	}
	want := []process{
		{PID: 31, Inside: 1, Parent: 20, UID: 1000, State: "S", RSS: 64 << 10, Threads: 3, Command: "sh -c a b", Object: id2},
		{PID: 32, Inside: 7, Parent: 31, UID: 1000, State: "Z", RSS: 64 << 10, Threads: 3, Command: "[sh]", Object: id2},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	golden.Outputs(t, "ps", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		for i := range got {
			got[i].Name = "web/app"
		}
		return a.Show(out, got, psTable(a, got))
	})
	found := shim{Container: id2, Name: "app", Init: 31, Health: shimHealth{Protocol: 3}}
	found.look(root)
	if found.PID != 20 || found.Pss != 700<<10 || found.Private != 500<<10 || found.Files != 2 || found.state() != "ok" {
		t.Errorf("got %+v", found)
	}
	stray := shim{Container: id, Name: "lost", Init: 34}
	stray.look(root)
	mute := shim{Container: id, Name: "mute", Init: 31, Health: shimHealth{Error: "no answer"}}
	all := []shim{found, stray, mute}
	golden.Outputs(t, "shims", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, all, shimTable(a, all))
	})
}

func TestStats(t *testing.T) {
	u := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
	stats := &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{
		{Attributes: &runtimeapi.ContainerAttributes{Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: "app"}},
			Cpu: &runtimeapi.CpuUsage{UsageNanoCores: u(123456789)}, Memory: &runtimeapi.MemoryUsage{WorkingSetBytes: u(3 << 20), RssBytes: u(2 << 20)},
			WritableLayer: &runtimeapi.FilesystemUsage{UsedBytes: u(4096), InodesUsed: u(2)}},
		{Attributes: &runtimeapi.ContainerAttributes{Id: id2, Metadata: &runtimeapi.ContainerMetadata{Name: "new"}}},
	}}
	golden.Outputs(t, "stats", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, stats, statsTable(a, stats.GetStats()))
	})
	pod := func(name string, cpu, memory uint64) *runtimeapi.PodSandboxStats {
		return &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{Id: id, Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "n"}},
			Linux: &runtimeapi.LinuxPodSandboxStats{Cpu: &runtimeapi.CpuUsage{UsageNanoCores: u(cpu)}, Memory: &runtimeapi.MemoryUsage{WorkingSetBytes: u(memory)},
				Process: &runtimeapi.ProcessUsage{ProcessCount: u(2)}, Network: &runtimeapi.NetworkUsage{DefaultInterface: &runtimeapi.NetworkInterfaceUsage{RxBytes: u(10), TxBytes: u(20)}}}}
	}
	pods := &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{pod("idle", 0, 9<<20), pod("busy", 5e8, 1<<20), pod("also", 5e8, 2<<20)}}
	for by, want := range map[string]string{"cpu": "also busy idle", "memory": "idle also busy"} {
		sortPods(pods.GetStats(), by)
		got := ""
		for _, p := range pods.GetStats() {
			got += " " + p.GetAttributes().GetMetadata().GetName()
		}
		if got != " "+want {
			t.Errorf("by %s:%s, want %s", by, got, want)
		}
	}
	sortPods(pods.GetStats(), "cpu")
	golden.Outputs(t, "top", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, pods, topTable(a, pods.GetStats()))
	})
}

func TestTree(t *testing.T) {
	tree := []treePod{{Pod: somePods().GetItems()[0], Containers: someContainers().GetContainers()}, {Pod: somePods().GetItems()[1], Containers: []*runtimeapi.Container{}}}
	golden.Outputs(t, "tree", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, tree, treeTable(a, tree, now))
	})
}
