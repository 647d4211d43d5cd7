package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

func records(n int) []store.Container {
	out := make([]store.Container, n)
	for i := range out {
		out[i] = store.Container{ID: fmt.Sprintf("%064x", i), SandboxID: fmt.Sprintf("%02x%062x", i%10, 0),
			Config: &runtimeapi.ContainerConfig{Labels: map[string]string{"app": fmt.Sprint(i % 3), "all": "yes"}},
			Facts:  store.ContainerFacts{BootID: "b", CreatedAt: time.Unix(int64(i), 0)}}
		switch i % 4 {
		case 1:
			out[i].Facts.StartedAt = time.Unix(1, 0)
		case 2:
			out[i].Facts.Exit = &store.Exit{}
		case 3:
			out[i].Facts.BootID = "earlier"
		}
	}
	return out
}

func TestFilterContainers(t *testing.T) {
	all := records(40)
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	cases := map[string]struct {
		f    *runtimeapi.ContainerFilter
		want int
	}{
		"nil":            {nil, 40},
		"empty":          {&runtimeapi.ContainerFilter{}, 40},
		"id":             {&runtimeapi.ContainerFilter{Id: all[7].ID}, 1},
		"unknown id":     {&runtimeapi.ContainerFilter{Id: "ff"}, 0},
		"sandbox prefix": {&runtimeapi.ContainerFilter{PodSandboxId: "03"}, 4},
		"created":        {&runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_CREATED)}, 10},
		"running":        {&runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}, 10},
		"exited":         {&runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_EXITED)}, 20},
		"label":          {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "0", "all": "yes"}}, 14},
		"no such label":  {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"none": ""}}, 0},
		"all together": {&runtimeapi.ContainerFilter{PodSandboxId: "01", LabelSelector: map[string]string{"app": "1"},
			State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}, 1},
	}
	for name, tc := range cases {
		if got := len(slices.Collect(filterContainers(all, tc.f, "b"))); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestFilterSandboxes(t *testing.T) {
	all := []store.Sandbox{
		{ID: "aa", Config: &runtimeapi.PodSandboxConfig{Labels: map[string]string{"x": "1"}}, Facts: store.SandboxFacts{BootID: "b"}},
		{ID: "ab", Config: &runtimeapi.PodSandboxConfig{}, Facts: store.SandboxFacts{BootID: "b", StoppedAt: time.Unix(1, 0)}},
		{ID: "bb", Config: &runtimeapi.PodSandboxConfig{}, Facts: store.SandboxFacts{BootID: "earlier"}},
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	gone := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	cases := []struct {
		f    *runtimeapi.PodSandboxFilter
		want string
	}{
		{nil, "aa ab bb"},
		{&runtimeapi.PodSandboxFilter{Id: "a"}, "aa ab"},
		{&runtimeapi.PodSandboxFilter{State: ready}, "aa"},
		{&runtimeapi.PodSandboxFilter{State: gone}, "ab bb"},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"x": "1"}}, "aa"},
	}
	for _, tc := range cases {
		var ids []string
		for s := range filterSandboxes(all, tc.f, "b") {
			ids = append(ids, s.Id)
		}
		if got := strings.Join(ids, " "); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.f, got, tc.want)
		}
	}
}

// BenchmarkListContainers1000 is a list with filters that all, some and no
// containers pass.
func BenchmarkListContainers1000(b *testing.B) {
	all := records(1000)
	for name, tc := range map[string]struct {
		f    *runtimeapi.ContainerFilter
		want int
	}{
		"all":     {nil, 1000},
		"sandbox": {&runtimeapi.ContainerFilter{PodSandboxId: all[3].SandboxID}, 100},
		"running": {&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}, 250},
		"label":   {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "none"}}, 0},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got := len(slices.Collect(filterContainers(all, tc.f, "b"))); got != tc.want {
					b.Fatalf("%d, want %d", got, tc.want)
				}
			}
		})
	}
}

