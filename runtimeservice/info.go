package runtimeservice

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/runtimeservice/checkpoint"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim"
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
	probes  *probes
	network Network
	stops   *stops
	criu    *checkpoint.CRIU
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
	note, notReady := i.pod.NetworkReady(ctx)
	out := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", i.ready(ctx)),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", notReady),
			condition(logsWritable, "LogWriteFailed", logTrouble(i.shim.LogTrouble(ctx))),
		}},
		RuntimeHandlers: i.handlers(ctx),
	}
	if notReady == nil {
		out.Status.Conditions[1].Message = note
	}
	// With the node's network a user namespace takes nothing more of a handler.
	out.Features = &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true,
		UserNamespacesHostNetwork: slices.ContainsFunc(out.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool {
			return h.GetFeatures().GetUserNamespaces()
		})}
	if r.GetVerbose() {
		out.Info = map[string]string{}
		for key, v := range map[string]any{"config": i.settings(), "network": i.network.Describe(ctx), "containers": i.troubles(), "checkpoint": i.checkpoints(ctx)} {
			b, err := json.Marshal(v)
			if err != nil {
				return nil, fmt.Errorf("status: encode verbose information: %w", err)
			}
			out.Info[key] = string(b)
		}
	}
	return out, nil
}

// troubles says in a few words, from memory, what is wrong with containers, by
// ID: those that the last stop did not end, and those whose shim was not found.
func (i *info) troubles() map[string]string {
	out := map[string]string{}
	for _, st := range i.locks.recovery.List() {
		if st.Kind == kindContainer && st.Err != nil {
			out[st.ID] = "cannot " + st.Doing
		}
	}
	for _, id := range i.stops.unended() {
		rec, err := i.db.Container(id)
		if err == nil && containerState(rec, i.cfg.BootID) != runtimeapi.ContainerState_CONTAINER_EXITED {
			out[id] = "cannot be stopped"
		}
	}
	return out
}

// logsWritable is a condition of Berth's own: the containers run, but what they
// say is being lost.
const logsWritable = "ContainerLogsWritable"

func logTrouble(all []shim.LogTrouble) error {
	if len(all) == 0 {
		return nil
	}
	first := all[0]
	return fmt.Errorf("logs of %d containers cannot be written and lose output, among them %s, which has lost %d bytes: %w; make room, nothing has to be restarted",
		len(all), first.ID, first.Log.Dropped, first.Log.Error)
}

// LogLosses returns what the logs of containers have lost, for metrics.
func (i *info) LogLosses(ctx context.Context) shim.LogLosses { return i.shim.LogLosses(ctx) }

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
		hf := &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: i.probes.recursiveReadOnly(ctx, i.cfg.Host, i.cfg.Handlers[name]),
			UserNamespaces:          i.probes.userNamespaces(ctx, i.cfg.Host, i.cfg.Handlers[name]),
		}
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

// UpdateRuntimeConfig takes the pod CIDR, which network plugins may ask for and
// a template of a network configuration may be filled with.
func (i *info) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if err := i.network.SetPodCIDR(ctx, r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()); err != nil {
		return nil, fmt.Errorf("update runtime config: %w", err)
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
	own   bool // a program, not a script in front of one
}

func newProbes() *probes { return &probes{m: map[string]*probe{}} }

func (p *probes) features(ctx context.Context, path string) (*features.Features, error) {
	known, err := p.ask(ctx, path)
	if err != nil {
		return nil, err
	}
	return known.found, nil
}

func (p *probes) ask(ctx context.Context, path string) (*probe, error) {
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
		return known, nil
	}
	f, err := askFeatures(ctx, real)
	if err != nil {
		return nil, err
	}
	known = &probe{size: st.Size(), mtime: st.ModTime(), found: f, own: isELF(real)}
	p.mu.Lock()
	p.m[real] = known
	p.mu.Unlock()
	return known, nil
}

func isELF(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// runcVersion is the annotation by which runc, and what is built of it, tells its
// version among its features.
const runcVersion = "org.opencontainers.runc.version"

// gate reports whether the OCI runtime is a runc whose created containers wait
// at a FIFO. A script in front of runc may have something to do at a start, so it
// is called for it.
func (p *probes) gate(ctx context.Context, handler Handler) bool {
	known, err := p.ask(ctx, handler.Runtime.Path)
	return err == nil && known.own && strings.HasPrefix(known.found.Annotations[runcVersion], "1.")
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

// userNamespaces reports whether node and OCI runtime can do pods with a user
// namespace as Kubernetes means them: with idmapped mounts.
func (p *probes) userNamespaces(ctx context.Context, h spec.Host, handler Handler) bool {
	if !h.UserNamespaces {
		return false
	}
	f, err := p.features(ctx, handler.Runtime.Path)
	if err != nil || f.Linux == nil || !slices.Contains(f.Linux.Namespaces, "user") {
		return false
	}
	ext := f.Linux.MountExtensions
	return ext != nil && ext.IDMap != nil && ext.IDMap.Enabled != nil && *ext.IDMap.Enabled
}

// seccomp reports whether kernel and OCI runtime filter system calls. A runtime
// that does not say, does.
func (p *probes) seccomp(ctx context.Context, h spec.Host, handler Handler) bool {
	f, err := p.features(ctx, handler.Runtime.Path)
	if !h.SeccompEnabled || err != nil || f.Linux == nil || f.Linux.Seccomp == nil || f.Linux.Seccomp.Enabled == nil {
		return h.SeccompEnabled
	}
	return *f.Linux.Seccomp.Enabled
}

// oldestVersion of the specification is what runtimes know that cannot say
// which they know; crun before 1.9 refuses every other.
const oldestVersion = "1.0.2"

// silent reports whether the OCI runtime does not tell its features.
func (p *probes) silent(ctx context.Context, handler Handler) bool {
	f, err := p.features(ctx, handler.Runtime.Path)
	return err == nil && f.OCIVersionMax == ""
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

// checkpoints says whether there can be any under the default handler, for a
// verbose status: the interface has no field for it.
func (i *info) checkpoints(ctx context.Context) any {
	out := struct {
		Available bool   `json:"available"`
		Reason    string `json:"reason,omitempty"`
	}{Available: true}
	if err := canCheckpoint(ctx, i.criu, i.probes, i.cfg.Handlers[i.cfg.DefaultHandler].Runtime); err != nil {
		out.Available, out.Reason = false, err.Error()
	}
	return out
}
