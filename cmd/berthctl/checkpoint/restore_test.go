package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/pod"
)

func running(id, name string) *runtimeapi.Container {
	return &runtimeapi.Container{Id: id, PodSandboxId: "p1", Metadata: &runtimeapi.ContainerMetadata{Name: name}, State: runtimeapi.ContainerState_CONTAINER_RUNNING}
}

func somePod() *fake {
	ended := running("c3", "init")
	ended.State = runtimeapi.ContainerState_CONTAINER_EXITED
	return &fake{
		pods:       []*runtimeapi.PodSandbox{{Id: "p1", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "shop"}}},
		containers: []*runtimeapi.Container{running("c1", "app"), running("c2", "side"), ended},
	}
}

func TestCreate(t *testing.T) {
	f := somePod()
	a := f.app(t)
	file := filepath.Join(t.TempDir(), "c.tar")
	if out, err := run(t, a, "create", "--timeout", "3s", "web/app", file); err != nil || out != file+"\n" {
		t.Fatal(out, err)
	}
	if f.container.GetContainerId() != "c1" || f.container.GetLocation() != file || f.container.GetTimeout() != 3 {
		t.Error(f.container)
	}
	f.refuse = status.Error(codes.Unimplemented, "CRIU is not installed")
	if _, err := run(t, a, "create", "web/app", file); err == nil || err.Error() != "CRIU is not installed" {
		t.Error(err)
	}
}

func TestCreatePod(t *testing.T) {
	f := somePod()
	a := f.app(t)
	parent := t.TempDir()
	dir := filepath.Join(parent, "web")
	if out, err := run(t, a, "create", "--pod", "shop/web", dir); err != nil || out != dir+"\n" {
		t.Fatal(out, err)
	}
	if d := cmp.Diff([]string{"c1", "c2"}, f.pod.GetContainerIds()); d != "" || f.pod.GetPodSandboxId() != "p1" || f.pod.GetOutputPath() != dir {
		t.Error(f.pod, d)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Error(st, err)
	}
	if _, err := run(t, a, "create", "--pod", "--container", "side", "web", dir); err != nil || len(f.pod.GetContainerIds()) != 1 || f.pod.GetContainerIds()[0] != "c2" {
		t.Error(f.pod, err)
	}
	f.refuse = status.Error(codes.FailedPrecondition, "CRIU says no")
	if _, err := run(t, a, "create", "--pod", "web", filepath.Join(parent, "other")); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
	onlyLeft(t, parent, "web")
	for _, tc := range [][]string{
		{"create", "--pod", "--container", "init", "web", dir}, {"create", "--pod", "none", dir}, {"create", "--container", "app", "web/app", dir},
		{"create", "--pod", "--timeout", "1ms", "web", dir}, {"create", "--pod", "web", filepath.Join(parent, "none", "dir")},
	} {
		f.pod = nil
		if _, err := run(t, a, tc...); err == nil || f.pod != nil {
			t.Errorf("%v: %v, %v", tc, err, f.pod)
		}
	}
}

// TestRestore: the pod is a new one, its containers are as they were, and go on.
func TestRestore(t *testing.T) {
	f := &fake{}
	a := f.app(t)
	dir, logs := smallPod(t), filepath.Join(t.TempDir(), "logs")
	out, err := run(t, a, "restore", dir, "--name", "web-2", "--log-dir", logs, "--cgroup-parent", "/apart")
	if err != nil {
		t.Fatal(err)
	}
	want := "KIND       NAME        ID\npod        shop/web-2  pod-id\ncontainer  app         id-app\ncontainer  side        id-side\n"
	if d := cmp.Diff(want, out); d != "" {
		t.Error(d)
	}
	c := f.restored.GetConfig()
	if m := c.GetMetadata(); m.GetName() != "web-2" || m.GetNamespace() != "shop" || m.GetUid() == "u1" || m.GetUid() == "" || c.GetHostname() != "web-2" {
		t.Error(c)
	}
	if f.restored.GetCheckpointPath() != dir || c.GetLogDirectory() != logs || c.GetLinux().GetCgroupParent() != "/apart" || c.GetLabels()[pod.RunLabel] != "" {
		t.Error(f.restored)
	}
	if d := cmp.Diff([]string{"id-app", "id-side"}, f.started); d != "" {
		t.Error(d)
	}
	if _, err := os.Stat(filepath.Join(logs, "app")); err != nil {
		t.Error(err)
	}
	f.started = nil
	if _, err := run(t, a, "restore", dir, "--no-start", "--log-dir", logs); err != nil || len(f.started) > 0 || f.restored.GetConfig().GetLinux().GetCgroupParent() != "" {
		t.Error(err, f.started, f.restored)
	}
}