func TestStopSignal(t *testing.T) {
	cases := []struct {
		asked  runtimeapi.Signal
		image  string
		want   string
		number syscall.Signal
	}{
		{0, "", "SIGTERM", 15},
		{0, "SIGINT", "SIGINT", 2},
		{0, "quit", "SIGQUIT", 3},
		{0, "9", "SIGKILL", 9},
		{0, "37", "SIGRTMIN+3", 37},
		{0, "64", "SIGRTMAX", 64},
		{0, "SIGRTMIN+3", "SIGRTMIN+3", 37},
		{runtimeapi.Signal_SIGNAL_SIGHUP, "SIGINT", "SIGHUP", 1},
		{runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "", "SIGRTMIN+3", 37},
		{runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS2, "", "SIGRTMAX-2", 62},
	}
	for _, tc := range cases {
		name, err := stopSignal(tc.asked, tc.image)
		if err != nil || name != tc.want {
			t.Errorf("%v %q: %q, %v", tc.asked, tc.image, name, err)
			continue
		}
		if n, err := signalNumber(name); err != nil || n != tc.number {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		if tc.asked != 0 && criSignal(name) != tc.asked {
			t.Errorf("%s does not come back: %v", name, criSignal(name))
		}
	}
	for _, bad := range []string{"SIGNOPE", "0", "99", "33", "SIGRTMIN+31", "-1"} {
		if name, err := stopSignal(0, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v", bad, name, err)
		}
	}
	// Every signal of the API is understood.
	for n := range runtimeapi.Signal_name {
		if name, err := stopSignal(runtimeapi.Signal(n), ""); err != nil {
			t.Error(err)
		} else if _, err := signalNumber(name); err != nil {
			t.Error(err)
		}
	}
}

func TestExitReason(t *testing.T) {
	now := time.Unix(5, 0)
	cases := []struct {
		x    shim.Exit
		want string
		code int32
	}{
		{shim.Exit{}, "Completed", 0},
		{shim.Exit{Code: 1}, "Error", 1},
		{shim.Exit{Code: 137, Signal: 9}, "Error", 137},
		{shim.Exit{Code: 137, OOMKilled: true}, "OOMKilled", 137},
		{shim.Exit{OOMKilled: true}, "OOMKilled", 0},
		{shim.Exit{Lost: true}, "ContainerStatusUnknown", 255},
	}
	for _, tc := range cases {
		if got := exitFacts(tc.x, now); got.Reason != tc.want || got.Code != tc.code || got.FinishedAt != now {
			t.Errorf("%+v: %+v", tc.x, got)
		}
	}
}

func TestLegality(t *testing.T) {
	pod := store.Sandbox{Facts: store.SandboxFacts{BootID: "b"}}
	stopped := store.Sandbox{Facts: store.SandboxFacts{BootID: "b", StoppedAt: time.Unix(1, 0)}}
	created := store.Container{Facts: store.ContainerFacts{BootID: "b"}}
	running := created
	running.Facts.StartedAt = time.Unix(1, 0)
	exited := running
	exited.Facts.Exit = &store.Exit{}
	cases := []struct {
		c          store.Container
		p          store.Sandbox
		start, run bool
	}{
		{created, pod, true, false}, {created, stopped, false, false}, {running, pod, false, true}, {exited, pod, false, false},
	}
	for i, tc := range cases {
		if got := canStart(tc.c, tc.p, "b") == nil; got != tc.start {
			t.Errorf("%d: start %t", i, got)
		}
		if got := mustRun(tc.c, "b") == nil; got != tc.run {
			t.Errorf("%d: run %t", i, got)
		}
	}
}

func TestParseMounts(t *testing.T) {
	table := parseMounts([]byte(`22 1 0:21 / / rw shared:1 - ext4 /dev/a rw
23 22 0:22 / /mnt/a\040b rw master:2 - tmpfs t rw
24 22 0:23 / /mnt rw - tmpfs t rw
25 24 0:24 / /mnt/deep rw,noatime shared:7 master:3 - tmpfs t rw
26 25 0:25 / /mnt/deep rw - tmpfs over rw
junk
`))
	for path, want := range map[string]string{
		"/etc": "shared", "/mnt": "private", "/mnt/x": "private", "/mnt/a b/c": "slave", "/mnt/deep/er": "private", "/mntx": "shared",
	} {
		if got := propagationOf(table, path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte("22 1 0:21 / /a\\040 rw shared:1 - ext4 /dev/a rw\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { propagationOf(parseMounts(b), "/x/y") })
}

func TestReadInRoot(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "secret"), []byte("host"), 0o600))
	must(os.WriteFile(filepath.Join(root, "secret"), []byte("inside"), 0o600))
	must(os.WriteFile(filepath.Join(root, "etc/ok"), []byte("fine"), 0o600))
	must(os.WriteFile(filepath.Join(root, "etc/big"), make([]byte, 101), 0o600))
	must(os.Symlink("../../../../secret", filepath.Join(root, "etc/up")))
	must(os.Symlink("/proc/self/root/secret", filepath.Join(root, "etc/magic")))
	must(syscall.Mkfifo(filepath.Join(root, "etc/fifo"), 0o600))
	for path, want := range map[string]string{"etc/ok": "fine", "etc/up": "inside", "etc/magic": "", "etc/none": "", "none/none": ""} {
		if b, err := readInRoot(root, path, 100); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	for _, path := range []string{"etc/big", "etc/fifo", "etc"} {
		if b, err := readInRoot(root, path, 100); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
}

func TestMergeResources(t *testing.T) {
	type res = runtimeapi.LinuxContainerResources
	cases := map[string]struct{ old, given, want *res }{
		"nothing before": {nil, &res{CpuShares: 2}, &res{CpuShares: 2}},
		"others stay":    {&res{CpuShares: 2, CpusetCpus: "0"}, &res{CpuQuota: 5}, &res{CpuShares: 2, CpusetCpus: "0", CpuQuota: 5}},
		"swap follows":   {&res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &res{MemoryLimitInBytes: 20}, &res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 20}},
		"swap is raised": {&res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &res{MemoryLimitInBytes: 20}, &res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 20}},
		"swap suffices":  {&res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 50}, &res{MemoryLimitInBytes: 20}, &res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 50}},
		"swap unlimited": {&res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: -1}, &res{MemoryLimitInBytes: 20}, &res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: -1}},
		"unified": {&res{Unified: map[string]string{"a": "1", "b": "1"}}, &res{Unified: map[string]string{"b": "2"}},
			&res{Unified: map[string]string{"a": "1", "b": "2"}}},
	}
	for name, tc := range cases {
		if d := cmp.Diff(tc.want, mergeResources(tc.old, tc.given), protocmp.Transform()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestCgroupPaths(t *testing.T) {
	for _, tc := range []struct {
		parent  string
		systemd bool
		path    string
		spec    string
	}{
		{"/kubepods/pod1", false, "/kubepods/pod1/id", "/kubepods/pod1/id"},
		{"berth/x", false, "/berth/x/id", "/berth/x/id"},
		{"/a.slice/a-b.slice", true, "/a.slice/a-b.slice/cri-berth-id.scope", "a-b.slice:cri-berth:id"},
		{"kubepods-besteffort-pod1.slice", true, "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-berth-id.scope",
			"kubepods-besteffort-pod1.slice:cri-berth:id"},
	} {
		if p, s := cgroupPaths(tc.parent, "id", tc.systemd); p != tc.path || s != tc.spec {
			t.Errorf("%s: %s, %s", tc.parent, p, s)
		}
	}
}

// fakeProcess ends when told to, or when killed.
type fakeProcess struct {
	end    chan int32
	killed bool
}

func (p *fakeProcess) Wait(ctx context.Context) (int32, error) {
	select {
	case c := <-p.end:
		return c, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
func (p *fakeProcess) Kill(context.Context) error { p.killed = true; p.end <- 137; return nil }
func (p *fakeProcess) Close() error               { return nil }

func TestRunSync(t *testing.T) {
	limits := Limits{ExecOutputBytes: 10, ExecDrain: 20 * time.Millisecond, KillWait: 10 * time.Second}
	open := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	t.Run("capped and never blocked", func(t *testing.T) {
		r, w := open()
		p := &fakeProcess{end: make(chan int32, 1)}
		go func() {
			_, _ = w.Write(make([]byte, 1<<20)) // far more than a pipe holds
			w.Close()
			p.end <- 7
		}()
		got, err := runSync(t.Context(), execution{p, r, nil}, limits)
		if err != nil || got.ExitCode != 7 || len(got.Stdout) != 10 {
			t.Fatalf("%v, %v", got, err)
		}
	})
	t.Run("leftover child holds the pipe", func(t *testing.T) {
		r, w := open()
		if _, err := w.WriteString("said"); err != nil {
			t.Fatal(err)
		}
		p := &fakeProcess{end: make(chan int32, 1)}
		p.end <- 0
		patient := limits
		patient.ExecDrain = time.Second                                 // what was said is read in that time, on a busy machine too
		got, err := runSync(t.Context(), execution{p, r, nil}, patient) // w stays open
		if err != nil || string(got.Stdout) != "said" {
			t.Fatalf("%v, %v", got, err)
		}
	})
	t.Run("time-out", func(t *testing.T) {
		r, w := open()
		w.Close()
		p := &fakeProcess{end: make(chan int32, 1)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := runSync(ctx, execution{p, r, nil}, limits)
		if !errors.Is(err, context.DeadlineExceeded) || !p.killed {
			t.Fatalf("killed %t, %v", p.killed, err)
		}
	})
}

func TestHostFacts(t *testing.T) {
	h := hostOfStatus("Name:\tx\nCapEff:\t0000000001000000\nCapBnd:\t0000000000000003\nSeccomp:\t0\n")
	if !h.SeccompEnabled || h.RestrictOOMScoreAdj || strings.Join(h.Capabilities, " ") != "CAP_CHOWN CAP_DAC_OVERRIDE" {
		t.Fatalf("%+v", h)
	}
	if !KernelAtLeast("6.1.0-18-amd64", 5, 12) || KernelAtLeast("5.10.1", 5, 12) || KernelAtLeast("what", 1, 0) {
		t.Fatal("kernel versions")
	}
	if _, err := ProbeHost(); err != nil {
		t.Fatal(err)
	}
}

func TestFit(t *testing.T) {
	const half = replyBytes / 2
	for _, tc := range [][4]int{
		{1, 2, 1, 2}, {replyBytes + 5, 0, replyBytes, 0}, {5, replyBytes, 5, replyBytes - 5}, {replyBytes, replyBytes, half, half},
	} {
		if a, b := fit(make([]byte, tc[0]), make([]byte, tc[1])); len(a) != tc[2] || len(b) != tc[3] {
			t.Errorf("%v: %d, %d", tc, len(a), len(b))
		}
	}
}

// Who waits for an attachment is woken by one to its own container only, and
// finds one that was there before.
func TestAwaitAttached(t *testing.T) {
	s := &Streamer{}
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error, 1)
	go func() { waits <- s.AwaitAttached(ctx, "a") }()
	s.attached.enter("b")()
	leave := s.attached.enter("a")
	if err := <-waits; err != nil {
		t.Error(err)
	}
	if err := s.AwaitAttached(ctx, "a"); err != nil {
		t.Error(err)
	}
	leave()
	cancel()
	if err := s.AwaitAttached(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("after it has left: %v", err)
	}
}

// A pod's status names all its addresses, the first one apart, for as long as
// the pod has them.
func TestSandboxStatusNamesAddresses(t *testing.T) {
	for _, c := range []struct {
		ips, more []string
		boot      string
		ip        string
	}{
		{ips: []string{"10.0.0.7", "fd00::7", "10.1.0.7"}, boot: "now", ip: "10.0.0.7", more: []string{"fd00::7", "10.1.0.7"}},
		{ips: []string{"fd00::7"}, boot: "now", ip: "fd00::7"},
		{ips: []string{"10.0.0.7", "fd00::7"}, boot: "before"},
		{boot: "now"},
	} {
		rec := store.Sandbox{ID: "a", Config: &runtimeapi.PodSandboxConfig{}}
		rec.Facts.BootID, rec.Facts.Network.IPs = c.boot, c.ips
		got := sandboxStatus(rec, "now").GetNetwork()
		var more []string
		for _, ip := range got.GetAdditionalIps() {
			more = append(more, ip.GetIp())
		}
		if got.GetIp() != c.ip || !slices.Equal(more, c.more) {
			t.Errorf("%v of boot %q: %q and %q", c.ips, c.boot, got.GetIp(), more)
		}
	}
}

// TestDamageIsSuspected has an image checked, and repaired, when a container of it
// fails by damage or by what damage looks like.
func TestDamageIsSuspected(t *testing.T) {
	for err, want := range map[error]bool{
		fmt.Errorf("read record of layer x: layer.json: unexpected end of JSON input: %w", errdefs.ErrDataLoss): true,
		errors.New("exec /bin/sh: exec format error"):                                                           true,
		errdefs.ErrUnavailable: false,
	} {
		var got suspects
		c := &core{images: &got}
		c.suspect(t.Context(), store.Container{Facts: store.ContainerFacts{Image: store.ImageUse{ID: "i"}}}, err)
		if len(got.ids) != 0 != want {
			t.Errorf("%v: %v", err, got.ids)
		}
	}
}

type suspects struct {
	fakeImages
	ids []string
}

func (s *suspects) Suspect(_ context.Context, id string) { s.ids = append(s.ids, id) }
