package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Validate reports every setting that cannot work, each with what is wrong and
// what to write instead. It does not look at the disk.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
	}
	c.validatePaths(bad)
	c.validateRuntime(bad)
	c.validateNetwork(bad)
	c.validateImage(bad)
	c.validateStreaming(bad)
	c.validateNRI(bad)
	c.validateWatching(bad)
	oneOf(bad, "log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf(bad, "log.format", c.Log.Format, "text", "json")
	oneOf(bad, "cgroup.driver", c.Cgroup.Driver, "auto", "cgroupfs", "systemd")
	for _, s := range c.Container.DefaultSysctls {
		if !defaultSysctl.MatchString(s) {
			bad("container.default_sysctls", "%q is not NAME=VALUE of a sysctl that pods have of their own; use net.* or, of IPC, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*", s)
		}
	}
	oneOf(bad, "container.restrict_oom_score_adj", c.Container.RestrictOOMScoreAdj, "auto", "true", "false")
	absolute(bad, "container.blockio_classes", c.Container.BlockIOClasses, true)
	absolute(bad, "container.rdt_classes", c.Container.RDTClasses, true)
	oneOf(bad, "container.log_overflow", c.Container.LogOverflow, "drop", "block")
	for _, d := range c.Container.CDISpecDirs {
		absolute(bad, "container.cdi_spec_dirs", d, false)
	}
	if c.Container.ExecOutputLimit < 1<<10 || c.Container.ExecOutputLimit > 16<<20 {
		bad("container.exec_output_limit", "%s is out of range; use 1KiB to 16MiB (the CRI's largest message)", c.Container.ExecOutputLimit)
	}
	if c.Container.MaxLogLine < 256 || c.Container.MaxLogLine > 1<<20 {
		bad("container.max_log_line", "%s is out of range; use 256B to 1MiB", c.Container.MaxLogLine)
	}
	if r := c.Container.LogRate; r < 0 || r > 0 && r < 1<<10 {
		bad("container.log_rate", "%s is out of range; use 0 or at least 1KiB", r)
	}
	if n := c.Container.LogFileSize; n < 0 || n > 0 && n < 64<<10 {
		bad("container.log_file_size", "%s is out of range; use 0 or at least 64KiB", n)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
}

type badFunc func(key, format string, args ...any)

// defaultSysctl is the form of a sysctl of a network or IPC namespace.
var defaultSysctl = regexp.MustCompile(`^(net\.[a-z0-9_.-]+|kernel\.(shm|msg)[a-z_]*|kernel\.sem|fs\.mqueue\.[a-z_]+)=.+$`)

func oneOf(bad badFunc, key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		bad(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func absolute(bad badFunc, key, value string, mayBeEmpty bool) {
	if value == "" && mayBeEmpty {
		return
	}
	if !filepath.IsAbs(value) {
		bad(key, "%q must be an absolute path", value)
	}
}

func (c Config) validatePaths(bad badFunc) {
	absolute(bad, "paths.root", c.Paths.Root, false)
	absolute(bad, "paths.run", c.Paths.Run, false)
	absolute(bad, "paths.shim", c.Paths.Shim, true)
	absolute(bad, "listen.cri", c.Listen.CRI, true)
	absolute(bad, "listen.admin", c.Listen.Admin, true)
	absolute(bad, "cni.conf_dir", c.CNI.ConfDir, false)
	if len(c.CNI.BinDirs) == 0 {
		bad("cni.bin_dirs", "is empty; name at least one directory of CNI plugins")
	}
	for _, d := range c.CNI.BinDirs {
		absolute(bad, "cni.bin_dirs", d, false)
	}
	for _, d := range c.Image.RegistryDirs {
		absolute(bad, "image.registry_hosts_dirs", d, false)
	}
	if c.Paths.Root != "" && filepath.Clean(c.Paths.Root) == filepath.Clean(c.Paths.Run) {
		bad("paths.run", "is the same directory as paths.root; one survives a reboot, the other need not, so keep them apart")
	}
	if cri, admin := c.CRISocket(), c.AdminSocket(); cri == admin {
		bad("listen.admin", "is the same socket as listen.cri")
	}
}

func (c Config) validateRuntime(bad badFunc) {
	if _, ok := c.Runtime.Handlers[c.Runtime.Default]; !ok {
		bad("runtime.default", "%q has no table [runtime.handlers.%s]", c.Runtime.Default, quoteKey(c.Runtime.Default))
	}
	for name, h := range c.Runtime.Handlers {
		key := "runtime.handlers." + quoteKey(name)
		if name == "" || strings.ContainsAny(name, "/ \t\n\"\\") {
			bad(key, "is not a usable handler name; use letters, digits, '-', '_' and '.'")
		}
		absolute(bad, key+".path", h.Path, true)
		absolute(bad, key+".root", h.Root, true)
		absolute(bad, key+".base_spec", h.BaseSpec, true)
		if h.PidsLimit < -1 {
			bad(key+".pids_limit", "%d is out of range; use -1 (unlimited), 0 (none) or more", h.PidsLimit)
		}
		for list, patterns := range map[string][]string{"pod_annotations": h.PodAnnotations, "container_annotations": h.ContainerAnnotations} {
			for _, p := range patterns {
				if _, err := path.Match(p, ""); err != nil {
					bad(key+"."+list, "%q is not a pattern; use names with * and ?", p)
				}
			}
		}
	}
}

func (c Config) validateNetwork(bad badFunc) {
	n := c.Network
	own := []string{"bridge", "host-local", "portmap"}
	for _, t := range n.Builtin {
		oneOf(bad, "network.builtin", t, append(own, "bandwidth", "firewall", "loopback", "ptp", "sbr", "tuning")...)
	}
	absolute(bad, "cni.conf_template", c.CNI.Template, true)
	if t := time.Duration(c.CNI.Timeout); t < time.Second || t > 10*time.Minute {
		bad("cni.timeout", "%s is out of range; use 1s to 10m", c.CNI.Timeout)
	}
	oneOf(bad, "network.default", n.Default, "wait", "builtin")
	if n.Default == "builtin" {
		for _, t := range own {
			if !slices.Contains(n.Builtin, t) {
				bad("network.builtin", "lacks %q, which network.default = \"builtin\" needs", t)
			}
		}
	}
	if n.Bridge == "" || len(n.Bridge) > 15 || strings.ContainsAny(n.Bridge, "/: \t\n") || n.Bridge == "." || n.Bridge == ".." {
		bad("network.bridge", "%q is not an interface name; use at most 15 characters", n.Bridge)
	}
	families := map[bool]int{}
	for _, s := range n.Subnets {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			bad("network.subnets", "%q is not a subnet; write it like 10.90.0.0/16", s)
			continue
		case p != p.Masked():
			bad("network.subnets", "%q has host bits set; write %s", s, p.Masked())
		case p.Bits() > p.Addr().BitLen()-2:
			bad("network.subnets", "%q is too small for pods", s)
		}
		families[p.Addr().Is4()]++
	}
	if len(families) == 0 || families[true] > 1 || families[false] > 1 {
		bad("network.subnets", "needs one IPv4 subnet, one IPv6 subnet or one of each")
	}
}

func (c Config) validateImage(bad badFunc) {
	if n := c.Image.UnpackWorkers; n < 0 || n > 256 {
		bad("image.unpack_workers", "%d is out of range; use 0 (one for each CPU) to 256", n)
	}
	if c.Image.MaxLayerSize < 1<<20 {
		bad("image.max_layer_size", "%s is too small; use at least 1MiB", c.Image.MaxLayerSize)
	}
	if c.Image.MaxLayerFiles < 1000 {
		bad("image.max_layer_files", "%d is too small; use at least 1000", c.Image.MaxLayerFiles)
	}
	for _, f := range c.Image.AuthFiles {
		absolute(bad, "image.auth_files", f, false)
	}
	oneOf(bad, "image.gzip", c.Image.Gzip, "auto", "builtin")
	c.Image.Transfer.validate(bad)
	c.Image.Signatures.validate(bad)
}

func (s Signatures) validate(bad badFunc) {
	oneOf(bad, "image.signatures.default", s.Default, "accept", "reject")
	if t := time.Duration(s.Timeout); t < time.Second || t > 10*time.Minute {
		bad("image.signatures.timeout", "%s is out of range; use 1s to 10m", s.Timeout)
	}
	for prefix, r := range s.Rules {
		key := "image.signatures.rules." + quoteKey(prefix)
		if !isNamePrefix(prefix) {
			bad(key, "is not the beginning of an image's name; write it like registry.example:5000/team or docker.io/library, in small letters, without tag or digest")
		}
		for _, f := range r.Keys {
			absolute(bad, key+".keys", f, false)
		}
		absolute(bad, key+".trusted_root", r.TrustedRoot, true)
		keyless := r.TrustedRoot != "" && r.Issuer != "" && len(r.Identities) > 0
		switch {
		case !keyless && (r.TrustedRoot != "" || r.Issuer != "" || len(r.Identities) > 0):
			bad(key, "lacks one of trusted_root, issuer and identities, which belong together")
		case slices.ContainsFunc(r.Identities, func(s string) bool { return strings.Trim(s, "*") == "" }):
			bad(key+".identities", "an identity that is empty or only \"*\" would accept whoever the issuer knows; write at least a part of it")
		case r.Unsigned == (keyless || len(r.Keys) > 0):
			bad(key, "needs either keys, or identities, or unsigned = true")
		}
	}
}

// isNamePrefix reports whether whole names of images can begin so. A rule for
// anything else would silently be for nothing.
func isNamePrefix(s string) bool {
	host, path, _ := strings.Cut(s, "/")
	return s == strings.ToLower(s) && strings.Trim(s, "/") == s && !strings.ContainsAny(s, "@* \t\n") && !strings.Contains(s, "//") &&
		(host == "localhost" || strings.ContainsAny(host, ".:")) && !strings.Contains(path, ":")
}

func (t Transfer) validate(bad badFunc) {
	if n := t.MaxDownloads; n < 1 || n > 64 {
		bad("image.max_downloads", "%d is out of range; use 1 to 64", n)
	}
	if n := t.MaxConnections; n < 1 || n > 64 {
		bad("image.max_connections", "%d is out of range; use 1 to 64", n)
	}
	if n := t.LayerConnections; n < 1 || n > 16 {
		bad("image.layer_connections", "%d is out of range; use 1 to 16", n)
	}
	if t.MaxBandwidth < 0 || t.MaxBandwidth > 0 && t.MaxBandwidth < 16<<10 {
		bad("image.max_bandwidth", "%s is out of range; use 0 or at least 16KiB", t.MaxBandwidth)
	}
	for key, d := range map[string]Duration{
		"connect_timeout": t.ConnectTimeout, "first_byte_timeout": t.FirstByteTimeout, "pull_idle_timeout": t.PullTimeout,
	} {
		if d <= 0 {
			bad("image."+key, "%s must be longer than nothing", d)
		}
	}
}

func (c Config) validateStreaming(bad badFunc) {
	s := c.Streaming
	if _, err := netip.ParseAddr(s.Address); err != nil {
		bad("streaming.address", "%q is not an IP address; use 127.0.0.1 unless the kubelet is elsewhere", s.Address)
	}
	if s.Port < 0 || s.Port > 65535 {
		bad("streaming.port", "%d is out of range; use 0 (any free port) to 65535", s.Port)
	}
	if s.IdleTimeout <= 0 {
		bad("streaming.idle_timeout", "%s must be longer than nothing", s.IdleTimeout)
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		bad("streaming.tls_cert", "tls_cert and tls_key belong together; set both or neither")
	}
	absolute(bad, "streaming.tls_cert", s.TLSCert, true)
	absolute(bad, "streaming.tls_key", s.TLSKey, true)
}

func (c Config) validateNRI(bad badFunc) {
	n := c.NRI
	absolute(bad, "nri.socket_path", n.Socket, true)
	absolute(bad, "nri.plugin_path", n.PluginPath, false)
	absolute(bad, "nri.plugin_config_path", n.PluginConfigPath, false)
	if n.RegistrationTime <= 0 {
		bad("nri.plugin_registration_timeout", "%s must be longer than nothing", n.RegistrationTime)
	}
	if n.RequestTime <= 0 {
		bad("nri.plugin_request_timeout", "%s must be longer than nothing", n.RequestTime)
	}
}

// NRISocket returns the path of the plugins' socket. A daemon that shares its
// machine with others has one of its own.
func (c Config) NRISocket() string {
	switch {
	case c.NRI.Socket != "":
		return c.NRI.Socket
	case filepath.Clean(c.Paths.Run) == Default().Paths.Run:
		return "/var/run/nri/nri.sock"
	}
	return filepath.Join(c.Paths.Run, "nri.sock")
}

// CRISocket returns the path of the CRI socket.
func (c Config) CRISocket() string {
	if c.Listen.CRI != "" {
		return c.Listen.CRI
	}
	return filepath.Join(c.Paths.Run, "berth.sock")
}

// AdminSocket returns the path of the admin socket.
func (c Config) AdminSocket() string {
	if c.Listen.Admin != "" {
		return c.Listen.Admin
	}
	return filepath.Join(c.Paths.Run, "admin.sock")
}

// RuntimeRoot returns the state directory of a handler's runtime.
func (c Config) RuntimeRoot(handler string) string {
	switch h := c.Runtime.Handlers[handler]; {
	case h.Root != "":
		return h.Root
	case handler == "runc":
		return filepath.Join(c.Paths.Run, "runc")
	default:
		return filepath.Join(c.Paths.Run, "runc-"+handler)
	}
}

// RuntimePath returns the program of a handler, to be looked up in PATH when
// it has no slash.
func (c Config) RuntimePath(handler string) string {
	if h := c.Runtime.Handlers[handler]; h.Path != "" {
		return h.Path
	}
	return handler
}
