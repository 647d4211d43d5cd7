package runtimeservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-dev/berth/runtimeservice/cdi"
	"github.com/berth-dev/berth/runtimeservice/nri"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

const (
	kindCreate = "container.create"
	kindRemove = "container.remove"
	kindClear  = "container.clear" // after a start that failed

	accountFileLimit = 1 << 20 // of passwd and group
	seccompFileLimit = 4 << 20
)

// createState is the journal's payload of a creation: what undoing it takes.
type createState struct {
	ID      string
	Runtime shim.Runtime
	LogPath string // "": it keeps no log
	plan    *plan
}

// createVerb lists the steps that make a container. A crash undoes them: the
// client will ask again.
func (c *containers) createVerb() op.Verb[*createState] {
	return op.Verb[*createState]{
		Kind:    kindCreate,
		OnCrash: op.Rollback,
		Steps:   []op.Step[*createState]{c.directoryStep(), c.rootfsStep(), c.volumesStep(), c.bundleStep(), c.shimStep()},
		Commit: func(s *createState) store.Change {
			s.plan.rec.Facts.CreatedAt = c.clock.Now()
			return store.Change{PutContainers: []store.Container{s.plan.rec}}
		},
	}
}

func (c *containers) directoryStep() op.Step[*createState] {
	return op.Step[*createState]{
		Name: "directories",
		Do: func(_ context.Context, s *createState) error {
			for _, dir := range []string{c.rootPath(s.ID), c.stateDir(s.ID)} {
				if err := os.MkdirAll(dir, 0o711); err != nil {
					return fmt.Errorf("make container directory: %w", err)
				}
			}
			c.shim.Prepare(s.ID) // it starts while the next steps run; undoing the shim's step ends it
			return nil
		},
		Undo: func(_ context.Context, s *createState) error { return c.removeDirectories(s.ID) },
		Done: func(_ context.Context, s *createState) (bool, error) {
			return allExist(c.rootPath(s.ID), c.stateDir(s.ID))
		},
	}
}

// removeDirectories deletes the bundle and the state directory of a container.
// The root file system must have been unmounted: a mount that is still there
// stops the deletion instead of being emptied.
func (c *containers) removeDirectories(id string) error {
	if err := removeMountPoint(c.rootPath(id)); err != nil {
		return fmt.Errorf("remove mount point of container %s: %w", id, err)
	}
	for _, dir := range []string{c.bundle(id), c.stateDir(id)} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove directory of container %s: %w", id, err)
		}
	}
	return nil
}

// removeMountPoint removes a directory that nothing is mounted on or below. It
// may hold what an OCI runtime still made there while it was being killed, after
// the root file system had been taken from under it.
func removeMountPoint(dir string) error {
	err := os.Remove(dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	below, lookErr := mountedBelow(dir)
	if lookErr != nil || below {
		return errors.Join(err, lookErr)
	}
	return os.RemoveAll(dir)
}

func allExist(paths ...string) (bool, error) {
	for _, p := range paths {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("look for %s: %w", p, err)
		}
	}
	return true, nil
}

func (c *containers) rootfsStep() op.Step[*createState] {
	return op.Step[*createState]{
		Name: "rootfs",
		Do: func(ctx context.Context, s *createState) error {
			if s.plan.restore != nil {
				if err := s.plan.restore.Unpack(ctx, c.target(s.plan)); err != nil {
					return err
				}
			}
			if err := c.rootfs.Mount(ctx, s.ID, s.plan.image, c.rootPath(s.ID), s.plan.view()); err != nil {
				return fmt.Errorf("mount root file system: %w", err)
			}
			return nil
		},
		Undo: func(ctx context.Context, s *createState) error { return c.dropRootFS(ctx, s.ID) },
		Done: func(_ context.Context, s *createState) (bool, error) { return isMountPoint(c.rootPath(s.ID)) },
	}
}

func (c *containers) dropRootFS(ctx context.Context, id string) error {
	if err := c.unmount(ctx, id); err != nil {
		return err
	}
	if err := c.rootfs.Remove(ctx, id); err != nil {
		return fmt.Errorf("remove writable layer: %w", err)
	}
	return nil
}

// unmount takes away the mounts of image volumes and of the root file system.
func (c *containers) unmount(ctx context.Context, id string) error {
	if err := c.dropVolumes(ctx, id); err != nil {
		return err
	}
	if err := c.rootfs.Unmount(ctx, id, c.rootPath(id)); err != nil {
		return fmt.Errorf("unmount root file system: %w", err)
	}
	return nil
}

