package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni"
	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri"
	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/cri/streaming"
	"github.com/berth-dev/berth/imageservice"
	"github.com/berth-dev/berth/imageservice/layer"
	"github.com/berth-dev/berth/imageservice/registry"
	"github.com/berth-dev/berth/runtimeservice"
	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

// parts are the daemon's layers, bottom-up.
type parts struct {
	db      *store.DB
	shims   *shim.Manager
	pods    *sandbox.Manager
	images  *imageservice.Service
	streams *streaming.Server
	runtime *runtimeservice.Service
	cri     *cri.Server
	admin   *admin.Server
	nodeFacts
}

// nodeFacts are what the layers must know of the node.
type nodeFacts struct {
	systemd   bool
	shimPath  string
	hostFacts spec.Host
	bootID    string
	cgroups   cgroup.Mode
}

// build makes all parts bottom-up. On an error it closes what it has made.
func build(st settings, log *slog.Logger) (p *parts, err error) {
	p = &parts{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close(context.Background()))
		}
	}()
	if err := p.probe(st.cfg); err != nil {
		return p, err
	}
	for _, step := range []func(config.Config, *slog.Logger) error{
		p.openStore, p.buildPods, p.buildImages, p.buildStreams, p.buildRuntime, p.openEdge,
	} {
		if err := step(st.cfg, log); err != nil {
			return p, err
		}
	}
	return p, nil
}

// probe looks at the node.
func (p *parts) probe(c config.Config) (err error) {
	if p.shimPath, err = findShim(c.Paths.Shim); err != nil {
		return err
	}
	if p.hostFacts, err = runtimeservice.ProbeHost(); err != nil {
		return err
	}
	switch c.Container.RestrictOOMScoreAdj {
	case "true":
		p.hostFacts.RestrictOOMScoreAdj = true
	case "false":
		p.hostFacts.RestrictOOMScoreAdj = false
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read boot ID: %w", err)
	}
	p.bootID = strings.TrimSpace(string(boot))
	p.systemd = c.Cgroup.Driver == "systemd"
	if c.Cgroup.Driver == "auto" {
		_, err := os.Stat("/run/systemd/system")
		p.systemd = err == nil && p.hostFacts.CgroupV2
	}
	return nil
}

// findShim returns the absolute path of berth-shim.
func findShim(configured string) (string, error) {
	if configured != "" {
		if _, err := os.Stat(configured); err != nil {
			return "", fmt.Errorf("find berth-shim (paths.shim): %w", err)
		}
		return configured, nil
	}
	path, err := findProgram("berth-shim")
	if err != nil {
		return "", fmt.Errorf("find berth-shim: it is neither beside berthd nor in PATH; install it or set paths.shim: %w", err)
	}
	return filepath.Abs(path)
}

// findProgram looks for a program beside berthd and then in PATH; a path is
// taken as it is. What is not found comes back unchanged with the error.
func findProgram(name string) (string, error) {
	if self, err := os.Executable(); err == nil && filepath.Base(name) == name {
		if beside, err := exec.LookPath(filepath.Join(filepath.Dir(self), name)); err == nil {
			return beside, nil
		}
	}
	if found, err := exec.LookPath(name); err == nil {
		return found, nil
	}
	return name, fmt.Errorf("find program %s: %w", name, exec.ErrNotFound)
}

