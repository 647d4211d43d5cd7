package sandbox

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

func TestValidate(t *testing.T) {
	type cfg = runtimeapi.PodSandboxConfig
	opt := func(o *runtimeapi.NamespaceOption) func(*cfg) {
		return func(c *cfg) { c.Linux.SecurityContext.NamespaceOptions = o }
	}
	port := func(p *runtimeapi.PortMapping) func(*cfg) {
		return func(c *cfg) { c.PortMappings = []*runtimeapi.PortMapping{p} }
	}
	for _, c := range []struct {
		name   string
		change func(*cfg)
		want   string // "" : valid
	}{
		{"good", nil, ""},
		{"no metadata", func(c *cfg) { c.Metadata = nil }, "no metadata"},
		{"no name", func(c *cfg) { c.Metadata.Name = "" }, "no name"},
		{"no namespace", func(c *cfg) { c.Metadata.Namespace = "" }, "no namespace"},
		{"name that splits plugin arguments", func(c *cfg) { c.Metadata.Name = "a;K8S_POD_UID=x" }, "semicolon"},
		{"hostname at the limit", func(c *cfg) { c.Hostname = strings.Repeat("a", 64) }, ""},
		{"hostname too long", func(c *cfg) { c.Hostname = strings.Repeat("a", 65) }, "longer than 64"},
		{"hostname with a line break", func(c *cfg) { c.Hostname = "a\nb" }, "hostname"},
		{"relative log directory", func(c *cfg) { c.LogDirectory = "logs" }, "log_directory"},
		{"target pid", opt(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET}), "for containers"},
		{"container network", opt(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_CONTAINER}), "network"},
		{"unknown ipc", opt(&runtimeapi.NamespaceOption{Ipc: 99}), "ipc"},
		{"host port out of range", port(&runtimeapi.PortMapping{HostPort: 65536, ContainerPort: 1}), "host port 65536"},
		{"container port missing", port(&runtimeapi.PortMapping{HostPort: 80}), "container port 0"},
		{"bad host IP", port(&runtimeapi.PortMapping{HostPort: 80, ContainerPort: 80, HostIp: "x"}), "host IP"},
		{"bad protocol", port(&runtimeapi.PortMapping{ContainerPort: 80, Protocol: 9}), "protocol"},
		{"DNS injection", func(c *cfg) { c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}} }, "dns_config"},
		{"climbing cgroup", func(c *cfg) { c.Linux.CgroupParent = "/a/../.." }, "climbs"},
		{"root cgroup", func(c *cfg) { c.Linux.CgroupParent = "/" }, "root"},
		{"node sysctl", func(c *cfg) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, "vm.swappiness"},
		{"pod sysctl on the node's network", func(c *cfg) {
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1"}
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}, "uses the node's"},
	} {
		err := Validate(newRecord(c.change).Config)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want InvalidArgument with %q", c.name, err, c.want)
		}
	}
	if err := Validate(nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("nil: %v", err)
	}
	err := Validate(newRecord(opt(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{}})).Config)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("user namespace without maps: %v", err)
	}
}

func TestStateSurvivesTheJournal(t *testing.T) {
	rec := newRecord(func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{"a": "b"} })
	rec.Handler = "h"
	rec.Facts = store.SandboxFacts{CreatedAt: time.Unix(1, 2).UTC(), CgroupParent: "/x", OwnsCgroup: true, Namespaces: map[string]string{"net": "/n"}}
	b, err := json.Marshal(&state{Rec: rec})
	if err != nil {
		t.Fatal(err)
	}
	got := newState()
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.Rec.Config, rec.Config) || !cmp.Equal(got.Rec.Facts, rec.Facts) || got.Rec.ID != rec.ID || got.Rec.Handler != "h" {
		t.Errorf("got %+v", got.Rec)
	}
}

func TestContents(t *testing.T) {
	if got := resolvConf(&runtimeapi.DNSConfig{}); len(got) != 0 {
		t.Errorf("empty DNS config: %q", got)
	}
	want := "search a b\nnameserver 1.1.1.1\nnameserver 2.2.2.2\noptions ndots:5 edns0\n"
	if got := resolvConf(&runtimeapi.DNSConfig{Servers: []string{"1.1.1.1", "2.2.2.2"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5", "edns0"}}); string(got) != want {
		t.Errorf("got %q", got)
	}
}

func TestCgroupParent(t *testing.T) {
	for _, c := range []struct {
		parent  string
		systemd bool
		want    string
	}{
		{"", false, "/berth/id"},
		{"/kubepods/pod1", false, "/kubepods/pod1"},
		{"kubepods/pod1/", false, "/kubepods/pod1"},
		{"kubepods-pod1.slice", true, "kubepods-pod1.slice"},
		{"", true, "berth.slice"},
	} {
		rec := store.Sandbox{ID: "id", Config: &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: c.parent}}}
		if got := cgroupParent(rec, c.systemd); got != c.want {
			t.Errorf("%q: got %q, want %q", c.parent, got, c.want)
		}
	}
}

