package nri

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// plain is the specification that plugins adjust here.
func plain() *specs.Spec {
	score, limit, shares := 100, int64(1<<20), uint64(2)
	return &specs.Spec{
		Version:     specs.Version,
		Annotations: map[string]string{"old": "a", "gone": "b"},
		Process: &specs.Process{
			Args: []string{"/bin/app"}, Env: []string{"PATH=/bin", "OLD=a", "GONE=b", "BARE"}, OOMScoreAdj: &score,
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 1, Soft: 1}},
		},
		Root: &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/data", Type: "bind", Source: "/old", Options: []string{"rbind"}},
			{Destination: "/gone", Type: "bind", Source: "/gone"},
			{Destination: "/data/below/it", Type: "bind", Source: "/below"},
		},
		Linux: &specs.Linux{
			Devices: []specs.LinuxDevice{{Path: "/dev/gone", Type: "c", Major: 1, Minor: 2}},
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Memory:  &specs.LinuxMemory{Limit: &limit, Swap: &limit}, CPU: &specs.LinuxCPU{Shares: &shares},
			},
			CgroupsPath: "/pod/c1",
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/net"}, {Type: specs.IPCNamespace, Path: "/ipc"}},
			Sysctl:      map[string]string{"net.old": "1"},
		},
	}
}

func host() Host {
	return Host{
		SwapController: true, HugePageSizes: []string{"2MB", "1GB"},
		InjectCDI: func(s *specs.Spec, names []string) error {
			s.Process.Env = append(s.Process.Env, "CDI="+strings.Join(names, ","))
			return nil
		},
		Propagation: func(source string) (string, error) { return strings.Trim(filepath.Dir(source), "/"), nil },
		BlockIO:     func(c string) (*specs.LinuxBlockIO, error) { return nil, fmt.Errorf("class %s is unknown", c) },
		RDT:         func(c string) (*specs.LinuxIntelRdt, error) { return &specs.LinuxIntelRdt{ClosID: c}, nil },
	}
}

// full asks for everything that can be had on a v1 node.
func full() *api.ContainerAdjustment {
	hook := func(p string) []*api.Hook {
		return []*api.Hook{{Path: p, Args: []string{"a"}, Env: []string{"E=1"}, Timeout: api.Int(3)}}
	}
	return &api.ContainerAdjustment{
		Annotations: map[string]string{"new": "n", "old": "o", "-gone": ""},
		Mounts: []*api.Mount{
			{Destination: "/data", Type: "bind", Source: "/shared/new", Options: []string{"rbind", "rslave"}},
			{Destination: "-/gone"},
		},
		Env:   []*api.KeyValue{{Key: "OLD", Value: "o"}, {Key: "NEW", Value: "n"}, {Key: "-GONE"}},
		Hooks: &api.Hooks{Prestart: hook("/1"), CreateRuntime: hook("/2"), CreateContainer: hook("/3"), StartContainer: hook("/4"), Poststart: hook("/5"), Poststop: hook("/6")},
		Linux: &api.LinuxContainerAdjustment{
			Devices: []*api.LinuxDevice{
				{Path: "/dev/new", Type: "c", Major: 5, Minor: 6, FileMode: api.FileMode(os.FileMode(0o600)), Uid: api.UInt32(uint32(7)), Gid: api.UInt32(uint32(8))},
				{Path: "-/dev/gone"},
			},
			Resources: &api.LinuxResources{
				Memory: &api.LinuxMemory{Limit: api.Int64(5), Reservation: api.Int64(4), Swap: api.Int64(6), KernelTcp: api.Int64(3),
					Swappiness: api.UInt64(uint64(9)), DisableOomKiller: api.Bool(true), UseHierarchy: api.Bool(true)},
				Cpu: &api.LinuxCPU{Shares: api.UInt64(uint64(10)), Quota: api.Int64(11), Period: api.UInt64(uint64(12)),
					RealtimeRuntime: api.Int64(13), RealtimePeriod: api.UInt64(uint64(14)), Cpus: "0", Mems: "1"},
				HugepageLimits: []*api.HugepageLimit{{PageSize: "2MB", Limit: 15}},
				RdtClass:       api.String("gold"),
				Devices:        []*api.LinuxDeviceCgroup{{Allow: true, Type: "b", Major: api.Int64(16), Minor: api.Int64(17), Access: "r"}},
				Pids:           &api.LinuxPids{Limit: 18},
			},
			CgroupsPath:   "/elsewhere/c1",
			OomScoreAdj:   api.Int(19),
			IoPriority:    &api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 2},
			SeccompPolicy: seccomp(),
			Namespaces:    []*api.LinuxNamespace{{Type: "network", Path: "/other"}, {Type: "-ipc"}, {Type: "uts", Path: "/uts"}},
			Sysctl:        map[string]string{"net.new": "2", "-net.old": ""},
			NetDevices:    map[string]*api.LinuxNetDevice{"eth7": {Name: "in0"}},
			Scheduler: &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_FIFO, Nice: 1, Priority: 2,
				Flags: []api.LinuxSchedulerFlag{api.LinuxSchedulerFlag_SCHED_FLAG_RECLAIM}, Runtime: 3, Deadline: 4, Period: 5},
			Rdt:          &api.LinuxRdt{ClosId: api.String("mine"), Schemata: api.RepeatedString([]string{"L3:0=f"}), EnableMonitoring: api.Bool(true)},
			MemoryPolicy: &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_BIND, Nodes: "0", Flags: []api.MpolFlag{api.MpolFlag_MPOL_F_STATIC_NODES}},
		},
		Rlimits:    []*api.POSIXRlimit{{Type: "nofile", Hard: 21, Soft: 20}},
		CDIDevices: []*api.CDIDevice{{Name: "v.com/x=1"}},
		Args:       []string{"/bin/other", "-v"},
	}
}