// volumesStep mounts image volumes, each at its number in the bundle.
func (c *containers) volumesStep() op.Step[*createState] {
	return op.Step[*createState]{
		Name: "volumes",
		Do: func(ctx context.Context, s *createState) error {
			for i, img := range s.plan.volumes {
				target := c.volumePath(s.ID, i)
				if err := os.MkdirAll(target, 0o711); err != nil {
					return fmt.Errorf("make mount point of an image volume: %w", err)
				}
				if err := c.images.Lend(ctx, s.ID, img, target, s.plan.view()); err != nil {
					return fmt.Errorf("%w: %w", crierrors.ErrImageVolumeMountFailed, err)
				}
			}
			return nil
		},
		Undo: func(ctx context.Context, s *createState) error { return c.dropVolumes(ctx, s.ID) },
	}
}

func (c *core) volumesPath(id string) string { return filepath.Join(c.bundle(id), "volumes") }
func (c *core) volumePath(id string, n int) string {
	return filepath.Join(c.volumesPath(id), strconv.Itoa(n))
}

// dropVolumes unmounts a container's image volumes. Their mount points are
// removed as empty directories, so that nothing of an image can be deleted.
func (c *containers) dropVolumes(ctx context.Context, id string) error {
	entries, err := os.ReadDir(c.volumesPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list image volumes: %w", err)
	}
	for _, e := range entries {
		target := filepath.Join(c.volumesPath(id), e.Name())
		if err := c.rootfs.Unmount(ctx, id, target); err != nil {
			return fmt.Errorf("unmount image volume: %w", err)
		}
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove mount point of an image volume: %w", err)
		}
	}
	if err := os.Remove(c.volumesPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove directory of image volumes: %w", err)
	}
	return nil
}

