package runtimeservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/runtimeservice/checkpoint"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

func tarOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: files[i], Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// restorable is a node with CRIU, and the checkpoint of a pod of two that runs there.
func restorable(t *testing.T) (*Service, *fakeNode, *runtimeapi.RestorePodRequest) {
	t.Helper()
	s, n := newTestService(t)
	n.shims.OnSignal = func(id string, _ syscall.Signal) { n.shims.End(shim.Exit{ID: id, Code: 137}) }
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	program(t, filepath.Join(dir, "criu"), "exit 0")
	s.containers.cfg.Handlers["runc"] = Handler{Runtime: shim.Runtime{Path: program(t, filepath.Join(dir, "runc"), "echo '{}'")}}
	s.checkpoints.disk = fakeDisk{dir}
	s.checkpoints.vet = func(images string, doc *specs.Spec, root string) error {
		if doc.Process == nil || root == "" {
			t.Errorf("looked at %+v in %q", doc, root)
		}
		_, err := os.Stat(filepath.Join(images, "inventory.img"))
		return errors.Join(err, n.note("vet", root))
	}
	from := filepath.Join(dir, "checkpoint")
	if err := os.Mkdir(from, 0o700); err != nil {
		t.Fatal(err)
	}
	pod := mustPod(t, s, "p")
	r := &runtimeapi.RestorePodRequest{CheckpointPath: from, Config: podRequest("copy").Config}
	for _, name := range []string{"one", "two"} {
		spec, err := os.ReadFile(s.containers.specPath(mustContainer(t, s, pod, name, true)))
		if err != nil {
			t.Fatal(err)
		}
		archive := tarOf(t, "config.dump", `{"runtime":"runc","rootfsImageRef":"r/img@sha256:77"}`, "spec.dump", string(spec), "deleted.files", "[]",
			"rootfs-diff.tar", string(tarOf(t, "written", name)), "checkpoint/inventory.img", "inventory")
		if err := os.WriteFile(filepath.Join(from, name+".tar"), archive, 0o600); err != nil {
			t.Fatal(err)
		}
		r.ContainerConfigs = append(r.ContainerConfigs, containerRequest("", name).Config)
	}
	if err := os.WriteFile(filepath.Join(from, "pod.options"), []byte(`{"version":1,"containers":{"one":"one.tar","two":"two.tar"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return s, n, r
}

// onlyFirst checks that nothing is left of a copy.
func onlyFirst(t *testing.T, s *Service, n *fakeNode) {
	t.Helper()
	dirs, err := os.ReadDir(filepath.Join(s.containers.cfg.StateDir, "containers"))
	if err != nil {
		t.Fatal(err)
	}
	if p, c, o := len(n.db.Sandboxes()), len(n.db.Containers()), n.db.Ops(); p != 1 || c != 2 || len(dirs) != 2 || len(o) != 0 {
		t.Errorf("%d pods, %d containers, %d directories, journal %v", p, c, len(dirs), o)
	}
}

func TestRestorePod(t *testing.T) {
	s, n, r := restorable(t)
	var made []shim.CreateRequest
	n.created = func(c shim.CreateRequest) (shim.Created, error) {
		made = append(made, c)
		return n.shims.Create(t.Context(), c)
	}
	out, err := s.RestorePod(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != 2 || len(out.GetRestoredContainers()) != 2 || len(n.db.Ops()) != 0 {
		t.Fatalf("%v, %v, %v", made, out, n.db.Ops())
	}
	for i, rc := range out.GetRestoredContainers() {
		id, dir := rc.GetContainerId(), s.containers.restoreDir(rc.GetContainerId())
		rec, err := n.db.Container(id)
		if err != nil || rec.SandboxID != out.GetPodSandboxId() || rc.GetName() != r.ContainerConfigs[i].Metadata.Name || rec.Facts.PID != 0 {
			t.Errorf("%v, %+v, %v", rc, rec.Facts, err)
		}
		if got := statusFor(t, s, id).GetState(); got != runtimeapi.ContainerState_CONTAINER_CREATED {
			t.Error(got)
		}
		if d := made[i].Restore; d.Images != dir+"/images" || d.Work != dir+"/logs" || d.Cgroup != rec.Facts.CgroupPath {
			t.Errorf("%+v", d)
		}
		b, err := os.ReadFile(filepath.Join(s.checkpoints.disk.(fakeDisk).dir, "layer-"+id))
		if err != nil || !bytes.Contains(b, []byte("written")) {
			t.Errorf("%q, %v", b, err)
		}
		doc, err := s.containers.storedSpec(id)
		if err != nil || doc.Annotations["org.criu.config"] != dir+"/criu.conf" {
			t.Errorf("%v, %v", doc, err)
		}
		if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		if rec, _ = n.db.Container(id); rec.Facts.PID == 0 || rec.Facts.StartedAt.IsZero() {
			t.Errorf("%+v", rec.Facts)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("memory of the past is left")
		}
	}
	if _, err := s.RestorePod(t.Context(), r); !errdefs.IsAlreadyExists(err) {
		t.Errorf("under a name that is taken: %v", err)
	}
}

// TestRestorePodFails: nothing is left of it, wherever it fails.
func TestRestorePodFails(t *testing.T) {
	lost := errors.New("lost")
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, s *Service, n *fakeNode, r *runtimeapi.RestorePodRequest)
		is      func(error) bool
	}{
		"no sandbox":    {func(_ *testing.T, _ *Service, n *fakeNode, _ *runtimeapi.RestorePodRequest) { n.setFail("run", lost) }, nil},
		"no mount":      {func(_ *testing.T, _ *Service, n *fakeNode, _ *runtimeapi.RestorePodRequest) { n.setFail("mount", lost) }, nil},
		"forged images": {func(_ *testing.T, _ *Service, n *fakeNode, _ *runtimeapi.RestorePodRequest) { n.setFail("vet", lost) }, nil},
		"no container": {func(_ *testing.T, _ *Service, n *fakeNode, _ *runtimeapi.RestorePodRequest) {
			n.setFail("create", lost)
		}, nil},
		"no second container": {func(t *testing.T, _ *Service, n *fakeNode, _ *runtimeapi.RestorePodRequest) {
			n.created = func(c shim.CreateRequest) (shim.Created, error) {
				n.created = func(shim.CreateRequest) (shim.Created, error) { return shim.Created{}, lost }
				return n.shims.Create(t.Context(), c)
			}
		}, nil},
		"a second container that does not fit": {func(_ *testing.T, _ *Service, _ *fakeNode, r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[1] = proto.Clone(r.ContainerConfigs[1]).(*runtimeapi.ContainerConfig)
			r.ContainerConfigs[1].Command = []string{"/other"}
		}, errdefs.IsFailedPrecondition},
		"a pod with a user namespace": {func(_ *testing.T, _ *Service, _ *fakeNode, r *runtimeapi.RestorePodRequest) {
			m := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
			r.Config = proto.Clone(r.Config).(*runtimeapi.PodSandboxConfig)
			r.Config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: m, Gids: m}}}}
		}, errdefs.IsNotImplemented},
		"shared memory without a place for it": {func(t *testing.T, _ *Service, _ *fakeNode, r *runtimeapi.RestorePodRequest) {
			if err := os.WriteFile(filepath.Join(r.CheckpointPath, "devshm-checkpoint.tar"), tarOf(t), 0o600); err != nil {
				t.Fatal(err)
			}
		}, errdefs.IsFailedPrecondition},
		"no CRIU": {func(t *testing.T, _ *Service, _ *fakeNode, _ *runtimeapi.RestorePodRequest) {
			t.Setenv("PATH", t.TempDir())
		}, errdefs.IsNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			s, n, r := restorable(t)
			tc.prepare(t, s, n, r)
			_, err := s.RestorePod(t.Context(), r)
			if is := tc.is; err == nil || is == nil && !errors.Is(err, lost) || is != nil && !is(err) {
				t.Error(err)
			}
			onlyFirst(t, s, n)
		})
	}
}

// TestRestoreStartFails: the reason is CRIU's, and what was restored from goes.
func TestRestoreStartFails(t *testing.T) {
	s, n, r := restorable(t)
	out, err := s.RestorePod(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	id := out.GetRestoredContainers()[0].GetContainerId()
	if err := os.WriteFile(checkpoint.RestoreLog(s.containers.restoreDir(id)), []byte("(00.1) Error (criu/files.c:1): no such file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.setFail("start", errdefs.ErrUnknown)
	_, err = s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "CRIU says: no such file") {
		t.Error(err)
	}
	if st := statusFor(t, s, id); st.GetReason() != "StartError" || !strings.Contains(st.GetMessage(), "CRIU says") {
		t.Error(st)
	}
	if _, err := os.Stat(s.containers.restoreDir(id)); err == nil {
		t.Error("memory of the past is left")
	}
}

// TestRestoreRecovery: a pod that a killed daemon had half restored goes, with
// containers that were made and those that were not through.
func TestRestoreRecovery(t *testing.T) {
	s, n, r := restorable(t)
	out, err := s.RestorePod(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	half := strings.Repeat("ab", 32)
	for kind, o := range map[string]store.Op{
		checkpoint.RestoreKind: {Subject: out.GetPodSandboxId(), Payload: []byte(`{"ID":"` + out.GetPodSandboxId() + `","Containers":["` +
			out.GetRestoredContainers()[0].GetContainerId() + `","` + half + `"]}`)},
		kindCreate: {Subject: half, Payload: []byte(`{"ID":"` + half + `"}`)},
	} {
		o.ID, o.Kind = kind, kind
		if err := n.db.BeginOp(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		n.db.ReleaseOp(kind)
	}
	if err := os.MkdirAll(s.containers.restoreDir(half), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RunPodSandbox(t.Context(), podRequest("copy")); err != nil {
		t.Errorf("under the same name: %v", err)
	}
	if _, err := n.db.Sandbox(out.GetPodSandboxId()); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if len(n.db.Containers()) != 2 || len(n.db.Ops()) != 0 {
		t.Errorf("%v, journal %v", n.db.Containers(), n.db.Ops())
	}
	if _, err := os.Stat(s.containers.stateDir(half)); err == nil {
		t.Error("the directory of what was half made is left")
	}
}

// TestRestoreGoesOn: a daemon that is started while a container is restored takes
// over the start that its forerunner had begun, and the client may ask again.
func TestRestoreGoesOn(t *testing.T) {
	s, n, r := restorable(t)
	out, err := s.RestorePod(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	first, second := out.GetRestoredContainers()[0].GetContainerId(), out.GetRestoredContainers()[1].GetContainerId()
	n.shims.Set(first, shim.State{Phase: shim.PhaseCreated, Busy: shim.Busy{Command: "restore"}})
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restored container runs", func() bool {
		rec, err := n.db.Container(first)
		_, left := os.Stat(s.containers.restoreDir(first))
		return err == nil && rec.Facts.PID != 0 && !rec.Facts.StartedAt.IsZero() && left != nil
	})
	if _, err := os.Stat(s.containers.restoreDir(second)); err != nil {
		t.Errorf("what the second is restored from: %v", err)
	}

	// It came to run between the look at it and the call.
	at := time.Now()
	n.shims.Set(second, shim.State{Phase: shim.PhaseRunning, PID: 77, StartedAt: at})
	if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: second}); err != nil {
		t.Error(err)
	}
	if rec, err := n.db.Container(second); err != nil || rec.Facts.Exit != nil || rec.Facts.PID != 77 || !rec.Facts.StartedAt.Equal(at) {
		t.Errorf("%+v, %v", rec.Facts, err)
	}
}

