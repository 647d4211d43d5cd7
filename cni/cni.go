// Package cni attaches pods to the node's networks. It follows the Container
// Network Interface specification 1.1 through libcni and the node's
// configuration files, as every network vendor expects.
//
// Before a plugin runs, the network it runs for is written down (see intent.go),
// so that a detach is possible and complete after a crash, after the
// configuration file changed, and after it is gone.
package cni

import (
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

const (
	defaultTimeout       = 30 * time.Second
	defaultStatusTimeout = 5 * time.Second
	statusMaxAge         = 10 * time.Second
)

// Plugin answers one plugin call in-process. It gets what a plugin binary gets,
// the configuration on stdin and the CNI_* environment, and returns what the
// binary would print. A failure should be a *types.Error.
type Plugin func(ctx context.Context, stdin []byte, env []string) ([]byte, error)

// Config says where networks and plugins are found.
type Config struct {
	ConfDir       string            // network configuration, for example /etc/cni/net.d
	BinDirs       []string          // plugin directories, searched in order
	CacheDir      string            // results and intents, kept across reboots
	Timeout       time.Duration     // of one attach, detach or check; 0: 30 s
	StatusTimeout time.Duration     // of one status poll; 0: 5 s
	Builtin       []string          // plugin types served by package builtin; all others are executed
	InProcess     map[string]Plugin // plugin types served by the caller; they win over Builtin
	Default       *Default          // network while ConfDir holds none; nil: none
	KeepLinks     bool              // a detach leaves the pod's interface to the end of its namespace, which the caller causes
	Logger        *slog.Logger      // nil: discard
}

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
	case c.Timeout < 0, c.StatusTimeout < 0:
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

	fallback *libcni.NetworkConfigList // network while there is no configuration; nil: none

	mu     sync.Mutex
	loaded snapshot // configuration as last read
	status pluginStatus
}

// New checks the configuration. It reads no network: a directory that does not
// exist yet is no error.
func New(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.StatusTimeout == 0 {
		cfg.StatusTimeout = defaultStatusTimeout
	}
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
	}
	if cfg.Default != nil {
		if m.fallback, err = cfg.Default.network(); err != nil {
			return nil, err
		}
	}
	return m, nil
}
