package runtimeservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

const (
	kindCreate = "container.create"
	kindRemove = "container.remove"

	accountFileLimit = 1 << 20 // of passwd and group
	seccompFileLimit = 4 << 20
)

// createState is the journal's payload of a creation: what undoing it takes.
type createState struct {
	ID      string
	Runtime shim.Runtime
	plan    *plan
}

// createVerb lists the steps that make a container. A crash undoes them: the
// client will ask again.
func (c *containers) createVerb() op.Verb[*createState] {
	return op.Verb[*createState]{
		Kind:    kindCreate,
		OnCrash: op.Rollback,
		Steps:   []op.Step[*createState]{c.directoryStep(), c.rootfsStep(), c.bundleStep(), c.shimStep()},
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
			return nil
		},
		Undo: func(_ context.Context, s *createState) error { return c.removeDirectories(s.ID) },
		Done: func(_ context.Context, s *createState) (bool, error) {
			return allExist(c.rootPath(s.ID), c.stateDir(s.ID))
		},
	}
}

// removeDirectories deletes the bundle and the state directory of a container.
// The root file system must have been unmounted: its mount point is removed as
// an empty directory, so that a mount that is still there stops the deletion
// instead of being emptied.
func (c *containers) removeDirectories(id string) error {
	if err := os.Remove(c.rootPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove mount point of container %s: %w", id, err)
	}
	for _, dir := range []string{c.bundle(id), c.stateDir(id)} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove directory of container %s: %w", id, err)
		}
	}
	return nil
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
			if err := c.rootfs.Mount(ctx, s.ID, s.plan.image, c.rootPath(s.ID)); err != nil {
				return fmt.Errorf("mount root file system: %w", err)
			}
			return nil
		},
		Undo: func(ctx context.Context, s *createState) error { return c.dropRootFS(ctx, s.ID) },
		Done: func(_ context.Context, s *createState) (bool, error) { return isMountPoint(c.rootPath(s.ID)) },
	}
}

func (c *containers) dropRootFS(ctx context.Context, id string) error {
	if err := c.rootfs.Unmount(ctx, id, c.rootPath(id)); err != nil {
		return fmt.Errorf("unmount root file system: %w", err)
	}
	if err := c.rootfs.Remove(ctx, id); err != nil {
		return fmt.Errorf("remove writable layer: %w", err)
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
			b, err := json.Marshal(doc)
			if err != nil {
				return fmt.Errorf("encode runtime specification: %w", err)
			}
			if err := os.WriteFile(c.specPath(s.ID), b, 0o600); err != nil {
				return fmt.Errorf("write runtime specification: %w", err)
			}
			return nil
		},
		Undo: func(_ context.Context, s *createState) error {
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
		Image: p.config, Handler: p.handler.Spec, Host: c.cfg.Host,
	}
	in.Host.RecursiveReadOnly = c.probes.recursiveReadOnly(ctx, c.cfg.Host, p.handler)
	_, in.CgroupsPath = cgroupPaths(p.pod.Facts.CgroupParent, p.rec.ID, p.handler.Runtime.SystemdCgroup)
	var err error
	if in.User, err = resolveUser(c.rootPath(p.rec.ID), sec, p.config.User); err != nil {
		return nil, err
	}
	p.rec.Facts.User = store.User{UID: in.User.UID, GID: in.User.GID, Groups: in.User.Groups}
	if in.Pod, err = c.podPart(p.rec, p.pod); err != nil {
		return nil, err
	}
	p.shared = !in.Pod.PrivatePID
	if in.Mounts, err = hostMounts(p.rec.Config.GetMounts()); err != nil {
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
	return spec.Build(in)
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
			if f.LogPath != "" {
				if err := os.MkdirAll(filepath.Dir(f.LogPath), 0o755); err != nil {
					return fmt.Errorf("make log directory: %w", err)
				}
			}
			cfg := s.plan.rec.Config
			made, err := c.shim.Create(ctx, shim.CreateRequest{
				ID: s.ID, Runtime: s.Runtime, LogPath: f.LogPath,
				Terminal: cfg.GetTty(), Stdin: cfg.GetStdin(), StdinOnce: cfg.GetStdinOnce(),
				SharedPIDs: s.plan.shared, PartialBytes: c.cfg.Limits.LogLineBytes,
			})
			f.PID = made.PID
			return err
		},
		Undo: func(ctx context.Context, s *createState) error { return c.shim.Delete(ctx, s.ID, s.Runtime) },
		Done: func(ctx context.Context, s *createState) (bool, error) {
			st, err := c.shim.Reconnect(ctx, s.ID)
			if err != nil {
				return false, err
			}
			return st.Phase == shim.PhaseCreated, nil
		},
	}
}
