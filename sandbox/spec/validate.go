package spec

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func securityContext(in Input) *runtimeapi.LinuxContainerSecurityContext {
	return in.Container.GetLinux().GetSecurityContext()
}

// validate refuses what no later part would look at.
func validate(in Input) error {
	c := in.Container
	switch {
	case c == nil:
		return invalid("config", "container configuration is missing")
	case c.GetWindows() != nil:
		return invalid("windows", "a Windows configuration on a Linux node")
	}
	sc := securityContext(in)
	if sc.GetPrivileged() && !in.Sandbox.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid("linux.security_context.privileged", "a privileged container in a sandbox that is not")
	}
	return validateNamespaces(in, sc.GetNamespaceOptions())
}

func validateNamespaces(in Input, o *runtimeapi.NamespaceOption) error {
	const field = "linux.security_context.namespace_options"
	if err := checkUserNS(in, field+".userns_options", o.GetUsernsOptions()); err != nil {
		return err
	}
	shared := []struct {
		name string
		mode runtimeapi.NamespaceMode
		path string
	}{
		{".network", o.GetNetwork(), in.Pod.NetNS},
		{".ipc", o.GetIpc(), in.Pod.IPCNS},
	}
	for _, ns := range shared {
		switch ns.mode {
		case runtimeapi.NamespaceMode_POD:
		case runtimeapi.NamespaceMode_NODE:
			if ns.path != "" {
				return invalid(field+ns.name, "NODE in a sandbox that has a namespace of its own")
			}
		default:
			return invalid(field+ns.name, "%s: only POD and NODE are possible", ns.mode)
		}
	}
	return validatePID(in, field, o)
}

func validatePID(in Input, field string, o *runtimeapi.NamespaceOption) error {
	private := in.Pod.PIDNS != "" || in.Pod.PrivatePID
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER:
	case runtimeapi.NamespaceMode_NODE:
		if private {
			return invalid(field+".pid", "NODE in a sandbox that has a namespace of its own")
		}
	case runtimeapi.NamespaceMode_TARGET:
		if o.GetTargetId() == "" {
			return invalid(field+".target_id", "TARGET needs the ID of a container")
		}
		if in.Pod.PIDNS == "" {
			return unable(field+".target_id", "container %s has no PID namespace to join", o.GetTargetId())
		}
	default:
		return invalid(field+".pid", "unknown mode %s", o.GetPid())
	}
	if o.GetTargetId() != "" && o.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return invalid(field+".target_id", "only with pid TARGET")
	}
	return nil
}

// ValidateSandbox refuses what a sandbox configuration asks and no part of
// Berth does, with the errors of Build. A nil configuration is refused.
func ValidateSandbox(cfg *runtimeapi.PodSandboxConfig) error {
	if cfg == nil {
		return invalid("config", "sandbox configuration is missing")
	}
	if cfg.GetWindows() != nil {
		return invalid("windows", "a Windows configuration on a Linux node")
	}
	sc := cfg.GetLinux().GetSecurityContext()
	const field = "linux.security_context"
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid(field+".run_as_group", "given without run_as_user")
	}
	if p := sc.GetSupplementalGroupsPolicy(); runtimeapi.SupplementalGroupsPolicy_name[int32(p)] == "" {
		return invalid(field+".supplemental_groups_policy", "unknown policy %d", p)
	}
	return validateSandboxNamespaces(field+".namespace_options", cfg, sc.GetNamespaceOptions())
}

func validateSandboxNamespaces(field string, cfg *runtimeapi.PodSandboxConfig, o *runtimeapi.NamespaceOption) error {
	if err := validateSandboxUserNS(field, o); err != nil {
		return err
	}
	for name, mode := range map[string]runtimeapi.NamespaceMode{".network": o.GetNetwork(), ".ipc": o.GetIpc()} {
		if mode != runtimeapi.NamespaceMode_POD && mode != runtimeapi.NamespaceMode_NODE {
			return invalid(field+name, "%s: only POD and NODE are possible", mode)
		}
	}
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_TARGET:
		return invalid(field+".pid", "TARGET is for containers, not for a sandbox")
	default:
		return invalid(field+".pid", "unknown mode %d", o.GetPid())
	}
	if len(cfg.GetHostname()) > 64 {
		return invalid("hostname", "longer than 64 bytes")
	}
	return nil
}
