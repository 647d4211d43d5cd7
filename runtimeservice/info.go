package runtimeservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox/spec"
)

// What Version reports.
const (
	runtimeName   = "berth"
	apiVersion    = "v1"
	kubeletAPIVer = "0.1.0" // version of the kubelet's own runtime API, as all runtimes report it
)

// probeTime bounds one run of an OCI runtime's features command.
const probeTime = 10 * time.Second

// info answers the RPCs about the runtime itself.
type info struct {
	*core
	probes *probes
}

// Version reports names and versions.
func (i *info) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	v := i.cfg.Version
	if v == "" {
		v = "0.0.0"
	}
	return &runtimeapi.VersionResponse{Version: kubeletAPIVer, RuntimeName: runtimeName, RuntimeVersion: v, RuntimeApiVersion: apiVersion}, nil
}

// Status reports whether the runtime and its network can be used, found out by
// looking, and what each handler is capable of.
func (i *info) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	out := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", i.ready(ctx)),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", i.pod.NetworkReady(ctx)),
		}},
		RuntimeHandlers: i.handlers(ctx),
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	if r.GetVerbose() {
		b, err := json.Marshal(i.settings())
		if err != nil {
			return nil, fmt.Errorf("status: encode verbose information: %w", err)
		}
		out.Info = map[string]string{"config": string(b)}
	}
	return out, nil
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: kind, Status: err == nil}
	if err != nil {
		c.Reason, c.Message = reason, err.Error()
	}
	return c
}

// ready says why no container could be run now.
func (i *info) ready(ctx context.Context) error {
	for _, dir := range []string{i.cfg.StateDir, i.cfg.RunDir} {
		if err := unix.Access(dir, unix.W_OK); err != nil {
			return fmt.Errorf("directory %s can't be written to: %w", dir, err)
		}
	}
	h := i.cfg.Handlers[i.cfg.DefaultHandler]
	if _, err := i.probes.features(ctx, h.Runtime.Path); err != nil {
		return fmt.Errorf("OCI runtime of handler %q: %w", i.cfg.DefaultHandler, err)
	}
	return nil
}

// handlers lists the configured handlers; the default one is there under the
// empty name too, by which pods without a runtime class ask for it.
func (i *info) handlers(ctx context.Context) []*runtimeapi.RuntimeHandler {
	var out []*runtimeapi.RuntimeHandler
	for _, name := range slices.Sorted(maps.Keys(i.cfg.Handlers)) {
		// User namespaces are refused today, whatever the OCI runtime can do.
		hf := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: i.probes.recursiveReadOnly(ctx, i.cfg.Host, i.cfg.Handlers[name])}
		if name == i.cfg.DefaultHandler {
			out = append(out, &runtimeapi.RuntimeHandler{Features: hf})
		}
		out = append(out, &runtimeapi.RuntimeHandler{Name: name, Features: hf})
	}
	return out
}

// settings are the facts that verbose status shows. None is a secret.
func (i *info) settings() any {
	type handler struct {
		Path string `json:"path"`
		Root string `json:"root"`
	}
	hs := map[string]handler{}
	for name, h := range i.cfg.Handlers {
		hs[name] = handler{h.Runtime.Path, h.Runtime.Root}
	}
	return struct {
		StateDir       string             `json:"stateDir"`
		RunDir         string             `json:"runDir"`
		BootID         string             `json:"bootID"`
		SystemdCgroup  bool               `json:"systemdCgroup"`
		CgroupV2       bool               `json:"cgroupV2"`
		Kernel         string             `json:"kernel"`
		DefaultHandler string             `json:"defaultHandler"`
		Handlers       map[string]handler `json:"handlers"`
	}{i.cfg.StateDir, i.cfg.RunDir, i.cfg.BootID, i.cfg.SystemdCgroup, i.cfg.Host.CgroupV2,
		i.cfg.Host.KernelVersion, i.cfg.DefaultHandler, hs}
}

// RuntimeConfig tells the kubelet the cgroup driver.
func (i *info) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	d := runtimeapi.CgroupDriver_CGROUPFS
	if i.cfg.SystemdCgroup {
		d = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: d}}, nil
}

// UpdateRuntimeConfig takes the pod CIDR and has no use for it: addresses are
// the network configuration's affair.
func (i *info) UpdateRuntimeConfig(_ context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		i.cfg.Logger.Debug("the client told its pod CIDR; the CNI configuration decides about addresses", "cidr", cidr)
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// probes remember what each OCI runtime said about itself. A binary that is
// replaced is asked again; a failure is not remembered.
type probes struct {
	mu sync.Mutex
	m  map[string]*probe
}

type probe struct {
	size  int64
	mtime time.Time
	found *features.Features
}

func newProbes() *probes { return &probes{m: map[string]*probe{}} }

func (p *probes) features(ctx context.Context, path string) (*features.Features, error) {
	real, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("%s can't be run: %w", path, err)
	}
	st, err := os.Stat(real)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", real, err)
	}
	p.mu.Lock()
	known := p.m[real]
	p.mu.Unlock()
	if known != nil && known.size == st.Size() && known.mtime.Equal(st.ModTime()) {
		return known.found, nil
	}
	f, err := askFeatures(ctx, real)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.m[real] = &probe{size: st.Size(), mtime: st.ModTime(), found: f}
	p.mu.Unlock()
	return f, nil
}

// recursiveReadOnly reports whether kernel and OCI runtime can do such mounts.
// A runtime that does not answer can't; Status says why when it is the default.
func (p *probes) recursiveReadOnly(ctx context.Context, h spec.Host, handler Handler) bool {
	if !h.RecursiveReadOnly {
		return false
	}
	f, err := p.features(ctx, handler.Runtime.Path)
	return err == nil && slices.Contains(f.MountOptions, "rro")
}

// askFeatures runs the features command of an OCI runtime. One that is too old
// to have it but runs is a runtime without features.
func askFeatures(ctx context.Context, path string) (*features.Features, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "features").Output()
	if err != nil {
		if verr := exec.CommandContext(ctx, path, "--version").Run(); verr != nil {
			return nil, fmt.Errorf("%s does not run: %w", path, errors.Join(err, verr))
		}
		return &features.Features{}, nil
	}
	var f features.Features
	if err := json.Unmarshal(out, &f); err != nil {
		return nil, fmt.Errorf("%s features: decode: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return &f, nil
}
