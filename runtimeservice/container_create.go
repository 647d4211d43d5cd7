package runtimeservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/runtimeservice/checkpoint"
	"github.com/berth-dev/berth/runtimeservice/confine"
	"github.com/berth-dev/berth/runtimeservice/nri"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// containers answers the RPCs on containers.
type containers struct {
	*core
	stops     *stops
	creations *creations
	probes    *probes
	cgroups   cgroup.Mode
	plugins   *nri.Manager
	confine   *confine.Node
	emptyLogs sync.Mutex // held while one is looked at and removed

	maker *checkpoint.Maker // of checkpoints
}

func containerKey(id string) string { return "container " + id }

// CreateContainer makes a container in a ready sandbox and returns its ID. A
// call that repeats an earlier one, finished or not, returns the same ID.
func (c *containers) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	cfg := r.GetConfig()
	if cfg.GetMetadata().GetName() == "" {
		return nil, fmt.Errorf("create container: config.metadata.name is empty: %w", errdefs.ErrInvalidArgument)
	}
	if err := c.locks.recovery.Wait(ctx, kindImages, ""); err != nil {
		return nil, fmt.Errorf("create container %s: %w", cfg.GetMetadata().GetName(), err)
	}
	pod, err := c.sandbox(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("create container %s: sandbox %q: %w", cfg.GetMetadata().GetName(), r.GetPodSandboxId(), err)
	}
	rec := store.Container{ID: newID(), SandboxID: pod.ID, Config: cfg}
	name := store.ContainerName(rec)
	id, err := c.joins.do(ctx, creation{
		name:     "container " + name,
		id:       rec.ID,
		request:  &runtimeapi.CreateContainerRequest{PodSandboxId: pod.ID, Config: cfg},
		existing: func() (string, error) { return c.existing(name, cfg) },
		run:      func() (string, error) { return rec.ID, c.create(ctx, rec, r.GetSandboxConfig(), nil) },
	}, c.background)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", name, err)
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// existing returns the ID of the container that an equal call has made.
func (c *containers) existing(name string, cfg *runtimeapi.ContainerConfig) (string, error) {
	old, ok := c.db.ContainerByName(name)
	if !ok {
		return "", nil
	}
	st := containerState(old, c.cfg.BootID)
	if st == runtimeapi.ContainerState_CONTAINER_CREATED && proto.Equal(old.Config, cfg) {
		return old.ID, nil
	}
	return "", fmt.Errorf("container %s, which is %s, has this name; remove it, or use another attempt number: %w",
		old.ID, stateName(st), errdefs.ErrAlreadyExists)
}

// plan is all that the steps of a creation need and a rollback does not.
type plan struct {
	rec     store.Container
	pod     store.Sandbox
	handler Handler
	image   store.Image
	volumes []store.Image      // one for each image mount
	restore *checkpoint.Parcel // what its processes are restored from; nil: it starts anew
	config  ocispec.ImageConfig
	// What the node has to confine it with, and what it belongs to there.
	security spec.HostSecurity
	labels   spec.Labels
	classes  spec.Classes
}

// create runs detached from the client, unless it restores: that is bounded by the
// client's deadline. The sandbox can't be stopped meanwhile.
func (c *containers) create(call context.Context, rec store.Container, podConfig *runtimeapi.PodSandboxConfig, restore *checkpoint.Parcel) error {
	ctx, cancel := context.WithTimeoutCause(observe.Detached(c.tasks.ctx, call), c.cfg.Limits.CreateTime, errCreateTime)
	defer cancel()
	if restore != nil {
		defer context.AfterFunc(call, cancel)()
	}
	ctx, done := c.creations.begin(ctx, rec.SandboxID)
	defer done()
	unlock, err := c.locks.rlock(ctx, podKey(rec.SandboxID))
	if err != nil {
		return err
	}
	defer unlock()
	pod, err := c.db.Sandbox(rec.SandboxID)
	if err != nil {
		return err
	}
	p, err := c.plan(ctx, rec, pod, podConfig)
	if err != nil {
		return err
	}
	p.restore = restore
	st := &createState{ID: rec.ID, Runtime: p.handler.Runtime, LogPath: p.rec.Facts.LogPath, plan: p}
	c.ends.expect(rec.ID)
	err = op.Run(ctx, c.db, c.createVerb(), rec.ID, st)
	early := c.ends.take(rec.ID)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		c.suspect(ctx, p.rec, err)
		return err
	}
	c.plugins.ContainerCreated(ctx, st.plan.rec)
	if early != nil {
		c.commitExit(ctx, *early)
	}
	return nil
}

