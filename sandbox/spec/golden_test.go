package spec

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// base is a plain container in a pod with namespaces of its own, on a v1 node.
func base() Input {
	return Input{
		ID: "c1",
		Container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:feed", UserSpecifiedImage: "registry.test/app:1"},
			Command:  []string{"/bin/app"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources:       &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
			},
		},
		Sandbox: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "ns", Uid: "u1"},
			Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{}},
		},
		User: User{Groups: []uint32{0}, Home: "/root"},
		Pod: Pod{
			SandboxID: "s1", NetNS: "/run/berth/ns/s1/net", IPCNS: "/run/berth/ns/s1/ipc", UTSNS: "/run/berth/ns/s1/uts",
			PrivatePID: true, Hostname: "web-0",
			HostnamePath: "/run/berth/sandboxes/s1/hostname", HostsPath: "/run/berth/sandboxes/s1/hosts",
			ResolvPath: "/run/berth/sandboxes/s1/resolv.conf", ShmPath: "/run/berth/sandboxes/s1/shm",
		},
		Host: Host{
			SeccompEnabled: true, KernelVersion: "6.1.0-amd64", RecursiveReadOnly: true, Controllers: Controllers{SwapController: true, HugePageSizes: []string{"2MB"}}, Security: HostSecurity{Arch: "amd64"},
			AllDevices: []HostDevice{{HostPath: "/dev/kvm", Type: "c", Major: 10, Minor: 232, Mode: 0o660, GID: 104}},
		},
		Cgroup: Cgroup{CgroupsPath: "/kubepods/pod1/c1"},
	}
}

// TestBuildGolden compares each configuration with its golden file: base.golden
// is a whole specification, every other file the lines it takes away and adds.
func TestBuildGolden(t *testing.T) {
	plain := lines(t, base())
	for name, change := range goldenCases() {
		t.Run(name, func(t *testing.T) {
			in := base()
			change(&in)
			got := strings.Join(plain, "\n") + "\n"
			if name != "base" {
				got = difference(plain, lines(t, in))
			}
			compareGolden(t, name, got)
		})
	}
	if n := len(goldenCases()); n < 60 {
		t.Errorf("%d configurations, at least 60 are promised", n)
	}
}

// TestGoldenFilesHaveCases finds golden files that no case writes any more.
func TestGoldenFilesHaveCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.golden")
	if err != nil {
		t.Fatal(err)
	}
	cases := goldenCases()
	for _, f := range files {
		if _, ok := cases[strings.TrimSuffix(filepath.Base(f), ".golden")]; !ok {
			t.Errorf("%s belongs to no case", f)
		}
	}
}

// TestBuildLeavesInputAlone builds every configuration twice: a value shared
// with the first result would show.
func TestBuildLeavesInputAlone(t *testing.T) {
	for name, change := range goldenCases() {
		in := base()
		change(&in)
		first := lines(t, in)
		if d := cmp.Diff(first, lines(t, in)); d != "" {
			t.Errorf("%s: second build differs:\n%s", name, d)
		}
	}
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
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
		t.Errorf("specification differs from %s (-want +got):\n%s", file, d)
	}
}

func lines(t *testing.T, in Input) []string {
	t.Helper()
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	out := flatten("", v)
	order := make([]string, len(s.Mounts))
	for i, m := range s.Mounts {
		order[i] = m.Destination
	}
	return append(out, "mount order: "+strings.Join(order, " "))
}

// flatten writes one line per value, or per element of a list of objects.
func flatten(path string, v any) []string {
	switch v := v.(type) {
	case map[string]any:
		var out []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out = append(out, flatten(path+"/"+k, v[k])...)
		}
		return out
	case []any:
		if _, objects := first(v).(map[string]any); objects {
			var out []string
			for _, e := range v {
				out = append(out, fmt.Sprintf("%s[] %s", path, compact(e)))
			}
			return out
		}
	}
	return []string{path + " " + compact(v)}
}

func first(v []any) any {
	if len(v) == 0 {
		return nil
	}
	return v[0]
}

func compact(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func difference(old, now []string) string {
	var b strings.Builder
	for _, l := range old {
		if !slices.Contains(now, l) {
			fmt.Fprintln(&b, "-", l)
		}
	}
	for _, l := range now {
		if !slices.Contains(old, l) {
			fmt.Fprintln(&b, "+", l)
		}
	}
	return b.String()
}
