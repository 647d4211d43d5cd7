package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni"
	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri"
	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/cri/streaming"
	"github.com/berth-dev/berth/cri/unixsock"
	"github.com/berth-dev/berth/imageservice"
	"github.com/berth-dev/berth/imageservice/layer"
	"github.com/berth-dev/berth/runtimeservice"
	"github.com/berth-dev/berth/runtimeservice/confine"
	"github.com/berth-dev/berth/runtimeservice/nri"
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
	network *cni.Manager
	plugins *nri.Manager
	nriDir  *os.File // nil unless the plugins' socket has a long path
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
	watch     *watch // how the daemon itself is watched
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
		p.openStore, p.buildWatch, p.buildPlugins, p.buildPods, p.buildImages, p.buildStreams, p.buildRuntime, p.openEdge,
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
func (p *parts) openStore(c config.Config, log *slog.Logger) (err error) {
	for _, d := range []string{c.Paths.Root, c.Paths.Run, filepath.Join(c.Paths.Run, "containers"), filepath.Join(c.Paths.Root, "containers")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	p.db, err = store.Open(store.Config{Dir: c.Paths.Root, Version: config.Version, Logger: log})
	return err
}

// buildPlugins prepares for plugins, which are served after the recovery. The
// library would take the socket from another runtime that serves it.
func (p *parts) buildPlugins(c config.Config, log *slog.Logger) (err error) {
	if !c.NRI.Enable {
		return nil
	}
	socket := c.NRISocket()
	if c.NRI.DisableConnections {
		socket = ""
	}
	if conn, err := unixsock.Dial(context.Background(), socket); socket != "" && err == nil {
		_ = conn.Close()
		return fmt.Errorf("serve plugins: another runtime serves %s; stop it, choose another nri.socket_path or set nri.enable = false: %w",
			socket, errdefs.ErrAlreadyExists)
	}
	// The directory stays open as long as the daemon lives.
	if socket, p.nriDir, err = unixsock.Short(socket); err != nil {
		return err
	}
	p.plugins, err = nri.New(nri.Config{
		Socket: socket, PluginDir: c.NRI.PluginPath, PluginConfigDir: c.NRI.PluginConfigPath,
		RegistrationTime: time.Duration(c.NRI.RegistrationTime), RequestTime: time.Duration(c.NRI.RequestTime),
		Version: config.Version, BootID: p.bootID, Logger: log,
	}, p.db)
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
	if p.network, err = cni.New(networkConfig(c, log)); err != nil {
		return err
	}
	p.network.Start()
	p.pods, err = sandbox.New(sandbox.Config{
		RunDir: c.Paths.Run, StateDir: c.Paths.Root, ShimBinary: p.shimPath,
		SystemdCgroup: p.systemd, BootID: p.bootID, Logger: log, Controllers: p.hostFacts.Controllers,
		Sysctls: sysctls(c.Container.DefaultSysctls),
	}, sandbox.Deps{Store: p.db, Network: p.network, Debts: p.network, Cgroups: p.cgroups, Plugins: p.plugins})
	return err
}

// sysctls divides NAME=VALUE; the configuration was checked.
func sysctls(list []string) map[string]string {
	out := map[string]string{}
	for _, s := range list {
		name, value, _ := strings.Cut(s, "=")
		out[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return out
}

// networkConfig translates the configuration for package cni. Pods' interfaces
// may be left to their namespaces because stopping a sandbox ends those.
func networkConfig(c config.Config, log *slog.Logger) cni.Config {
	dir := filepath.Join(c.Paths.Root, "cni")
	out := cni.Config{
		ConfDir: c.CNI.ConfDir, BinDirs: c.CNI.BinDirs, CacheDir: dir, Logger: log,
		Builtin: c.Network.Builtin, KeepLinks: true, HandlerDirs: map[string]string{},
		Template: c.CNI.Template, Timeout: time.Duration(c.CNI.Timeout),
	}
	for name, h := range c.Runtime.Handlers {
		if h.CNIConfDir == "" {
			continue
		}
		out.HandlerDirs[name] = h.CNIConfDir
		if name == c.Runtime.Default {
			out.HandlerDirs[""] = h.CNIConfDir
		}
	}
	if c.Network.Default == "builtin" {
		out.Default = &cni.Default{Bridge: c.Network.Bridge, Subnets: c.Network.Subnets, DataDir: filepath.Join(dir, "networks")}
	}
	return out
}

func (p *parts) buildImages(c config.Config, log *slog.Logger) (err error) {
	p.images, err = imageservice.New(imageservice.Config{
		StateDir: c.Paths.Root, KeepBlobs: c.Image.KeepBlobs, Platforms: handlerPlatforms(c.Runtime), Logger: log, Settings: imageSettings(c.Image),
		Limits:       layer.Limits{Bytes: int64(c.Image.MaxLayerSize), Entries: int64(c.Image.MaxLayerFiles)},
		KnownHandler: func(name string) bool { _, ok := c.Runtime.Handlers[name]; return ok || name == "" },
	}, p.db)
	if err != nil {
		return err
	}
	policy, err := signatures(c.Image.Signatures)
	p.images.SetSignatures(policy)
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

// tryUserNamespaces finds out whether pods can have user namespaces. A kernel
// older than 5.19 lets overlayfs have no idmapped layers.
func (p *parts) tryUserNamespaces(log *slog.Logger) {
	err := p.pods.TryUserNamespace(context.Background(), p.images.CanIDMap)
	p.hostFacts.UserNamespaces = err == nil && runtimeservice.KernelAtLeast(p.hostFacts.KernelVersion, 5, 19)
	if !p.hostFacts.UserNamespaces {
		log.Info("pods cannot have user namespaces on this node", "kernel", p.hostFacts.KernelVersion, "reason", err)
	}
}

func (p *parts) buildRuntime(c config.Config, log *slog.Logger) (err error) {
	p.tryUserNamespaces(log)
	handlers := map[string]runtimeservice.Handler{}
	for name, h := range c.Runtime.Handlers {
		path, err := findProgram(c.RuntimePath(name))
		if err != nil {
			log.Warn("the program of a runtime handler is missing; its pods will fail until it is installed", "handler", name, "path", path)
		}
		base, err := baseSpec(h.BaseSpec)
		if err != nil {
			return fmt.Errorf("runtime.handlers.%s.base_spec: %w", name, err)
		}
		handlers[name] = runtimeservice.Handler{
			Runtime: shim.Runtime{Path: path, Root: c.RuntimeRoot(name), SystemdCgroup: p.systemd},
			Spec: spec.Handler{
				PrivilegedWithoutHostDevices: h.PrivilegedWithoutHostDevices,
				AmbientCapabilities:          h.AmbientCapabilities,
				SeccompNativeOnly:            h.SeccompNativeOnly,
				SeccompDefault:               h.SeccompDefault,
				PrivilegedAllDevicesAllowed:  h.PrivilegedAllDevicesAllowed,
				CgroupWritable:               h.CgroupWritable,
				DeviceOwnership:              h.DeviceOwnership,
				PidsLimit:                    h.PidsLimit,
				Base:                         base,
				PodAnnotations:               h.PodAnnotations,
				ContainerAnnotations:         h.ContainerAnnotations,
			},
		}
	}
	p.runtime, err = runtimeservice.New(runtimeservice.Config{
		RunDir: c.Paths.Run, StateDir: c.Paths.Root, Handlers: handlers, DefaultHandler: c.Runtime.Default,
		SystemdCgroup: p.systemd, BootID: p.bootID, Host: p.hostFacts, Version: config.Version, Logger: log,
		CDIDirs: c.Container.CDISpecDirs,
		Limits: runtimeservice.Limits{
			ExecOutputBytes: int(c.Container.ExecOutputLimit), LogLineBytes: int(c.Container.MaxLogLine),
			Log: shim.LogLimits{
				Rate: int64(c.Container.LogRate), FileBytes: int64(c.Container.LogFileSize), Block: c.Container.LogOverflow == "block",
			},
		},
	}, runtimeservice.Deps{
		Store: p.db, Sandboxes: p.pods, Shims: p.shims, Images: p.images, RootFS: p.images, Streams: p.streams,
		Disk: p.images, Cgroups: p.cgroups, Plugins: p.plugins, Network: p.network, Observer: p.watch.observer,
		Confine: confine.New(context.Background(), confine.Config{
			AppArmor: c.Container.AppArmor, SELinux: c.Container.SELinux,
			BlockIOClasses: c.Container.BlockIOClasses, RDTClasses: c.Container.RDTClasses, Logger: log,
		}),
	})
	return err
}

// baseSpec reads a handler's base specification; nil when there is none.
func baseSpec(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&specs.Spec{}); err != nil {
		return nil, fmt.Errorf("%s is no OCI runtime specification: %w", path, err)
	}
	end := dec.InputOffset()
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s is no OCI runtime specification: it goes on after its end, at byte %d", path, end)
	}
	return b, nil
}

// openEdge takes the CRI socket; nobody is served before recovery has begun.
func (p *parts) openEdge(c config.Config, log *slog.Logger) (err error) {
	p.cri, err = cri.New(cri.Config{
		Socket: c.CRISocket(), Logger: log, Observer: p.watch.observer, About: p.about, Options: p.watch.edgeOptions(),
	}, cri.Services{
		Runtime: p.runtime, Image: recoveredImages{p.images, p.runtime.WaitImages},
	})
	return err
}

var _ runtimeapi.ImageServiceServer = (*imageservice.Service)(nil)

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
	errs = append(errs, p.plugins.Close(ctx))
	if p.runtime != nil {
		errs = append(errs, p.runtime.Close(ctx))
	}
	if p.network != nil {
		p.network.Close()
	}
	if p.shims != nil {
		errs = append(errs, p.shims.Close())
	}
	if p.images != nil {
		errs = append(errs, p.images.Close())
	}
	if p.watch != nil {
		errs = append(errs, p.watch.close(ctx))
	}
	if p.db != nil {
		errs = append(errs, p.db.Close())
	}
	return errors.Join(errs...)
}
