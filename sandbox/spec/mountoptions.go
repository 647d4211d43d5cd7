package spec

import (
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// propagationOption refuses a mode that the source's own mount cannot feed:
// runc would accept it and nothing would ever arrive.
func propagationOption(field string, m Mount) (string, error) {
	src := m.SourcePropagation
	switch p := m.CRI.GetPropagation(); p {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if src != "shared" && src != "slave" {
			return "", invalid(field+" propagation", "%s is not on a shared or slave mount", m.Source)
		}
		return "rslave", nil
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if src != "shared" {
			return "", invalid(field+" propagation", "%s is not on a shared mount", m.Source)
		}
		return "rshared", nil
	default:
		return "", invalid(field+" propagation", "unknown mode %d", p)
	}
}

// modeOption is ro, rw or rro. An image mount is read-only by definition.
func modeOption(field string, h Host, m Mount) (string, error) {
	readonly := m.CRI.GetReadonly() || m.CRI.GetImage() != nil
	switch {
	case m.CRI.GetRecursiveReadOnly() && !m.CRI.GetReadonly():
		return "", invalid(field+" recursive_read_only", "needs readonly")
	case m.CRI.GetRecursiveReadOnly() && m.CRI.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "", invalid(field+" recursive_read_only", "needs private propagation")
	case m.CRI.GetRecursiveReadOnly() && !h.RecursiveReadOnly:
		// The kubelet looks for this word in the text.
		return "", unable(field+" recursive_read_only", "RRO is not supported by this node's kernel and runtime")
	case m.CRI.GetRecursiveReadOnly():
		return "rro", nil
	case readonly:
		return "ro", nil
	}
	return "rw", nil
}

// extraOptions passes mount_options on. Only flags of a bind mount are taken:
// what the CRI has a field for, and data for a file system, is refused.
func extraOptions(field string, options []string) ([]string, error) {
	flags := []string{
		"noexec", "exec", "nodev", "dev", "nosuid", "suid", "noatime", "atime", "nodiratime", "diratime",
		"relatime", "norelatime", "strictatime", "nostrictatime", "nosymfollow", "symfollow",
	}
	var out []string
	for _, o := range options {
		prefix, name := "", o
		if !slices.Contains(flags, name) {
			// The recursive form of a flag; "relatime" has an r of its own.
			prefix, name = "r", strings.TrimPrefix(o, "r")
		}
		if !slices.Contains(flags, name) {
			return nil, invalid(field+" mount_options", "%q is not a flag a bind mount takes", o)
		}
		if other := prefix + opposite(name); slices.Contains(out, other) {
			return nil, invalid(field+" mount_options", "%q and %q exclude each other", other, o)
		}
		if !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	return out, nil
}

func opposite(flag string) string {
	if rest, ok := strings.CutPrefix(flag, "no"); ok {
		return rest
	}
	return "no" + flag
}
