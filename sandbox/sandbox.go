// Package sandbox makes, stops and removes pod sandboxes as journaled steps.
//
// A sandbox has no process of its own: it is a record, pinned namespaces, a
// cgroup, a few files and a network attachment. Only a pod with a shared PID
// namespace gets a process, the holder, as that namespace's first one.
package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/cni"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// Config says where sandboxes live and what they take from the node.
type Config struct {
	RunDir         string           // pins and files, gone after a reboot
	StateDir       string           // what outlives a reboot
	ShimBinary     string           // runs "holder ID" as PID 1 of a shared PID namespace
	NodeResolvConf string           // "": /etc/resolv.conf
	NodeHosts      string           // "": /etc/hosts
	Hostname       string           // of the node; "": as the kernel says
	SystemdCgroup  bool             // cgroup parents are systemd slices
	BootID         string           // "": as the kernel says
	Logger         *slog.Logger     // nil: discard
	Controllers    spec.Controllers // of the node, for the limits of pods
	// Sysctls are what pods get in the namespaces that they have of their own,
	// unless they set them.
	Sysctls map[string]string
}

// Validate reports what is missing as InvalidArgument.
func (c Config) Validate() error {
	switch {
	case c.RunDir == "", c.StateDir == "":
		return fmt.Errorf("run-time and state directory of sandboxes must be set: %w", errdefs.ErrInvalidArgument)
	case c.ShimBinary == "":
		return fmt.Errorf("path of berth-shim must be set: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// Network connects sandboxes to the node's networks.
type Network interface {
	// Attach connects the sandbox; on an error nothing is left attached.
	Attach(ctx context.Context, r cni.Request) (cni.Result, error)
	// Detach disconnects the sandbox. Idempotent.
	Detach(ctx context.Context, r cni.Request) error
	// Status is nil when pods can be attached, else it says what is missing.
	Status(ctx context.Context) cni.Readiness
}

// Debts tells what is left to do on the networks.
type Debts interface {
	// Owed returns the sandboxes that a detach is owed for.
	Owed() ([]string, error)
}

// Plugins hear of a sandbox when it is complete, before anybody else can see it.
type Plugins interface {
	// RunPod tells them; an error refuses the sandbox.
	RunPod(ctx context.Context, s store.Sandbox) error
	// UndoPod takes that back. A sandbox they do not know is left alone.
	UndoPod(ctx context.Context, id string)
}

// Deps are the parts the Manager works with.
type Deps struct {
	Store   *store.DB
	Network Network
	Debts   Debts
	Cgroups cgroup.Mode
	Plugins Plugins // nil: none
}

// Manager runs the verbs on sandboxes. The caller serialises verbs per sandbox.
type Manager struct {
	cfg Config
	db  *store.DB
	net Network
	due Debts
	cg  cgroup.Mode
	at  layout

	plugins Plugins
	ports   portClaims
	groups  sync.Mutex  // held while a cgroup is made, or found to be nobody else's and removed
	lost    chan string // sandboxes whose holder has ended
}

// New checks the configuration and fills in what it left to the node. It
// changes nothing.
func New(cfg Config, deps Deps) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.NodeResolvConf == "" {
		cfg.NodeResolvConf = "/etc/resolv.conf"
	}
	if cfg.NodeHosts == "" {
		cfg.NodeHosts = "/etc/hosts"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("read the node's hostname: %w", err)
		}
		cfg.Hostname = name
	}
	if cfg.BootID == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("read boot ID: %w", err)
		}
		cfg.BootID = strings.TrimSpace(string(b))
	}
	m := &Manager{
		cfg: cfg,
		db:  deps.Store,
		net: deps.Network,
		due: deps.Debts,
		cg:  deps.Cgroups,
		at:  layout{run: cfg.RunDir, state: cfg.StateDir},

		plugins: deps.Plugins,
		lost:    make(chan string),
	}
	for _, v := range m.verbs() {
		if err := op.Declare(v); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// NetworkReady reports whether pods can be attached, and why not. A note says
// what an operator should know although they can.
func (m *Manager) NetworkReady(ctx context.Context) (note string, err error) {
	r := m.net.Status(ctx)
	return r.Note, r.Err
}

// Files are the paths that a sandbox offers its containers for mounting.
type Files struct {
	Hostname   string // /etc/hostname
	Hosts      string // /etc/hosts, for clients that mount none
	ResolvConf string // /etc/resolv.conf
	Shm        string // /dev/shm; the node's for host IPC
}

// Files returns the paths for a sandbox. Pure: it does not look at the disk.
func (m *Manager) Files(s store.Sandbox) Files { return m.at.files(s) }
