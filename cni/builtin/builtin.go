// Package builtin answers calls of standard CNI plugins in-process: with
// netlink and nftables instead of a process for each plugin and each rule.
//
// It reads the same configuration, keeps the same files and names its rules
// like the reference plugins, so that a node can switch either way while pods
// run. What it does not implement (a field, a mode) it never ignores: the call
// goes to the plugin's program then, as it does for a pod that the program
// added in a way only the program can undo.
package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berth-dev/berth/cni/builtin/fw"
	"github.com/berth-dev/berth/cni/builtin/ipam"
)

// Exec runs a plugin's program, found in dirs, and returns what it printed.
type Exec func(ctx context.Context, plugin string, dirs []string, stdin []byte, env []string) ([]byte, error)

// Config says what is served.
type Config struct {
	Types []string // plugin types, each one of Types()
	Exec  Exec     // for everything that is not served
	// KeepLinks makes DEL take the addresses off a pod's interface but leave the
	// interface to the end of its network namespace, where the kernel removes
	// many at once. The caller has to end the namespace after DEL.
	KeepLinks bool
}

// Validate reports a type that is not known as InvalidArgument.
func (c Config) Validate() error {
	for _, t := range c.Types {
		if !slices.Contains(Types(), t) {
			return fmt.Errorf("network plugin type %q is not built in: %w", t, errdefs.ErrInvalidArgument)
		}
	}
	if c.Exec == nil {
		return fmt.Errorf("no way to run plugin programs is set: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// Set serves plugin types. Safe for concurrent use.
type Set struct {
	cfg    Config
	served map[string]verbs
	rules  fw.Rules
	stores ipam.Stores
}

// verbs are what a plugin does. One that is nil does nothing.
type verbs struct {
	add             func(context.Context, *call) (*types100.Result, error)
	del, check, gcs func(context.Context, *call) error
	since           string // the first version of the specification that it knows
}

// Types lists the plugin types that can be served.
func Types() []string {
	return []string{"bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "ptp", "sbr", "tuning"}
}

// New returns a set for the given types.
func New(cfg Config) (*Set, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Set{cfg: cfg, served: map[string]verbs{}}
	all := map[string]verbs{
		"bandwidth":  {s.bandwidthAdd, s.bandwidthDel, s.bandwidthCheck, nil, "0.3.0"},
		"bridge":     {s.bridgeAdd, s.bridgeDel, s.bridgeCheck, s.bridgeGC, "0.1.0"},
		"firewall":   {s.firewallAdd, s.firewallDel, s.firewallCheck, nil, "0.4.0"},
		"host-local": {s.hostLocalAdd, s.hostLocalDel, s.hostLocalCheck, s.hostLocalGC, "0.1.0"},
		"loopback":   {loopbackAdd, loopbackDel, loopbackCheck, nil, "0.1.0"},
		"portmap":    {s.portmapAdd, s.portmapDel, s.portmapCheck, nil, "0.1.0"},
		"ptp":        {s.ptpAdd, s.ptpDel, s.ptpCheck, s.ptpGC, "0.1.0"},
		"sbr":        {sbrAdd, sbrDel, nil, nil, "0.1.0"},
		"tuning":     {tuningAdd, tuningDel, tuningCheck, nil, "0.1.0"},
	}
	for _, t := range cfg.Types {
		s.served[t] = all[t]
	}
	return s, nil
}

// Serves tells whether calls of a plugin type may be given to Call.
func (s *Set) Serves(plugin string) bool {
	_, ok := s.served[plugin]
	return ok
}

// Call answers one plugin call: it takes what the program gets, on stdin and in
// the environment, and returns what the program would print. A failure is a
// *types.Error or wraps one.
func (s *Set) Call(ctx context.Context, plugin string, stdin []byte, env []string) ([]byte, error) {
	c := newCall(plugin, stdin, env)
	out, err := s.serve(ctx, c)
	var no *notServed
	if errors.As(err, &no) {
		return s.program(ctx, c, no.why)
	}
	if err != nil {
		var e *types.Error
		if errors.As(err, &e) {
			return nil, err
		}
		return nil, fmt.Errorf("%w", &types.Error{Code: codeOf(err), Msg: err.Error()})
	}
	return out, nil
}

// program gives a call to the plugin's program. That knows nothing of the rules
// that were made here before the node was switched to programs.
func (s *Set) program(ctx context.Context, c *call, why string) ([]byte, error) {
	if c.command == "DEL" && s.CleansAfter(c.plugin) {
		if err := s.cleanAfter(c); err != nil {
			return nil, err
		}
	}
	out, err := s.cfg.Exec(ctx, c.plugin, c.dirs, c.stdin, c.env)
	if err != nil {
		return nil, fmt.Errorf("%w (the program was used because %s)", err, why)
	}
	return out, nil
}

// CleansAfter tells whether the calls of a type that is not served should be
// given to Call all the same: its program would leave rules of Call's behind.
func (s *Set) CleansAfter(plugin string) bool { return plugin == "portmap" || plugin == "firewall" }

// cleanAfter removes rules that the program may not find. A configuration that
// cannot be read has made none.
func (s *Set) cleanAfter(c *call) error {
	if c.plugin == "portmap" {
		_, err := s.rules.Unforward(c.containerID)
		return err
	}
	if err := c.parse("0.4.0"); err != nil {
		return nil
	}
	conf, err := c.firewallConf()
	if err != nil {
		return nil
	}
	if err := s.rules.Unlet(conf.accept()); !errors.Is(err, fw.ErrIPTables) {
		return err
	}
	return nil
}

func codeOf(err error) uint {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return types.ErrTryAgainLater
	}
	return types.ErrInternal
}

func (s *Set) serve(ctx context.Context, c *call) ([]byte, error) {
	v, ok := s.served[c.plugin]
	if !ok {
		return nil, refuse("plugin type %s is not served in-process", c.plugin)
	}
	if c.command == "VERSION" {
		return json.Marshal(map[string]any{"cniVersion": version.Current(), "supportedVersions": version.VersionsStartingFrom(v.since).SupportedVersions()})
	}
	if err := c.parse(v.since); err != nil {
		return nil, err
	}
	run := func(verb func(context.Context, *call) error) error {
		if verb == nil {
			return nil
		}
		return verb(ctx, c)
	}
	switch c.command {
	case "ADD":
		res, err := v.add(ctx, c)
		if err != nil {
			return nil, err
		}
		return c.print(res)
	case "DEL":
		return nil, run(v.del)
	case "CHECK":
		return nil, run(v.check)
	case "GC":
		return nil, run(v.gcs)
	case "STATUS":
		return nil, s.status(ctx, c)
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("unknown CNI_COMMAND: %s", c.command), "")
}

// status asks the address plugin; the others are always ready.
func (s *Set) status(ctx context.Context, c *call) error {
	var conf struct {
		IPAM types.IPAM `json:"ipam"`
	}
	if err := json.Unmarshal(c.stdin, &conf); err != nil || conf.IPAM.Type == "" || conf.IPAM.Type == c.plugin {
		return err
	}
	_, err := s.delegate(ctx, c, conf.IPAM.Type)
	return err
}
