package netns

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// CheckSysctls reports the first sysctl, by name, that is not confined to one
// of the namespace kinds being made, as InvalidArgument. Both separators of
// sysctl(8) are understood: "net.ipv4.ip_forward" and "net/ipv4/ip_forward".
func CheckSysctls(sysctls map[string]string, kinds []string) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		path := sysctlPath(name)
		for part := range strings.SplitSeq(path, "/") {
			if part == "" || part == "." || part == ".." {
				return fmt.Errorf("sysctl %q: malformed name: %w", name, errdefs.ErrInvalidArgument)
			}
		}
		kind := sysctlKind(path)
		if kind == "" {
			return fmt.Errorf("sysctl %q is not namespaced and would change the node: %w", name, errdefs.ErrInvalidArgument)
		}
		if !slices.Contains(kinds, kind) {
			return fmt.Errorf("sysctl %q needs a pod %s namespace, but the pod uses the node's: %w",
				name, kind, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// sysctlKind returns the namespace kind a sysctl belongs to, "" for the node's.
func sysctlKind(path string) string {
	switch {
	case strings.HasPrefix(path, "net/"):
		return Net
	case strings.HasPrefix(path, "fs/mqueue/"), strings.HasPrefix(path, "kernel/shm"),
		strings.HasPrefix(path, "kernel/msg"), path == "kernel/sem":
		return IPC
	case path == "kernel/domainname":
		return UTS
	}
	return ""
}

// sysctlPath converts a name to a path below /proc/sys. Whichever separator
// comes first is the separator; the other stands for the character itself, so
// that VLAN interfaces such as eth0.100 can be named.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// SplitSysctls separates the sysctls that can be set in a new namespace from
// those of an interface that only exists once the network is attached
// (net.ipv4.conf.eth0.*). Set the latter with SetSysctls.
func SplitSysctls(sysctls map[string]string) (now, later map[string]string) {
	now, later = map[string]string{}, map[string]string{}
	for name, value := range sysctls {
		p := strings.Split(sysctlPath(name), "/")
		if len(p) == 5 && p[0] == "net" && (p[2] == "conf" || p[2] == "neigh") &&
			p[3] != "all" && p[3] != "default" && p[3] != "lo" {
			later[name] = value
			continue
		}
		now[name] = value
	}
	return now, later
}

// SetSysctls sets network sysctls inside the network namespace pinned at path.
func SetSysctls(path string, sysctls map[string]string) error {
	if len(sysctls) == 0 {
		return nil
	}
	if err := CheckSysctls(sysctls, []string{Net}); err != nil {
		return err
	}
	return Do(path, func() error { return writeSysctls("/proc/sys", sysctls) })
}

func writeSysctls(root string, sysctls map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		f, err := os.OpenFile(filepath.Join(root, sysctlPath(name)), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(sysctls[name])
			f.Close()
		}
		if err != nil {
			return fmt.Errorf("set sysctl %q to %q: %w: %w", name, sysctls[name], errdefs.ErrInvalidArgument, err)
		}
	}
	return nil
}
