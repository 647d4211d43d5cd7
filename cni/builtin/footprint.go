package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/berth-dev/berth/cni/builtin/fw"
)

// Footprint is what a node was like before a network of a bridge with address
// translation came. What the network adds to that can be taken away again.
type Footprint struct {
	Bridge     string            `json:"bridge"`
	HadBridge  bool              `json:"hadBridge"`
	Forwarding map[string]string `json:"forwarding"` // sysctls, by path below /proc/sys
	Tables     []string          `json:"tables"`     // of the packet filter
}

// Survey looks at the node before the first pod of a network comes.
func Survey(bridge string) (Footprint, error) {
	f := Footprint{Bridge: bridge, Forwarding: map[string]string{}}
	for _, pattern := range []string{"net/ipv4/ip_forward", "net/ipv[46]/conf/*/forwarding"} {
		paths, err := filepath.Glob("/proc/sys/" + pattern)
		if err != nil {
			return f, err
		}
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if errors.Is(err, fs.ErrNotExist) {
				continue // an interface that has gone
			}
			if err != nil {
				return f, fmt.Errorf("look at the node's forwarding: %w", err)
			}
			f.Forwarding[strings.TrimPrefix(p, "/proc/sys/")] = strings.TrimSpace(string(b))
		}
	}
	h, err := openNode()
	if err != nil {
		return f, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	_, err = h.LinkByName(bridge)
	f.HadBridge = err == nil
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		return f, fmt.Errorf("look for %q: %w", bridge, err)
	}
	f.Tables, err = new(fw.Rules).Tables()
	return f, err
}

// Erase takes away what the network has added and nobody else uses: its bridge,
// its rules, tables without rules, forwarding. It returns what it has done, for
// people. All is tried; it may be repeated.
func (f Footprint) Erase(network string) (done []string, err error) {
	var errs []error
	note := func(err error, format string, args ...any) {
		if err == nil {
			done = append(done, fmt.Sprintf(format, args...))
		}
		errs = append(errs, err)
	}
	if !f.HadBridge {
		if found, err := dropBridge(f.Bridge); found || err != nil {
			note(err, "deleted bridge %s", f.Bridge)
		}
	}
	rules := &fw.Rules{}
	errs = append(errs, rules.MasqueradeGC(network, nil))
	have, err := rules.Tables()
	errs = append(errs, err)
	dropped, err := rules.DropTables(slices.DeleteFunc(have, func(t string) bool { return slices.Contains(f.Tables, t) }))
	errs = append(errs, err)
	for _, t := range dropped {
		note(nil, "deleted nftables table %s", t)
	}
	// Those that stand for all interfaces come first: they set each of them.
	for _, path := range slices.SortedFunc(maps.Keys(f.Forwarding), byReach) {
		now, err := os.ReadFile("/proc/sys/" + path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(now)) == f.Forwarding[path] {
			continue
		}
		if err == nil {
			err = os.WriteFile("/proc/sys/"+path, []byte(f.Forwarding[path]), 0o644)
		}
		note(err, "set %s back to %s", strings.ReplaceAll(path, "/", "."), f.Forwarding[path])
	}
	return done, errors.Join(errs...)
}

func byReach(a, b string) int {
	rank := func(path string) int {
		return slices.Index([]string{"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"}, path)
	}
	if d := rank(b) - rank(a); d != 0 {
		return d
	}
	return strings.Compare(a, b)
}

func dropBridge(name string) (found bool, err error) {
	h, err := openNode()
	if err != nil {
		return false, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %q: %w", name, err)
	}
	if _, ok := link.(*netlink.Bridge); !ok {
		return false, fmt.Errorf("%q is no bridge any more: it is left alone", name)
	}
	return true, removeLink(h, link)
}
