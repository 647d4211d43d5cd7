package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/test/terminal"
)

// asBerthctl makes the test program berthctl: tests run it in a terminal.
const asBerthctl = "BERTH_TEST_AS_BERTHCTL"

func TestMain(m *testing.M) {
	if os.Getenv(asBerthctl) != "" {
		main()
	}
	os.Exit(m.Run())
}

// fakeDaemon answers as the tests tell it.
type fakeDaemon struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	admin.UnimplementedAdminServer
	pull  chan *admin.PullImageEvent
	stats func() []*runtimeapi.PodSandboxStats
}

func (f *fakeDaemon) PullImage(_ *admin.PullImageRequest, out grpc.ServerStreamingServer[admin.PullImageEvent]) error {
	for e := range f.pull {
		if err := out.Send(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeDaemon) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: f.stats()}, nil
}

// serve returns the socket of the fake.
func (f *fakeDaemon) serve(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, f)
	admin.RegisterAdminServer(s, f)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return socket
}

func inTerminal(t *testing.T, socket string, args ...string) *terminal.Terminal {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return terminal.Start(t, terminal.Config{Cols: "100", Rows: "12", Env: []string{asBerthctl + "=1", "NO_COLOR="},
		Args: append([]string{self, "--address", socket, "--admin-address", socket}, args...)})
}

func whole(screen string) string { return screen }

// table is a screen without the first line, which has the time.
func table(screen string) string {
	_, rest, _ := strings.Cut(screen, "\n")
	return rest
}

// The bars of a pull are drawn in place, and stay.
func TestPullInTerminal(t *testing.T) {
	progress := func(have, have2 int64, phase, phase2 string) *admin.PullImageEvent {
		return &admin.PullImageEvent{Progress: &admin.PullProgress{Image: "r.test/app:1", Layers: []*admin.LayerProgress{
			{Digest: "sha256:" + strings.Repeat("a", 64), Size: 4 << 20, Have: have, Phase: phase},
			{Digest: "sha256:" + strings.Repeat("b", 64), Size: 2 << 20, Have: have2, Phase: phase2},
		}}}
	}
	f := &fakeDaemon{pull: make(chan *admin.PullImageEvent)}
	x := inTerminal(t, f.serve(t), "images", "pull", "r.test/app:1")
	f.pull <- progress(1<<20, 0, "downloading", "waiting")
	x.Await("1.0 MiB")
	f.pull <- progress(3<<20, 1<<20, "downloading", "downloading")
	x.Golden("pull-middle.screen", whole)
	f.pull <- progress(4<<20, 2<<20, "done", "done")
	last := progress(4<<20, 2<<20, "done", "done")
	last.ImageRef = "sha256:" + strings.Repeat("c", 64)
	f.pull <- last
	close(f.pull)
	x.Golden("pull-end.screen", whole)
}

// The table of top is live, takes keys, fits the terminal, and leaves the
// screen as it was.
func TestTopInTerminal(t *testing.T) {
	pods := func() (all []*runtimeapi.PodSandboxStats) {
		for i := range uint64(12) {
			all = append(all, &runtimeapi.PodSandboxStats{
				Attributes: &runtimeapi.PodSandboxAttributes{Id: fmt.Sprintf("%064d", i), Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprintf("pod-%d", i), Namespace: "shop"}},
				Linux: &runtimeapi.LinuxPodSandboxStats{
					Cpu:    &runtimeapi.CpuUsage{UsageNanoCores: &runtimeapi.UInt64Value{Value: i * 1e8}},
					Memory: &runtimeapi.MemoryUsage{WorkingSetBytes: &runtimeapi.UInt64Value{Value: (20 - i) << 20}},
				},
			})
		}
		return all
	}
	x := inTerminal(t, (&fakeDaemon{stats: pods}).serve(t), "top", "--interval", "1h")
	x.Golden("top-cpu.screen", table)
	if s := x.Screen(); !strings.Contains(s, "12 pods  6.600 cores  174.0 MiB  by cpu") {
		t.Errorf("sums:\n%s", s)
	}
	if s := x.Coloured(); !strings.Contains(s, "\x1b[1m") {
		t.Errorf("the header is not bold:\n%q", s)
	}
	x.Keys("m")
	x.Golden("top-memory.screen", table)
	x.Resize("40", "6")
	x.Until("a table that fits", func(s string) bool {
		return strings.Count(strings.TrimSpace(s), "\n") == 4 && strings.Contains(s, "pod-2") && !strings.Contains(s, "pod-3")
	})
	x.Keys("q")
	x.Until("the screen from before", func(s string) bool { return strings.TrimSpace(s) == "exit code 0" })
}
