package store

import (
	"strconv"
	"strings"
)

// SandboxName is the unique name of a sandbox: pod name, namespace, uid and
// attempt, as other CRI runtimes form it. "" when the record has no metadata.
func SandboxName(s Sandbox) string {
	m := s.Config.GetMetadata()
	if m == nil {
		return ""
	}
	return joinName(m.GetName(), m.GetNamespace(), m.GetUid(), attempt(m.GetAttempt()))
}

// ContainerName is the unique name of a container: container name, sandbox ID
// and attempt. "" when the record has no metadata.
func ContainerName(c Container) string {
	m := c.Config.GetMetadata()
	if m == nil {
		return ""
	}
	return joinName(m.GetName(), c.SandboxID, attempt(m.GetAttempt()))
}

func attempt(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// joinName keeps names apart that would meet when a part holds the separator:
// underscores inside a part are doubled. Kubernetes names never hold one.
func joinName(parts ...string) string {
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(p, "_", "__")
	}
	return strings.Join(parts, "_")
}
