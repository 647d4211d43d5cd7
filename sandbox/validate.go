package sandbox

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/sandbox/spec"
)

// maxHostname is the kernel's limit in bytes.
const maxHostname = 64

// Validate reports what in a sandbox configuration cannot be honoured: an
// InvalidArgument that names the field, or NotImplemented. Labels and
// annotations are data and not looked at.
func Validate(c *runtimeapi.PodSandboxConfig) error {
	checks := []func(*runtimeapi.PodSandboxConfig) error{
		validateNames, spec.ValidateSandbox, validatePorts, validateDNS, validateCgroupParent,
	}
	for _, check := range checks {
		if err := check(c); err != nil {
			return err
		}
	}
	return netns.CheckSysctls(c.GetLinux().GetSysctls(), madeKinds(c))
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func validateNames(c *runtimeapi.PodSandboxConfig) error {
	md := c.GetMetadata()
	switch {
	case c == nil:
		return invalid("sandbox config is missing")
	case md == nil:
		return invalid("sandbox config has no metadata")
	case md.GetName() == "":
		return invalid("sandbox metadata has no name")
	case md.GetNamespace() == "":
		return invalid("sandbox metadata has no namespace")
	case strings.ContainsAny(md.GetName()+md.GetNamespace()+md.GetUid(), ";\n\x00"):
		return invalid("sandbox metadata holds a semicolon, line break or NUL")
	case len(c.GetHostname()) > maxHostname:
		return invalid("hostname %q is longer than %d bytes", c.GetHostname(), maxHostname)
	case strings.ContainsAny(c.GetHostname(), "/ \t\r\n\x00"):
		return invalid("hostname %q holds a slash, blank or NUL", c.GetHostname())
	case c.GetLogDirectory() != "" && !filepath.IsAbs(c.GetLogDirectory()):
		return invalid("log_directory %q is not absolute", c.GetLogDirectory())
	}
	return nil
}

func validatePorts(c *runtimeapi.PodSandboxConfig) error {
	for i, p := range c.GetPortMappings() {
		if p.GetHostPort() < 0 || p.GetHostPort() > 65535 {
			return invalid("port_mappings[%d]: host port %d is out of range", i, p.GetHostPort())
		}
		low := int32(0)
		if p.GetHostPort() > 0 {
			low = 1
		}
		if p.GetContainerPort() < low || p.GetContainerPort() > 65535 {
			return invalid("port_mappings[%d]: container port %d is out of range", i, p.GetContainerPort())
		}
		if _, ok := runtimeapi.Protocol_name[int32(p.GetProtocol())]; !ok {
			return invalid("port_mappings[%d]: unknown protocol %d", i, p.GetProtocol())
		}
		if ip := p.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return invalid("port_mappings[%d]: host IP %q", i, ip)
			}
		}
	}
	return nil
}

func validateDNS(c *runtimeapi.PodSandboxConfig) error {
	d := c.GetDnsConfig()
	for _, s := range slices.Concat(d.GetServers(), d.GetSearches(), d.GetOptions()) {
		if s == "" || strings.ContainsAny(s, " \t\r\n\x00") {
			return invalid("dns_config: %q is empty or holds a blank or line break", s)
		}
	}
	return nil
}

func validateCgroupParent(c *runtimeapi.PodSandboxConfig) error {
	parent := c.GetLinux().GetCgroupParent()
	for part := range strings.SplitSeq(parent, "/") {
		if part == ".." || part == "." {
			return invalid("cgroup_parent %q climbs", parent)
		}
	}
	if parent != "" && strings.Trim(parent, "/") == "" {
		return invalid("cgroup_parent %q is the root", parent)
	}
	return nil
}

// validateSlice reports what cannot be done where systemd keeps the control groups.
func validateSlice(c *runtimeapi.PodSandboxConfig) error {
	linux := c.GetLinux()
	parent := linux.GetCgroupParent()
	name := path.Base(parent)
	switch {
	case parent == "" && proto.Size(linux.GetResources())+proto.Size(linux.GetOverhead()) > 0:
		return invalid("linux.resources and linux.overhead need a cgroup_parent with the systemd cgroup driver: pods without one share %s", commonSlice)
	case parent == "":
		return nil
	case !strings.HasSuffix(name, ".slice") || name == ".slice" || strings.HasPrefix(name, "-") || strings.Contains(name, "--") || strings.HasSuffix(name, "-.slice"):
		return invalid("cgroup_parent %q names no slice (a.slice, a-b.slice), as the systemd cgroup driver wants it; does the client use the driver cgroupfs?", parent)
	}
	return nil
}