func TestValidateSlice(t *testing.T) {
	limited := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}
	for _, c := range []struct {
		parent string
		set    *runtimeapi.LinuxContainerResources
		want   string
	}{
		{"", nil, ""},
		{"", &runtimeapi.LinuxContainerResources{}, ""},
		{"", limited, "share berth.slice"},
		{"kubepods-pod1.slice", limited, ""},
		{"/kubepods.slice/kubepods-pod1.slice", nil, ""},
		{"/kubepods/pod1", nil, "names no slice"},
		{".slice", nil, "names no slice"},
		{"-.slice", nil, "names no slice"},
		{"a-.slice", nil, "names no slice"},
		{"a--b.slice", nil, "names no slice"},
	} {
		err := validateSlice(&runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: c.parent, Overhead: c.set}})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q, %v: got %v, want %q", c.parent, c.set, err, c.want)
		}
	}
}

func TestReconcileTranscript(t *testing.T) {
	rec := func(id string, change func(*store.SandboxFacts)) store.Sandbox {
		f := store.SandboxFacts{BootID: "now", Namespaces: map[string]string{"net": "n", "ipc": "i"}}
		if change != nil {
			change(&f)
		}
		return store.Sandbox{ID: id, Facts: f}
	}
	full := []string{"net", "ipc"}
	for _, c := range []struct {
		name string
		recs []store.Sandbox
		w    world
		want string
	}{
		{"all is well", []store.Sandbox{rec("a", nil)},
			world{Pins: map[string][]string{"a": full}, Dirs: map[string]bool{"a": true}}, ""},
		{"namespace lost", []store.Sandbox{rec("a", nil)}, world{Pins: map[string][]string{"a": {"net"}}},
			"mark not ready a: its ipc namespace is gone\n"},
		{"reboot", []store.Sandbox{rec("a", func(f *store.SandboxFacts) { f.BootID = "before" })}, world{},
			"mark not ready a: the node was restarted\n"},
		{"reboot, attached", []store.Sandbox{rec("a", func(f *store.SandboxFacts) { f.BootID, f.Network.Attached = "before", true }),
			rec("b", func(f *store.SandboxFacts) {
				f.BootID, f.Network.Attached, f.StoppedAt = "before", true, time.Unix(1, 0)
			})}, world{},
			"mark not ready a: the node was restarted\nrelease network a: the node was restarted\nrelease network b: the node was restarted\n"},
		{"stopped already", []store.Sandbox{rec("a", func(f *store.SandboxFacts) { f.StoppedAt = time.Unix(1, 0) })}, world{}, ""},
		{"holder lost", []store.Sandbox{rec("a", func(f *store.SandboxFacts) { f.HolderPID = 7 })},
			world{Pins: map[string][]string{"a": full}}, "mark not ready a: the holder of its pid namespace is gone\n"},
		{"orphans", []store.Sandbox{rec("a", nil)},
			world{Pins: map[string][]string{"a": full, "c": {"net"}, "b": nil}, Dirs: map[string]bool{"b": true, "d": true},
				Groups: map[string]bool{"d": true}, Holders: map[string]int{"c": 9}},
			"kill holder c: process 9 of no known sandbox\ndetach network b: network of no known sandbox\n" +
				"detach network c: network of no known sandbox\ndetach network d: network of no known sandbox\nunpin namespaces b: pins of no known sandbox\n" +
				"unpin namespaces c: pins of no known sandbox\nremove cgroup d: cgroup of no known sandbox\n" +
				"remove files b: files of no known sandbox\nremove files d: files of no known sandbox\n"},
		{"an address is all that is left", []store.Sandbox{rec("a", nil)},
			world{Pins: map[string][]string{"a": full, "c": {"net"}}, Owed: map[string]bool{"a": true, "b": true, "c": true, "d": true}, Busy: map[string]bool{"d": true}},
			"detach network b: network of no known sandbox\ndetach network c: network of no known sandbox\nunpin namespaces c: pins of no known sandbox\n"},
		{"under way", []store.Sandbox{rec("a", nil)},
			world{Pins: map[string][]string{"b": full}, Dirs: map[string]bool{"b": true}, Busy: map[string]bool{"a": true, "b": true}}, ""},
	} {
		c.w.BootID = "now"
		var got strings.Builder
		for _, a := range reconcile(c.recs, c.w) {
			fmt.Fprintln(&got, a)
		}
		if d := cmp.Diff(c.want, got.String()); d != "" {
			t.Errorf("%s:\n%s", c.name, d)
		}
	}
}

func TestIsID(t *testing.T) {
	for s, want := range map[string]bool{strings.Repeat("a0", 32): true, strings.Repeat("A0", 32): false, "..": false, strings.Repeat("a", 63): false} {
		if isID(s) != want {
			t.Errorf("%q", s)
		}
	}
}

// BenchmarkReconcile1000 compares a node of a thousand pods, where nothing is wrong.
func BenchmarkReconcile1000(b *testing.B) {
	w := world{BootID: "boot", Pins: map[string][]string{}, Dirs: map[string]bool{}, Groups: map[string]bool{}, Holders: map[string]int{}}
	var recs []store.Sandbox
	for i := range 1000 {
		id := fmt.Sprintf("%064x", i)
		recs = append(recs, store.Sandbox{ID: id, Facts: store.SandboxFacts{BootID: "boot"}})
		w.Pins[id], w.Dirs[id], w.Groups[id] = []string{"net", "ipc", "uts"}, true, true
	}
	b.ReportAllocs()
	for b.Loop() {
		if got := reconcile(recs, w); len(got) != 0 {
			b.Fatalf("%d are wrong: %v", len(got), got[0])
		}
	}
}
