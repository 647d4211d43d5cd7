package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const vendorFile = `{"cdiVersion": "0.6.0", "kind": "vendor.com/thing",
"containerEdits": {"env": ["THING=yes"]},
"devices": [
 {"name": "one", "containerEdits": {
   "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/null", "permissions": "rw"}],
   "mounts": [{"hostPath": "/etc", "containerPath": "/thing", "options": ["ro", "bind"]}],
   "hooks": [{"hookName": "createContainer", "path": "/bin/true"}]}},
 {"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-thing"}]}}]}`

func dirWith(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRequested(t *testing.T) {
	c := &runtimeapi.ContainerConfig{
		CDIDevices: []*runtimeapi.CDIDevice{{Name: "v.com/x=2"}, {Name: "v.com/x=1"}},
		Annotations: map[string]string{
			"cdi.k8s.io/b": "v.com/x=1,v.com/y=0", "cdi.k8s.io/a": "v.com/z=9", "other": "not a device",
		},
	}
	got, err := Requested(c)
	if want := []string{"v.com/x=2", "v.com/x=1", "v.com/z=9", "v.com/y=0"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, bad := range []*runtimeapi.ContainerConfig{
		{CDIDevices: []*runtimeapi.CDIDevice{{Name: "gpu"}}},
		{Annotations: map[string]string{"cdi.k8s.io/a": "v.com/x=1, v.com/x=2"}},
		{Annotations: map[string]string{"cdi.k8s.io/a": ""}},
	} {
		if _, err := Requested(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if got, err := Requested(nil); err != nil || got != nil {
		t.Errorf("nothing asked: %q, %v", got, err)
	}
}

func TestInject(t *testing.T) {
	dir := dirWith(t, map[string]string{"vendor.json": vendorFile})
	doc := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	if err := Inject([]string{dir}, doc, []string{"vendor.com/thing=one"}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(doc.Process.Env, "THING=yes") {
		t.Errorf("environment %q", doc.Process.Env)
	}
	if d := doc.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/thing" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("devices %+v", d)
	}
	if r := doc.Linux.Resources.Devices; len(r) != 1 || !r[0].Allow || r[0].Access != "rw" {
		t.Errorf("device rules %+v", r)
	}
	if m := doc.Mounts; len(m) != 1 || m[0].Destination != "/thing" {
		t.Errorf("mounts %+v", m)
	}
	if h := doc.Hooks; h == nil || len(h.CreateContainer) != 1 {
		t.Errorf("hooks %+v", h)
	}
}

func TestInjectRefuses(t *testing.T) {
	dir := dirWith(t, map[string]string{"vendor.json": vendorFile, "bad.json": "{"})
	for _, c := range []struct {
		dirs         []string
		device, want string
	}{
		{nil, "vendor.com/thing=one", "cdi_spec_dirs"},
		{[]string{dir}, "vendor.com/thing=two", "vendor.com/thing=two"},
		{[]string{dir}, "vendor.com/thing=two", "bad.json"},
		{[]string{dir}, "vendor.com/thing=gone", "/dev/no-such-thing"},
		{[]string{t.TempDir()}, "vendor.com/thing=one", "unresolvable"},
	} {
		err := Inject(c.dirs, &specs.Spec{}, []string{c.device})
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s in %q: %v, want %q", c.device, c.dirs, err, c.want)
		}
	}
	if err := Inject(nil, nil, nil); err != nil {
		t.Errorf("nothing asked: %v", err)
	}
}