// TestRestoreImages: what the node lacks is pulled by digest, and a name that has
// come to stand for another image gives way to it.
func TestRestoreImages(t *testing.T) {
	const ref = "docker.io/library/app@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	dir := podDir(t, map[string]string{"pod.dump": podDump, "containers.dump": "[" + container("app", `,"image":{"image":"app:1"}`) + "]",
		"app.tar": string(archive(t, "config.dump", `{"name":"app","rootfsImageRef":"`+ref+`"}`))})
	for name, tc := range map[string]struct {
		has    map[string]string // name -> ID
		args   []string
		pulled []string
		used   string
	}{
		"missing":         {has: map[string]string{}, pulled: []string{ref}, used: ref},
		"there":           {has: map[string]string{ref: "1", "app:1": "1"}, used: "app:1"},
		"another by name": {has: map[string]string{ref: "1", "app:1": "2"}, used: ref},
		"never":           {has: map[string]string{}, args: []string{"--pull", "never"}, used: "app:1"},
	} {
		f := &fake{has: tc.has}
		if _, err := run(t, f.app(t), append([]string{"restore", dir, "--log-dir", t.TempDir()}, tc.args...)...); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(tc.pulled, f.pulled); d != "" || f.restored.GetContainerConfigs()[0].GetImage().GetImage() != tc.used {
			t.Errorf("%s: %s %v", name, d, f.restored)
		}
	}
	if _, err := run(t, (&fake{}).app(t), "restore", dir, "--pull", "often", "--log-dir", t.TempDir()); err == nil || !strings.Contains(err.Error(), "--pull") {
		t.Error(err)
	}
}

// TestRestoredIsNew: without --log-dir logs are where `pods rm` removes them.
func TestRestoredIsNew(t *testing.T) {
	dir := smallPod(t)
	seen := map[string]bool{}
	for range 2 {
		req, err := restoration{}.request(dir)
		if err != nil {
			t.Fatal(err)
		}
		c := req.GetConfig()
		uid := c.GetMetadata().GetUid()
		if seen[uid] || c.GetLogDirectory() != filepath.Join(pod.LogRoot, uid) || c.GetLabels()[pod.RunLabel] != uid {
			t.Error(c)
		}
		seen[uid] = true
	}
	for _, uid := range []string{"..", "a/b", "/etc"} {
		if _, err := (restoration{uid: uid}).request(dir); err == nil {
			t.Errorf("UID %q names a directory of logs", uid)
		}
	}
	if req, err := (restoration{uid: "u2"}).request(dir); err != nil || req.GetConfig().GetMetadata().GetUid() != "u2" {
		t.Error(req, err)
	}
}

// TestRestoreStuck: a container that does not go on takes the pod with it.
func TestRestoreStuck(t *testing.T) {
	f := &fake{stuck: "id-side"}
	a := f.app(t)
	logs := t.TempDir()
	_, err := run(t, a, "restore", smallPod(t), "--log-dir", logs)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "container side") {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"pod-id"}, f.removed); d != "" {
		t.Error(d)
	}
	f.refuse = status.Error(codes.Unimplemented, "CRIU is not installed")
	if _, err := run(t, a, "restore", smallPod(t), "--log-dir", logs); err == nil || err.Error() != "CRIU is not installed" {
		t.Error(err)
	}
}