// plan decides everything that can be decided before anything is touched.
func (c *containers) plan(ctx context.Context, rec store.Container, pod store.Sandbox, podConfig *runtimeapi.PodSandboxConfig) (*plan, error) {
	if err := canCreate(pod, c.cfg.BootID); err != nil {
		return nil, err
	}
	h, err := c.handler(pod.Handler)
	if err != nil {
		return nil, err
	}
	p := &plan{rec: rec, pod: pod, handler: h}
	if err := c.findImages(ctx, p); err != nil {
		return nil, err
	}
	var img ocispec.Image
	if err := json.Unmarshal(p.image.Config, &img); err != nil {
		return nil, fmt.Errorf("image %s: decode configuration: %w: %w", p.image.ID, err, errdefs.ErrDataLoss)
	}
	p.config = img.Config
	logDir := podConfig.GetLogDirectory()
	if logDir == "" {
		logDir = pod.Config.GetLogDirectory()
	}
	f := &p.rec.Facts
	if f.LogPath, err = logPath(logDir, rec.Config.GetLogPath()); err != nil {
		return nil, err
	}
	if f.StopSignal, err = stopSignal(rec.Config.GetStopSignal(), p.config.StopSignal); err != nil {
		return nil, err
	}
	f.BootID = c.cfg.BootID
	f.Image = imageUse(p.image)
	f.Volumes = nil
	for _, v := range p.volumes {
		f.Volumes = append(f.Volumes, imageUse(v))
	}
	f.Resources = rec.Config.GetLinux().GetResources()
	f.CgroupPath, _ = cgroupPaths(pod.Facts.CgroupParent, rec.ID, h.Runtime.SystemdCgroup)
	return p, c.planConfinement(ctx, p)
}

// view is how the container sees its root file system and image volumes.
func (p *plan) view() store.RootView {
	return store.RootView{UserNS: p.pod.Facts.Namespaces["user"], Label: p.labels.Mount}
}

// volumeLabel is what volumes get that are to be relabelled; "": none. A
// privileged container may use them as they are.
func (p *plan) volumeLabel() string {
	if p.rec.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		return ""
	}
	return p.labels.Mount
}

// planConfinement decides what confines the container beside its namespaces.
func (c *containers) planConfinement(ctx context.Context, p *plan) error {
	cfg, pod := p.rec.Config, p.pod
	p.security = c.confine.Security(ctx)
	p.security.SELinuxLevel = pod.Facts.SELinuxLevel
	var err error
	p.labels, err = spec.ContainerLabels(spec.Input{
		Container: cfg, Sandbox: pod.Config, Host: spec.Host{Security: p.security},
	})
	if err != nil {
		return err
	}
	for _, label := range []string{p.labels.Process, p.labels.Mount} { // a privileged container has the second only
		if err := c.confine.CheckLabel(label); err != nil {
			return err
		}
	}
	p.classes, err = c.confine.Classes(cfg.GetMetadata().GetName(), cfg.GetAnnotations(), pod.Config.GetAnnotations())
	return err
}

// suspect has the container's image checked when the failure is damage, or one
// that a missing or empty file explains.
func (c *core) suspect(ctx context.Context, rec store.Container, err error) {
	if errdefs.IsDataLoss(err) || missingFile(err.Error()) {
		c.images.Suspect(ctx, rec.Facts.Image.ID)
	}
}

// missingFile recognizes the words of kernel and OCI runtime. Pure.
func missingFile(text string) bool {
	for _, s := range []string{"no such file or directory", "executable file not found", "exec format error", "input/output error", "structure needs cleaning"} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// endedAtOnce recognizes the end of a program whose interpreter or library is
// missing or empty: code 126, 127, or 255 as runc has it, within seconds. Pure.
func endedAtOnce(f store.ContainerFacts) bool {
	x := f.Exit
	return x != nil && (x.Code == 126 || x.Code == 127 || x.Code == 255) && x.FinishedAt.Sub(f.StartedAt) < 10*time.Second
}

// findImages looks up the container's image and those it mounts.
func (c *containers) findImages(ctx context.Context, p *plan) (err error) {
	if p.image, err = c.findImage(ctx, p.pod.Handler, p.rec.Config.GetImage()); err != nil {
		return err
	}
	if kind := p.image.Artifact; kind != "" {
		return fmt.Errorf("image %s is an artifact of type %.100q: it can be mounted, but not run: %w", p.image.ID, kind, errdefs.ErrInvalidArgument)
	}
	for i, m := range p.rec.Config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		img, err := c.findImage(ctx, p.pod.Handler, m.GetImage())
		if err != nil {
			return fmt.Errorf("%w: mounts[%d] (%s): %w", crierrors.ErrImageVolumeMountFailed, i, m.GetContainerPath(), err)
		}
		p.volumes = append(p.volumes, img)
	}
	return nil
}

// findImage looks an image up as pods of the handler see it.
func (c *containers) findImage(ctx context.Context, handler string, spec *runtimeapi.ImageSpec) (store.Image, error) {
	img, err := c.images.Resolve(ctx, &runtimeapi.ImageSpec{Image: spec.GetImage(), RuntimeHandler: handler})
	if errdefs.IsNotFound(err) {
		return img, fmt.Errorf("image %q is not on this node, pull it first: %w", spec.GetImage(), err)
	}
	return img, err
}

