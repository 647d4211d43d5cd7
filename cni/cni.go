// Package cni attaches pods to the node's networks. It follows the Container
// Network Interface specification 1.1 through libcni and the node's
// configuration files, as every network vendor expects.
//
// Before a plugin runs, the network it runs for is written down (see intent.go),
// so that a detach is possible and complete after a crash, after the
// configuration file changed, and after it is gone.
package cni

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// IfName is the name of a pod's interface.
const IfName = "eth0"

// Config says where networks and plugins are found.
type Config struct {
	ConfDir     string            // network configuration, for example /etc/cni/net.d
	HandlerDirs map[string]string // runtime handler -> its own configuration directory
	BinDirs     []string          // plugin directories, searched in order
	CacheDir    string            // results and intents, kept across reboots
	Timeout     time.Duration     // of one attach, detach or check; 0: 30 s
	Pace        Pace
	Builtin     []string          // plugin types served by package builtin; all others are executed
	InProcess   map[string]Plugin // plugin types served by the caller; they win over Builtin
	Default     *Default          // network while ConfDir holds none; nil: none
	Template    string            // what SetPodCIDR makes a configuration of; "": nothing
	KeepLinks   bool              // a detach leaves the pod's interface to the end of its namespace, which the caller causes
	Logger      *slog.Logger      // nil: discard
}

// Pace says how often the Manager looks after networks by itself.
type Pace struct {
	Status time.Duration // time-out of one STATUS; 0: 5 s
	Poll   time.Duration // age from which a status that is asked for is found out anew; 0: 10 s
	Relist time.Duration // between looks at a directory to which nothing seems to happen; 0: 1 min
}

func (p Pace) withDefaults() Pace {
	return Pace{
		Status: cmp.Or(p.Status, 5*time.Second),
		Poll:   cmp.Or(p.Poll, 10*time.Second),
		Relist: cmp.Or(p.Relist, time.Minute),
	}
}

// Plugin answers one plugin call in-process. It gets what a plugin binary gets,
// the configuration on stdin and the CNI_* environment, and returns what the
// binary would print. A failure should be a *types.Error.
type Plugin func(ctx context.Context, stdin []byte, env []string) ([]byte, error)

// Default describes the network of a machine on its own: a bridge with address
// translation, served by package builtin.
type Default struct {
	Bridge  string
	Subnets []string // in CIDR form
	DataDir string   // for addresses in use
}

// Validate reports a configuration that cannot work as InvalidArgument.
func (c Config) Validate() error {
	switch {
	case c.ConfDir == "":
		return fmt.Errorf("network configuration directory is not set: %w", errdefs.ErrInvalidArgument)
	case len(c.BinDirs) == 0:
		return fmt.Errorf("no network plugin directory is set: %w", errdefs.ErrInvalidArgument)
	case c.CacheDir == "":
		return fmt.Errorf("network cache directory is not set: %w", errdefs.ErrInvalidArgument)
	case c.Timeout < 0, c.Pace.Status < 0, c.Pace.Poll < 0, c.Pace.Relist < 0:
		return fmt.Errorf("network time-out is negative: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// Manager attaches and detaches sandboxes. Calls for different sandboxes may
// run at the same time; the caller serialises those for one sandbox.
type Manager struct {
	cfg  Config
	exec *executor
	lib  *libcni.CNIConfig
	def  *directory            // of handlers without one of their own
	dirs map[string]*directory // all, by path

	turns  turns
	cidr   podCIDR
	survey sync.Mutex // one looks at the node before the built-in network comes

	ctx     context.Context // of what runs in the background
	stop    context.CancelFunc
	running sync.WaitGroup // what Start began
}

// New checks the configuration. It reads no network: a directory that does not
// exist yet is no error.
func New(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Timeout, cfg.Pace = cmp.Or(cfg.Timeout, 30*time.Second), cfg.Pace.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ex, err := newExecutor(cfg)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		cfg:  cfg,
		exec: ex,
		lib:  libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, ex),
		dirs: map[string]*directory{},
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	var fallback *libcni.NetworkConfigList
	if cfg.Default != nil {
		if fallback, err = cfg.Default.network(); err != nil {
			return nil, err
		}
	}
	m.def = newDirectory(m, cfg.ConfDir, fallback)
	m.dirs[cfg.ConfDir] = m.def
	for _, dir := range cfg.HandlerDirs {
		if m.dirs[dir] == nil {
			m.dirs[dir] = newDirectory(m, dir, nil)
		}
	}
	return m, nil
}

// Start deletes what a daemon that died was writing, and watches the
// configuration directories until Close. Without it Status looks only when it is
// asked. Call it before the first Attach.
func (m *Manager) Start() {
	if err := m.sweepHalves(); err != nil {
		m.cfg.Logger.Warn("files of an earlier daemon are left", "error", err)
	}
	for _, d := range m.dirs {
		m.running.Go(func() { d.follow(m.ctx, m.cfg.Pace.Relist) })
	}
}

// Close ends what runs in the background. Attachments stay, and attaching and
// detaching still work.
func (m *Manager) Close() {
	m.stop()
	m.running.Wait()
}

// of returns the directory that serves a runtime handler.
func (m *Manager) of(handler string) *directory {
	if dir, ok := m.cfg.HandlerDirs[handler]; ok {
		return m.dirs[dir]
	}
	return m.def
}