// slowDisk waits, while it unpacks, until that is given up.
type slowDisk struct {
	fakeDisk
	t     *testing.T
	begun func()
}

func (d slowDisk) wait(ctx context.Context) error {
	d.begun()
	select {
	case <-ctx.Done():
	case <-time.After(30 * time.Second):
		d.t.Error("waited in vain for the end of the call")
	}
	return ctx.Err()
}

func (d slowDisk) Fill(ctx context.Context, _ string, _ store.Image, _ io.Reader) error {
	return d.wait(ctx)
}

func (d slowDisk) Unpack(ctx context.Context, _ string, _ io.Reader) error { return d.wait(ctx) }

// TestRestorePodDeadline: nothing goes on, and nothing is left, when the client's
// time is over.
func TestRestorePodDeadline(t *testing.T) {
	s, n, r := restorable(t)
	good := s.checkpoints.disk.(fakeDisk)
	ctx, cancel := context.WithCancel(t.Context())
	s.checkpoints.disk = slowDisk{good, t, cancel}
	if _, err := s.RestorePod(ctx, r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	onlyFirst(t, s, n)

	// At the last moment: nobody would hear of the pod.
	s.checkpoints.disk = good
	ctx, cancel = context.WithCancel(t.Context())
	left := len(r.ContainerConfigs)
	n.created = func(c shim.CreateRequest) (shim.Created, error) {
		if left--; left == 0 {
			cancel()
		}
		return n.shims.Create(t.Context(), c)
	}
	if _, err := s.RestorePod(ctx, r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	onlyFirst(t, s, n)
}

// TestRestorePodStopped: who stops a pod that is being restored waits until
// nobody writes to its shared memory.
func TestRestorePodStopped(t *testing.T) {
	s, n, r := restorable(t)
	if err := os.WriteFile(filepath.Join(r.CheckpointPath, "devshm-checkpoint.tar"), tarOf(t), 0o600); err != nil {
		t.Fatal(err)
	}
	n.namespaces = map[string]string{"ipc": "/ns/ipc"}
	pod := func() store.Sandbox {
		for _, p := range n.db.Sandboxes() {
			if p.Config.GetMetadata().GetName() == "copy" {
				return p
			}
		}
		return store.Sandbox{}
	}
	stopped := make(chan error, 1)
	s.checkpoints.disk = slowDisk{s.checkpoints.disk.(fakeDisk), t, func() {
		go func() {
			_, err := s.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod().ID})
			stopped <- err
		}()
	}}
	_, err := s.RestorePod(t.Context(), r)
	if err == nil {
		t.Error("restored")
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	onlyFirst(t, s, n)
}

// TestRestoreNeverStarted: what a container is restored from goes with its end.
func TestRestoreNeverStarted(t *testing.T) {
	s, _, r := restorable(t)
	out, err := s.RestorePod(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	id := out.GetRestoredContainers()[0].GetContainerId()
	if _, err := s.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "memory of the past is removed", func() bool { _, err := os.Stat(s.containers.restoreDir(id)); return err != nil })
}