func (c *containers) bundleStep() op.Step[*createState] {
	return op.Step[*createState]{
		Name: "bundle",
		Do: func(ctx context.Context, s *createState) error {
			doc, err := c.buildSpec(ctx, s.plan)
			if err != nil {
				return err
			}
			if doc, err = c.adjust(ctx, s.plan, doc); err != nil {
				return err
			}
			if s.plan.restore != nil {
				if err := s.plan.restore.Fit(doc, c.rootPath(s.ID)); err != nil {
					return err
				}
			}
			b, err := json.Marshal(doc)
			if err != nil {
				return fmt.Errorf("encode runtime specification: %w", err)
			}
			if err := os.WriteFile(c.specPath(s.ID), b, 0o600); err != nil {
				return fmt.Errorf("write runtime specification: %w", err)
			}
			return nil
		},
		Undo: func(ctx context.Context, s *createState) error {
			c.plugins.UndoContainer(ctx, s.ID)
			if err := os.Remove(c.specPath(s.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove runtime specification: %w", err)
			}
			return nil
		},
		Done: func(_ context.Context, s *createState) (bool, error) { return allExist(c.specPath(s.ID)) },
	}
}

func (c *core) specPath(id string) string { return filepath.Join(c.bundle(id), "config.json") }

// storedSpec reads the specification a container was made with.
func (c *core) storedSpec(id string) (*specs.Spec, error) { return readSpec(c.specPath(id)) }

// buildSpec gathers the facts that the specification depends on and builds it.
func (c *containers) buildSpec(ctx context.Context, p *plan) (*specs.Spec, error) {
	sec := p.rec.Config.GetLinux().GetSecurityContext()
	in := spec.Input{
		ID: p.rec.ID, Container: p.rec.Config, Sandbox: p.pod.Config,
		Image: p.config, Handler: p.handler.Spec, Host: c.cfg.Host, Cgroup: spec.Cgroup{Classes: p.classes},
	}
	in.Host.Security = p.security
	in.Host.Cpuset = cpusetOf(c.cgroups, filepath.Dir(p.rec.Facts.CgroupPath), p.rec.Config.GetLinux().GetResources())
	in.Host.RecursiveReadOnly = c.probes.recursiveReadOnly(ctx, c.cfg.Host, p.handler)
	in.Host.UserNamespaces = c.probes.userNamespaces(ctx, c.cfg.Host, p.handler)
	in.Host.SeccompEnabled = c.probes.seccomp(ctx, c.cfg.Host, p.handler)
	_, in.CgroupsPath = cgroupPaths(p.pod.Facts.CgroupParent, p.rec.ID, p.handler.Runtime.SystemdCgroup)
	var err error
	if in.User, err = resolveUser(c.rootPath(p.rec.ID), sec, p.config.User); err != nil {
		return nil, err
	}
	p.rec.Facts.User = store.User{UID: in.User.UID, GID: in.User.GID, Groups: in.User.Groups}
	if in.Pod, err = c.podPart(ctx, p.rec, p.pod); err != nil {
		return nil, err
	}
	if in.Mounts, err = hostMounts(p.rec.Config.GetMounts(), func(n int) string { return c.volumePath(p.rec.ID, n) }); err != nil {
		return nil, err
	}
	if err := checkIDMaps(in.Mounts, in.Pod.UserNS); err != nil {
		return nil, err
	}
	if err := c.relabel(in.Mounts, p.volumeLabel()); err != nil {
		return nil, err
	}
	if in.Devices, err = hostDevices(p.rec.Config.GetDevices()); err != nil {
		return nil, err
	}
	if sec.GetPrivileged() && !p.handler.Spec.PrivilegedWithoutHostDevices {
		if in.Host.AllDevices, err = allDevices("/dev"); err != nil {
			return nil, err
		}
	}
	if in.SeccompLocalhost, err = seccompProfile(sec); err != nil {
		return nil, err
	}
	doc, err := spec.Build(in)
	if err != nil {
		return nil, err
	}
	if c.probes.silent(ctx, p.handler) {
		doc.Version = oldestVersion
	}
	devices, err := cdi.Requested(p.rec.Config)
	if err != nil {
		return nil, err
	}
	return doc, cdi.Inject(c.cfg.CDIDirs, doc, devices)
}

// adjust asks plugins what to change of the specification. What they change of
// the resources is the container's from then on, as if the client had asked.
func (c *containers) adjust(ctx context.Context, p *plan, doc *specs.Spec) (*specs.Spec, error) {
	asked, err := c.plugins.CreateContainer(ctx, p.rec, doc)
	if err != nil || asked == nil {
		return doc, err
	}
	out, err := nri.Apply(doc, asked, nri.Host{
		CgroupV2: c.cfg.Host.CgroupV2, SwapController: c.cfg.Host.SwapController, HugePageSizes: c.cfg.Host.HugePageSizes,
		InjectCDI: func(s *specs.Spec, devices []string) error { return cdi.Inject(c.cfg.CDIDirs, s, devices) },
		Propagation: func(source string) (string, error) {
			table, err := readMounts()
			return propagationOf(table, source), err
		},
	})
	if err != nil {
		return nil, err
	}
	c.plugins.Adjusted(p.rec.ID, out)
	f := &p.rec.Facts
	if changed := nri.Changed(asked); proto.Size(changed) > 0 {
		f.Resources = mergeResources(f.Resources, changed)
	}
	if group := out.Linux.CgroupsPath; group != doc.Linux.CgroupsPath {
		f.CgroupPath = cgroupOfSpec(group, p.handler.Runtime.SystemdCgroup)
	}
	return out, nil
}

func resolveUser(root string, sec *runtimeapi.LinuxContainerSecurityContext, imageUser string) (spec.User, error) {
	passwd, err := readInRoot(root, "etc/passwd", accountFileLimit)
	if err != nil {
		return spec.User{}, err
	}
	group, err := readInRoot(root, "etc/group", accountFileLimit)
	if err != nil {
		return spec.User{}, err
	}
	return spec.ResolveUser(passwd, group, sec, imageUser)
}

// seccompProfile reads the Localhost profile that the security context names;
// nil when it names none.
func seccompProfile(sec *runtimeapi.LinuxContainerSecurityContext) ([]byte, error) {
	path, err := spec.SeccompProfileFile(sec)
	if err != nil || path == "" {
		return nil, err
	}
	b, err := readInRoot("/", path[1:], seccompFileLimit)
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, fmt.Errorf("seccomp profile %s does not exist on the node: %w", path, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

func (c *containers) shimStep() op.Step[*createState] {
	return op.Step[*createState]{
		Name: "shim",
		Do: func(ctx context.Context, s *createState) error {
			f := &s.plan.rec.Facts
			if err := c.makeLogDirectory(f.LogPath); err != nil {
				return err
			}
			cfg := s.plan.rec.Config
			made, err := c.shim.Create(ctx, shim.CreateRequest{
				ID: s.ID, Runtime: s.Runtime, LogPath: f.LogPath,
				Terminal: cfg.GetTty(), Stdin: cfg.GetStdin(), StdinOnce: cfg.GetStdinOnce(),
				PartialBytes: c.cfg.Limits.LogLineBytes,
				Limits:       c.cfg.Limits.Log,
				Restore:      s.plan.restored(),
				Gate:         c.probes.gate(ctx, s.plan.handler),
			})
			f.PID = made.PID
			return err
		},
		Undo: func(ctx context.Context, s *createState) error {
			if err := c.shim.Delete(ctx, s.ID, s.Runtime); err != nil {
				return err
			}
			return c.removeEmptyLog(s.ID, s.LogPath)
		},
		Done: func(ctx context.Context, s *createState) (bool, error) {
			st, err := c.shim.Reconnect(ctx, s.ID)
			if err != nil {
				return false, err
			}
			return st.Phase == shim.PhaseCreated, nil
		},
	}
}