// logPath joins the directory of the sandbox and the path of the container,
// which must stay below it. No log is kept when either is empty.
func logPath(dir, path string) (string, error) {
	if dir == "" || path == "" {
		return "", nil
	}
	if rel := strings.TrimLeft(path, "/"); !filepath.IsLocal(rel) || filepath.Clean(rel) == "." {
		return "", fmt.Errorf("log_path %q is not a file below log_directory: %w", path, errdefs.ErrInvalidArgument)
	}
	full := filepath.Join(dir, path)
	if !filepath.IsAbs(full) {
		return "", fmt.Errorf("log_directory %q is not absolute: %w", dir, errdefs.ErrInvalidArgument)
	}
	return full, nil
}

// relabel gives the volumes that ask for it the container's label.
func (c *containers) relabel(mounts []spec.Mount, label string) error {
	for i, m := range mounts {
		if !m.CRI.GetSelinuxRelabel() {
			continue
		}
		if err := c.confine.Relabel(m.Source, label); err != nil {
			return fmt.Errorf("mount %s: %w", m.CRI.GetContainerPath(), err)
		}
		mounts[i].Relabelled = true
	}
	return nil
}

func imageUse(img store.Image) store.ImageUse {
	u := store.ImageUse{ID: img.ID, Ref: img.ID}
	if _, digests := img.Names(); len(digests) > 0 {
		u.Ref = digests[0]
	}
	if n := len(img.Layers); n > 0 {
		u.TopLayer = img.Layers[n-1]
	}
	return u
}

// cgroupPaths returns the container's cgroup below the pod's as a path, and as
// linux.cgroupsPath has it. With the systemd driver the parent is a slice,
// whose name alone says where it lies: a-b.slice is in a.slice.
func cgroupPaths(parent, id string, systemd bool) (path, specPath string) {
	if !systemd {
		path = filepath.Join("/", parent, id)
		return path, path
	}
	specPath = filepath.Base(parent) + ":cri-berth:" + id
	return cgroupOfSpec(specPath, true), specPath
}

// cgroupOfSpec returns the path of the cgroup that linux.cgroupsPath names.
func cgroupOfSpec(specPath string, systemd bool) string {
	parts := strings.SplitN(specPath, ":", 3)
	if !systemd || len(parts) != 3 {
		return filepath.Join("/", specPath)
	}
	slice, path := parts[0], "/"
	base := strings.TrimSuffix(slice, ".slice")
	for i, r := range base {
		if r == '-' && i > 0 {
			path = filepath.Join(path, base[:i]+".slice")
		}
	}
	return filepath.Join(path, slice, parts[1]+"-"+parts[2]+".scope")
}

// podPart says what the sandbox lends to the container.
func (c *containers) podPart(ctx context.Context, rec store.Container, pod store.Sandbox) (spec.Pod, error) {
	files, ns := c.pod.Files(pod), pod.Facts.Namespaces
	out := spec.Pod{
		SandboxID: pod.ID,
		NetNS:     ns["net"], IPCNS: ns["ipc"], UTSNS: ns["uts"], UserNS: ns["user"],
		Hostname:     pod.Config.GetHostname(),
		HostnamePath: files.Hostname, HostsPath: files.Hosts,
		ResolvPath: files.ResolvConf, ShmPath: files.Shm,
	}
	if out.Hostname == "" && out.UTSNS == "" {
		name, err := os.Hostname()
		if err != nil {
			return out, fmt.Errorf("read node's host name: %w", err)
		}
		out.Hostname = name
	}
	opts := rec.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if opts == nil {
		opts = pod.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	}
	switch opts.GetPid() {
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_CONTAINER:
		out.PrivatePID = true
	case runtimeapi.NamespaceMode_TARGET:
		path, err := c.targetPIDNS(ctx, rec.SandboxID, opts.GetTargetId())
		if err != nil {
			return out, err
		}
		out.PIDNS = path
	default:
		// POD is also the value of a field that was not set: in a sandbox that
		// shares no PID namespace the container gets its own.
		out.PIDNS = ns["pid"]
		out.PrivatePID = out.PIDNS == ""
	}
	return out, nil
}

// targetPIDNS returns the PID namespace of the container that target names.
func (c *containers) targetPIDNS(ctx context.Context, sandboxID, target string) (string, error) {
	t, err := c.container(ctx, target)
	if err != nil {
		return "", fmt.Errorf("namespace_options.target_id %q: %w", target, err)
	}
	if t.SandboxID != sandboxID {
		return "", fmt.Errorf("namespace_options.target_id %q is in another sandbox: %w", target, errdefs.ErrInvalidArgument)
	}
	if err := mustRun(t, c.cfg.BootID); err != nil {
		return "", fmt.Errorf("namespace_options.target_id %q: %w", target, err)
	}
	return fmt.Sprintf("/proc/%d/ns/pid", t.Facts.PID), nil
}
