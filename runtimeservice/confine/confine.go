// Package confine knows what the node has to confine containers with: AppArmor
// and its profiles, SELinux and its labels, classes of block I/O and caches.
// What becomes of them is decided in sandbox/spec.
package confine

import (
	"context"
	"log/slog"

	"github.com/opencontainers/selinux/go-selinux"

	"github.com/berth-dev/berth/sandbox/spec"
)

// Node is this node. Its zero value has nothing to confine with.
type Node struct {
	cfg      Config
	appArmor *appArmor // nil: not on
	selinux  bool      // on, and the policy has labels for containers
	process  string    // label of containers by the policy
	file     string    // label of their files by the policy
	levels   levels
	classes  *classes
}

// Config says what of the node is used.
type Config struct {
	AppArmor       bool         // where the kernel has it
	SELinux        bool         // where it is on and the policy has labels for containers
	BlockIOClasses string       // file of classes, as goresctrl defines it; "": none
	RDTClasses     string       // the same for caches and memory bandwidth
	Logger         *slog.Logger // nil: discard
}

// New looks at the node and prepares what can be prepared. Trouble is logged:
// containers that do not need what is missing go on.
func New(ctx context.Context, cfg Config) *Node {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Node{cfg: cfg}
	if a := newAppArmor(); cfg.AppArmor && a.enabled() {
		n.appArmor = &a
		if _, err := a.ensure(ctx); err != nil {
			cfg.Logger.Warn("containers that name no AppArmor profile run unconfined by it, and those that ask for the default are refused", "error", err)
		}
	}
	if cfg.SELinux && selinux.GetEnabled() {
		n.process, n.file = policyLabels()
		// Debian's policy names a type for containers that it does not have.
		n.selinux = n.process != "" && selinux.SecurityCheckContext(n.process) == nil
		if !n.selinux {
			cfg.Logger.Warn("SELinux is on, but its policy has no labels for containers; they run unlabelled", "label", n.process)
		}
	}
	n.classes = loadClasses(cfg.BlockIOClasses, cfg.RDTClasses, cfg.Logger)
	return n
}

// Security returns what there is now. A default profile that was unloaded
// meanwhile is loaded again.
func (n *Node) Security(ctx context.Context) spec.HostSecurity {
	var s spec.HostSecurity
	if n.selinux {
		s.SELinux = true
		s.SELinuxProcess, s.SELinuxFile = n.process, n.file
	}
	if n.appArmor == nil {
		return s
	}
	s.AppArmor = true
	names, err := n.appArmor.ensure(ctx)
	if err != nil {
		// The refusal of a container that needs it says what is missing.
		n.cfg.Logger.Debug("AppArmor has no default profile", "error", err)
		s.AppArmorTrouble = err.Error()
	} else {
		s.AppArmorDefault = DefaultProfile
	}
	s.AppArmorProfiles = names
	return s
}