func seccomp() *api.LinuxSeccomp {
	return &api.LinuxSeccomp{
		DefaultAction: "SCMP_ACT_ERRNO", DefaultErrno: api.UInt32(uint32(38)), Architectures: []string{"SCMP_ARCH_X86_64"},
		Flags: []string{"SECCOMP_FILTER_FLAG_LOG"}, ListenerPath: "/l", ListenerMetadata: "m",
		Syscalls: []*api.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_ALLOW", ErrnoRet: api.UInt32(uint32(1)),
			Args: []*api.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "SCMP_CMP_EQ"}}}},
	}
}

func text(t *testing.T, s *specs.Spec) string {
	t.Helper()
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

func TestApplyGolden(t *testing.T) {
	for name, a := range map[string]*api.ContainerAdjustment{
		"nothing": {},
		// What the library hands out when plugins ask for nothing.
		"empty": {Hooks: &api.Hooks{}, Linux: &api.LinuxContainerAdjustment{Rdt: &api.LinuxRdt{},
			Resources: &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{}}}},
		"full": full(),
	} {
		t.Run(name, func(t *testing.T) {
			doc := plain()
			out, err := Apply(doc, a, host())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(plain(), doc); d != "" {
				t.Errorf("the specification was written to:\n%s", d)
			}
			got, file := text(t, out), filepath.Join("testdata", name+".golden")
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v (go test -rewrite makes it)", err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// refusedFields are never done, and inertFields change nothing by themselves
// here: the three settings of RDT replace what remove takes away.
func refusedFields() []string {
	return []string{"linux.resources.memory.kernel", "linux.resources.blockio_class", "linux.resources.unified"}
}

func inertFields() []string { return []string{"linux.rdt.remove", "linux.resources.rdt_class"} }

// TestEveryAdjustmentIsRead changes one field after the other of the full
// adjustment: the outcome must be another specification or an error. A field of
// a new version of the interface fails until it is decided about.
func TestEveryAdjustmentIsRead(t *testing.T) {
	whole, err := Apply(plain(), full(), host())
	if err != nil {
		t.Fatal(err)
	}
	before, seen := text(t, whole), map[string]bool{}
	eachField(full().ProtoReflect().Descriptor(), "", func(path []protoreflect.FieldDescriptor, name string) {
		seen[name] = true
		for _, inert := range inertFields() {
			if strings.HasPrefix(name, inert) {
				return
			}
		}
		a := full()
		if !change(a.ProtoReflect(), path) {
			for _, refused := range refusedFields() {
				if strings.HasPrefix(name, refused) {
					return // TestApplyRefuses has it
				}
			}
			t.Errorf("%s is not part of the full adjustment: decide what becomes of it", name)
			return
		}
		out, err := Apply(plain(), a, host())
		if err == nil && text(t, out) == before {
			t.Errorf("%s has no effect", name)
		}
	})
	if len(seen) < 80 {
		t.Errorf("only %d fields", len(seen))
	}
}

// eachField visits the scalar fields below a message, and lists and maps.
func eachField(d protoreflect.MessageDescriptor, prefix string, visit func([]protoreflect.FieldDescriptor, string), above ...protoreflect.FieldDescriptor) {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		path, name := append(append([]protoreflect.FieldDescriptor{}, above...), f), prefix+string(f.Name())
		if f.Message() == nil || f.IsMap() {
			visit(path, name)
			continue
		}
		eachField(f.Message(), name+".", visit, path...)
	}
}

// change alters the field at the end of path, in the first element of lists on
// the way; false when the message has no such field.
func change(m protoreflect.Message, path []protoreflect.FieldDescriptor) bool {
	f := path[0]
	// A message that wraps an optional value may hold its zero value.
	if !m.Has(f) && (f.Message() != nil || f.IsList()) {
		return false
	}
	if f.IsMap() {
		m.Mutable(f).Map().Set(protoreflect.ValueOfString("added").MapKey(), added(m.Mutable(f).Map(), f))
		return true
	}
	if f.IsList() {
		list := m.Mutable(f).List()
		if len(path) > 1 {
			return change(list.Get(0).Message(), path[1:])
		}
		list.Set(0, altered(list.Get(0), f))
		return true
	}
	if len(path) > 1 {
		return change(m.Mutable(f).Message(), path[1:])
	}
	m.Set(f, altered(m.Get(f), f))
	return true
}

func added(m protoreflect.Map, f protoreflect.FieldDescriptor) protoreflect.Value {
	if f.MapValue().Message() != nil {
		return m.NewValue()
	}
	return protoreflect.ValueOfString("x")
}

func altered(v protoreflect.Value, f protoreflect.FieldDescriptor) protoreflect.Value {
	switch x := v.Interface().(type) {
	case bool:
		return protoreflect.ValueOfBool(!x)
	case string:
		return protoreflect.ValueOfString(x + "x")
	case int32:
		return protoreflect.ValueOfInt32(x + 1)
	case int64:
		return protoreflect.ValueOfInt64(x + 1)
	case uint32:
		return protoreflect.ValueOfUint32(x + 1)
	case uint64:
		return protoreflect.ValueOfUint64(x + 1)
	case protoreflect.EnumNumber:
		return protoreflect.ValueOfEnum(x + 1)
	}
	panic(fmt.Sprintf("%s: %T", f.FullName(), v.Interface()))
}

func TestApplyRefuses(t *testing.T) {
	v2 := host()
	v2.CgroupV2 = true
	bare := Host{Propagation: host().Propagation}
	memory := func(m *api.LinuxMemory) *api.ContainerAdjustment {
		return &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Memory: m}}}
	}
	resources := func(r *api.LinuxResources) *api.ContainerAdjustment {
		return &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: r}}
	}
	for _, c := range []struct {
		want string
		kind error
		h    Host
		a    *api.ContainerAdjustment
	}{
		{"memory.kernel", errdefs.ErrNotImplemented, host(), memory(&api.LinuxMemory{Kernel: api.Int64(1)})},
		{"use_hierarchy", errdefs.ErrNotImplemented, host(), memory(&api.LinuxMemory{UseHierarchy: api.Bool(false)})},
		{"kernel_tcp", errdefs.ErrNotImplemented, v2, memory(&api.LinuxMemory{KernelTcp: api.Int64(1)})},
		{"swappiness", errdefs.ErrNotImplemented, v2, memory(&api.LinuxMemory{Swappiness: api.UInt64(uint64(1))})},
		{"disable_oom_killer", errdefs.ErrNotImplemented, v2, memory(&api.LinuxMemory{DisableOomKiller: api.Bool(true)})},
		{"memory.swap", errdefs.ErrNotImplemented, bare, memory(&api.LinuxMemory{Swap: api.Int64(1)})},
		{"realtime", errdefs.ErrNotImplemented, v2, resources(&api.LinuxResources{Cpu: &api.LinuxCPU{RealtimeRuntime: api.Int64(1)}})},
		{"unified", errdefs.ErrNotImplemented, host(), resources(&api.LinuxResources{Unified: map[string]string{"a": "b"}})},
		{"hugepage_limits", errdefs.ErrNotImplemented, bare, resources(&api.LinuxResources{HugepageLimits: []*api.HugepageLimit{{PageSize: "2MB"}}})},
		{"blockio_class", errdefs.ErrNotImplemented, bare, resources(&api.LinuxResources{BlockioClass: api.String("slow")})},
		{"slow", nil, host(), resources(&api.LinuxResources{BlockioClass: api.String("slow")})},
		{"rdt_class", errdefs.ErrNotImplemented, bare, resources(&api.LinuxResources{RdtClass: api.String("gold")})},
		{"CDI_devices", errdefs.ErrNotImplemented, bare, &api.ContainerAdjustment{CDIDevices: []*api.CDIDevice{{Name: "x"}}}},
		{"user namespace", errdefs.ErrNotImplemented, host(), &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "-user"}}}}},
		{"type of namespace", errdefs.ErrInvalidArgument, host(), &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "net"}}}}},
		{"oom_score_adj", errdefs.ErrInvalidArgument, host(), &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{OomScoreAdj: api.Int(1001)}}},
		{"soft limit", errdefs.ErrInvalidArgument, host(), &api.ContainerAdjustment{Rlimits: []*api.POSIXRlimit{{Type: "core", Soft: 2, Hard: 1}}}},
		{"rshared", errdefs.ErrInvalidArgument, host(), &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/a", Source: "/slave/x", Options: []string{"rshared"}}}}},
		{"rslave", errdefs.ErrInvalidArgument, host(), &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/a", Source: "/private/x", Options: []string{"rslave"}}}}},
		{"relabelling", errdefs.ErrNotImplemented, host(), &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/a", Options: []string{"relabel"}}}}},
		{"below the root", errdefs.ErrInvalidArgument, host(), &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "relative"}}}},
	} {
		_, err := Apply(plain(), c.a, c.h)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.want, err)
		} else if c.kind != nil && !strings.Contains(err.Error(), c.kind.Error()) {
			t.Errorf("%s is not %v: %v", c.want, c.kind, err)
		}
	}
}