// openStore takes the state directory: one daemon each.
func (p *parts) openStore(c config.Config, _ *slog.Logger) (err error) {
	for _, d := range []string{c.Paths.Root, c.Paths.Run, filepath.Join(c.Paths.Run, "containers"), filepath.Join(c.Paths.Root, "containers")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	p.db, err = store.Open(store.Config{Dir: c.Paths.Root, Version: config.Version})
	return err
}

func (p *parts) buildPods(c config.Config, log *slog.Logger) (err error) {
	p.shims, err = shim.New(shim.Config{
		Binary:   p.shimPath,
		RunDir:   filepath.Join(c.Paths.Run, "containers"),
		StateDir: filepath.Join(c.Paths.Root, "containers"),
	})
	if err != nil {
		return err
	}
	if p.cgroups, err = cgroup.Detect(); err != nil {
		return err
	}
	net, err := cni.New(networkConfig(c, log))
	if err != nil {
		return err
	}
	p.pods, err = sandbox.New(sandbox.Config{
		RunDir: c.Paths.Run, StateDir: c.Paths.Root, ShimBinary: p.shimPath,
		SystemdCgroup: p.systemd, BootID: p.bootID, Logger: log,
	}, sandbox.Deps{Store: p.db, Network: net, Cgroups: p.cgroups})
	return err
}

// networkConfig translates the configuration for package cni. Pods' interfaces
// may be left to their namespaces because stopping a sandbox ends those.
func networkConfig(c config.Config, log *slog.Logger) cni.Config {
	dir := filepath.Join(c.Paths.Root, "cni")
	out := cni.Config{
		ConfDir: c.CNI.ConfDir, BinDirs: c.CNI.BinDirs, CacheDir: dir, Logger: log,
		Builtin: c.Network.Builtin, KeepLinks: true,
	}
	if c.Network.Default == "builtin" {
		out.Default = &cni.Default{Bridge: c.Network.Bridge, Subnets: c.Network.Subnets, DataDir: filepath.Join(dir, "networks")}
	}
	return out
}

func (p *parts) buildImages(c config.Config, log *slog.Logger) (err error) {
	p.images, err = imageservice.New(imageservice.Config{
		StateDir: c.Paths.Root, HostsDirs: c.Image.RegistryDirs, Downloads: c.Image.MaxDownloads,
		Unpacks: c.Image.UnpackWorkers, KeepBlobs: c.Image.KeepBlobs, Logger: log,
		Limits:       layer.Limits{Bytes: int64(c.Image.MaxLayerSize), Entries: int64(c.Image.MaxLayerFiles)},
		Registry:     registry.Config{StallTimeout: time.Duration(c.Image.PullTimeout)},
		KnownHandler: func(name string) bool { _, ok := c.Runtime.Handlers[name]; return ok || name == "" },
	}, p.db)
	return err
}

func (p *parts) buildStreams(c config.Config, log *slog.Logger) (err error) {
	s := c.Streaming
	p.streams, err = streaming.New(streaming.Config{
		Address: s.Address, Port: s.Port, IdleTimeout: time.Duration(s.IdleTimeout),
		TLSCert: s.TLSCert, TLSKey: s.TLSKey, Logger: log,
	})
	return err
}

func (p *parts) buildRuntime(c config.Config, log *slog.Logger) (err error) {
	handlers := map[string]runtimeservice.Handler{}
	for name, h := range c.Runtime.Handlers {
		path, err := findProgram(c.RuntimePath(name))
		if err != nil {
			log.Warn("the program of a runtime handler is missing; its pods will fail until it is installed", "handler", name, "path", path)
		}
		handlers[name] = runtimeservice.Handler{
			Runtime: shim.Runtime{Path: path, Root: c.RuntimeRoot(name), SystemdCgroup: p.systemd},
			Spec: spec.Handler{
				PrivilegedWithoutHostDevices: h.PrivilegedWithoutHostDevices,
				AmbientCapabilities:          h.AmbientCapabilities,
				SeccompDefault:               h.SeccompDefault,
				PrivilegedAllDevicesAllowed:  h.PrivilegedAllDevicesAllowed,
				CgroupWritable:               h.CgroupWritable,
				DeviceOwnership:              h.DeviceOwnership,
				PidsLimit:                    h.PidsLimit,
				PodAnnotations:               h.PodAnnotations,
				ContainerAnnotations:         h.ContainerAnnotations,
			},
		}
	}
	p.runtime, err = runtimeservice.New(runtimeservice.Config{
		RunDir: c.Paths.Run, StateDir: c.Paths.Root, Handlers: handlers, DefaultHandler: c.Runtime.Default,
		SystemdCgroup: p.systemd, BootID: p.bootID, Host: p.hostFacts, Version: config.Version, Logger: log,
		Limits: runtimeservice.Limits{
			ExecOutputBytes: int(c.Container.ExecOutputLimit), LogLineBytes: int(c.Container.MaxLogLine),
		},
	}, runtimeservice.Deps{
		Store: p.db, Sandboxes: p.pods, Shims: p.shims, Images: p.images, RootFS: p.images, Streams: p.streams,
		Disk: p.images, Cgroups: p.cgroups,
	})
	return err
}

// openEdge takes the CRI socket; nobody is served before recovery.
func (p *parts) openEdge(c config.Config, log *slog.Logger) (err error) {
	p.cri, err = cri.New(cri.Config{Socket: c.CRISocket(), Logger: log}, cri.Services{
		Runtime: p.runtime, Image: p.images,
	})
	return err
}

var _ runtimeapi.ImageServiceServer = (*imageservice.Service)(nil)

// recover finishes or undoes what an earlier daemon left, bottom-up. Trouble
// with one object must not keep the node from starting: it is logged, and the
// journal keeps what is left for the next start.
func (p *parts) recover(ctx context.Context, log *slog.Logger) {
	for _, r := range []struct {
		what string
		run  func(context.Context) error
	}{{"images", p.images.Recover}, {"sandboxes", p.pods.Recover}, {"containers", p.runtime.Recover}} {
		if err := r.run(ctx); err != nil {
			log.Error("recovery is incomplete", "of", r.what, "error", err)
		}
	}
}

// close ends the parts top-down; calls in flight may finish until ctx ends.
// Containers go on.
func (p *parts) close(ctx context.Context) error {
	var errs []error
	if p.admin != nil {
		errs = append(errs, p.admin.Close())
	}
	if p.cri != nil {
		errs = append(errs, p.cri.Shutdown(ctx))
	}
	if p.streams != nil {
		errs = append(errs, p.streams.Shutdown(ctx))
	}
	if p.runtime != nil {
		errs = append(errs, p.runtime.Close(ctx))
	}
	if p.shims != nil {
		errs = append(errs, p.shims.Close())
	}
	if p.db != nil {
		errs = append(errs, p.db.Close())
	}
	return errors.Join(errs...)
}