// TestRestoreHostile: what a checkpoint asks of the node it gets only with
// --trust, and what nobody may have never.
func TestRestoreHostile(t *testing.T) {
	f := &fake{}
	a := f.app(t)
	of := func(sandbox, containers string) string {
		return podDir(t, map[string]string{"pod.dump": sandbox, "containers.dump": containers, "app.tar": string(whole(t))})
	}
	app := func(more string) string { return "[" + container("app", more) + "]" }
	context := func(more string) string {
		return `[{"metadata":{"name":"app"},"linux":{"security_context":{"masked_paths":["/proc/kcore"],"readonly_paths":["/proc/sys"],` + more + "}}}]"
	}
	for _, tc := range []struct{ sandbox, containers, says string }{
		{podDump, app(`,"mounts":[{"host_path":"/etc","container_path":"/x"}]`), "/etc"},
		{podDump, app(`,"devices":[{"host_path":"/dev/sda"}]`), "/dev/sda"},
		{podDump, app(`,"CDI_devices":[{"name":"vendor.com/gpu=0"}]`), "vendor.com/gpu=0"},
		{podDump, app(`,"annotations":{"cdi.k8s.io/mine":"vendor.com/gpu=1"}`), "vendor.com/gpu=1"},
		{podDump, context(`"privileged":true`), "privileges"},
		{podDump, context(`"capabilities":{"add_capabilities":["SYS_ADMIN"]}`), "SYS_ADMIN"},
		{podDump, context(`"namespace_options":{"pid":"NODE"}`), "its processes"},
		{podDump, context(`"selinux_options":{"type":"spc_t"}`), "spc_t"},
		{podDump, context(`"apparmor":{"profile_type":"Unconfined"}`), "AppArmor"},
		{podDump, context(`"apparmor_profile":"unconfined"`), "AppArmor"},
		{podDump, `[{"metadata":{"name":"app"}}]`, "an open /proc"},
		{`{"metadata":{"name":"x"},"port_mappings":[{"host_port":22,"container_port":22}]}`, app(""), "port 22"},
		{`{"metadata":{"name":"x"},"linux":{"security_context":{"namespace_options":{"network":"NODE"}}}}`, app(""), "its network"},
		{`{"metadata":{"name":"x"},"linux":{"security_context":{"privileged":true}}}`, app(""), "privileges"},
	} {
		dir := of(tc.sandbox, tc.containers)
		if _, err := run(t, a, "restore", dir, "--log-dir", t.TempDir()); err == nil || !strings.Contains(err.Error(), tc.says) || f.restored != nil {
			t.Errorf("%s: %v", tc.says, err)
		}
		if _, err := run(t, a, "restore", dir, "--trust", "--log-dir", t.TempDir()); err != nil || f.restored == nil {
			t.Errorf("%s, trusted: %v", tc.says, err)
		}
		f.restored = nil
	}
	linked := smallPod(t)
	if err := errors.Join(os.Remove(linked+"/pod.dump"), os.Symlink("/etc/passwd", linked+"/pod.dump")); err != nil {
		t.Fatal(err)
	}
	large := smallPod(t)
	if err := os.Truncate(large+"/pod.dump", maxDocument+1); err != nil {
		t.Fatal(err)
	}
	for dir, says := range map[string]string{
		of(podDump, app(`,"log_path":"../../../etc/cron.d/x"`)): "leads out",
		of(podDump, "[]"):          "does not say",
		of("{}", app("")):          "names no pod",
		of(`{"x":1}`, app("")):     "pod.dump",
		of(podDump, `[{"x":1}]`):   "containers.dump",
		of(podDump, `{"x":1}`):     "containers.dump",
		linked:                     "too many levels",
		large:                      "more than a document",
		t.TempDir():                "no such file",
		smallPod(t) + "/app.tar":   "not a directory",
		smallPod(t) + "/../absent": "no such file",
	} {
		if _, err := run(t, a, "restore", dir, "--trust", "--log-dir", t.TempDir()); err == nil || !strings.Contains(err.Error(), says) || f.restored != nil {
			t.Errorf("%s: %v", says, err)
		}
	}
	if _, err := run(t, a, "restore", smallPod(t), "--timeout", (-time.Second).String()); err == nil {
		t.Error("a negative time-out")
	}
}
