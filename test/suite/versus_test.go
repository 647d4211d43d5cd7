package suite

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

// TestIntegrationVersusContainerd prints what logs cost here and under
// containerd, whose programs BERTH_TEST_CONTAINERD names a directory of: in turns,
// one container that writes a million lines of 100 bytes. It judges nothing.
func TestIntegrationVersusContainerd(t *testing.T) {
	programs := os.Getenv("BERTH_TEST_CONTAINERD")
	if programs == "" {
		t.Skip("set BERTH_TEST_CONTAINERD to a directory with containerd and containerd-shim-runc-v2")
	}
	n := open(t)
	if n.own == nil {
		t.Skip("needs a daemon that the suite owns")
	}
	peer, pid := n.containerd(t, programs)
	for round := range 4 {
		mine, theirs := n.logRun(t, func(id string) []int { return []int{n.own.PID(), n.own.Shims()[id]} }),
			peer.logRun(t, func(string) []int { return append(children(pid, "containerd-shim"), pid) })
		if round > 0 { // the first one warms up
			t.Logf("round %d: berth %v; containerd %v", round, mine, theirs)
		}
	}
}

// logCost is the cost of a log.
type logCost struct {
	took, cpu time.Duration // until the writer's end; of daemon and shim until the log was complete
	bytes     int64
}

func (c logCost) String() string {
	return fmt.Sprintf("%.1f MB/s written, %.2f s of CPU", float64(c.bytes)/1e6/c.took.Seconds(), c.cpu.Seconds())
}

// logRun runs the writer in a pod of its own. pids are the runtime's processes.
func (n *node) logRun(t *testing.T, pids func(id string) []int) logCost {
	t.Helper()
	const lines = 1_000_000
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}
	})
	c := p.create(t, shell(fmt.Sprintf("yes %s | head -n %d", strings.Repeat("x", 99), lines)))
	all := pids(c.id)
	before := cpuOf(t, all)
	begun := time.Now()
	c.start(t)
	st := c.wait(t)
	cost := logCost{took: time.Unix(0, st.GetFinishedAt()).Sub(begun), bytes: lines * 100}
	eventually(t, "the log is complete", func() bool {
		b, err := os.ReadFile(c.logFile())
		return err == nil && strings.Count(string(b), "\n") == lines
	})
	cost.cpu = cpuOf(t, all) - before
	p.remove(t)
	must(t, os.Remove(c.logFile()))
	return cost
}

// cpuOf is the time that processes have run. Those that have ended count with
// what is known of them before.
func cpuOf(t *testing.T, pids []int) (sum time.Duration) {
	t.Helper()
	for _, pid := range pids {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, f := range tasks {
			b, _ := os.ReadFile(f)
			if f := strings.Fields(string(b)); len(f) > 0 {
				ns, err := strconv.ParseInt(f[0], 10, 64)
				must(t, err)
				sum += time.Duration(ns)
			}
		}
	}
	return sum
}

// children finds programs of that name that serve the containerd of a process.
func children(pid int, name string) (out []int) {
	ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		b, _ := os.ReadFile(p + "/cmdline")
		program, _, _ := strings.Cut(string(b), "\x00")
		if at, _ := os.Readlink(p + "/ns/net"); strings.Contains(program, name) && at == ns {
			if n, err := strconv.Atoi(filepath.Base(p)); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// containerdConfig takes the directory and the path of runc.
const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "%[1]s/sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.berth.test/pause:1"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "%[1]s/hosts"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "%[2]s"
`

// containerd starts one in namespaces of its own and returns it with its pid.
func (n *node) containerd(t *testing.T, programs string) (*node, int) {
	t.Helper()
	space, err := harness.NewSpace()
	must(t, err)
	dir, err := os.MkdirTemp("", "ctrd-") // Unix socket paths are short
	must(t, err)
	found, err := harness.Find(*binDir)
	must(t, err)
	must(t, os.WriteFile(dir+"/config.toml", fmt.Appendf(nil, containerdConfig, dir, found.Runc), 0o600))
	must(t, os.Mkdir(dir+"/hosts", 0o755))
	cmd := space.Command(context.Background(), filepath.Join(programs, "containerd"), "--config", dir+"/config.toml")
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	logs, err := os.Create(dir + "/log")
	must(t, err)
	cmd.Stdout, cmd.Stderr = logs, logs
	proc, err := harness.Launch("containerd", cmd)
	must(t, err)
	peer := &node{netns: space.NetNS(), images: n.images}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(dir + "/log")
			t.Logf("end of containerd's log:\n%s", b[max(0, len(b)-4096):])
		}
		_ = proc.End(syscall.SIGTERM)
		_ = logs.Close()
		must(t, space.Close())
		must(t, os.RemoveAll(dir))
	})
	peer.reg, err = images.Serve(n.images, harness.ListenIn(peer.netns))
	must(t, err)
	t.Cleanup(func() { peer.reg.Close() })
	must(t, peer.reg.WriteHosts(dir+"/hosts"))
	conn, err := grpc.NewClient("unix://"+dir+"/sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	peer.rt, peer.im = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	eventually(t, "containerd serves", func() bool {
		_, err := peer.rt.Version(t.Context(), &runtimeapi.VersionRequest{})
		return err == nil
	})
	return peer, cmd.Process.Pid
}