// TestChanged says what of an adjustment becomes the container's resources.
func TestChanged(t *testing.T) {
	got := Changed(full())
	if got.GetCpuShares() != 10 || got.GetMemoryLimitInBytes() != 5 || got.GetMemorySwapLimitInBytes() != 6 || got.GetCpusetCpus() != "0" ||
		got.GetOomScoreAdj() != 19 || len(got.GetHugepageLimits()) != 1 {
		t.Errorf("%v", got)
	}
	if n := proto.Size(Changed(&api.ContainerAdjustment{})); n != 0 {
		t.Errorf("nothing asked: %d bytes", n)
	}
}

// TestChangedResources keeps the client's wish where plugins changed nothing.
func TestChangedResources(t *testing.T) {
	asked := toCRI(fromCRI(Changed(full())))
	back, err := changedResources(asked, fromCRI(asked))
	if err != nil || !proto.Equal(back.CRI, asked) {
		t.Errorf("%v, %v, want %v", back.CRI, err, asked)
	}
	for _, r := range []*api.LinuxResources{
		{HugepageLimits: []*api.HugepageLimit{{PageSize: "2MB"}}}, {BlockioClass: api.String("a")}, {RdtClass: api.String("a")},
		{Devices: []*api.LinuxDeviceCgroup{{}}}, {Memory: &api.LinuxMemory{Kernel: api.Int64(1)}},
		{Memory: &api.LinuxMemory{Swappiness: api.UInt64(uint64(1))}}, {Memory: &api.LinuxMemory{DisableOomKiller: api.Bool(true)}},
		{Memory: &api.LinuxMemory{UseHierarchy: api.Bool(true)}},
	} {
		if _, err := changedResources(nil, r); !errdefs.IsNotImplemented(err) {
			t.Errorf("%v: %v", r, err)
		}
	}
	rest, err := changedResources(nil, &api.LinuxResources{
		Memory: &api.LinuxMemory{Reservation: api.Int64(1), KernelTcp: api.Int64(2)},
		Cpu:    &api.LinuxCPU{RealtimeRuntime: api.Int64(3), RealtimePeriod: api.UInt64(uint64(4))}, Pids: &api.LinuxPids{Limit: 5},
	})
	if err != nil {
		t.Fatal(err)
	}
	to := &specs.LinuxResources{}
	Overlay(to, rest.Rest)
	if *to.Memory.Reservation != 1 || *to.Memory.KernelTCP != 2 || *to.CPU.RealtimeRuntime != 3 || *to.CPU.RealtimePeriod != 4 || *to.Pids.Limit != 5 {
		t.Errorf("%+v", to)
	}
}
