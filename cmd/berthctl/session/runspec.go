package session

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/pod"
)

// runSpec is what the command line of run asks for.
type runSpec struct {
	image   string
	command []string
	name    string
	uid     string // unique; names the pod's log directory too
	logs    string // log directory
	place   placeFlags
	process processFlags
	limits  limitFlags
}

type placeFlags struct {
	namespace, network, handler string
	ports, labels, mounts       []string
}

type processFlags struct {
	stdin, tty                bool
	entrypoint, workdir, user string
	env                       []string
	privileged                bool
}

type limitFlags struct {
	memory string
	cpus   float64
}

// sandbox is the pod that is asked for.
func (s runSpec) sandbox() (*runtimeapi.PodSandboxConfig, error) {
	ports, err := parseAll(s.place.ports, parsePort)
	if err != nil {
		return nil, err
	}
	labels, err := s.labels()
	if err != nil {
		return nil, err
	}
	if s.place.network != "pod" && s.place.network != "host" {
		return nil, fmt.Errorf("--network %q is unknown; use pod or host", s.place.network)
	}
	if len(ports) > 0 && s.place.network == "host" {
		return nil, fmt.Errorf("--publish and --network host exclude each other: on the host's network every port is the host's")
	}
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: s.name, Namespace: s.place.namespace, Uid: s.uid},
		LogDirectory: s.logs, Labels: labels, PortMappings: ports,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: s.namespaces(), Privileged: s.process.privileged,
		}},
	}
	if s.place.network == "pod" {
		c.Hostname = s.name
	}
	return c, nil
}

func (s runSpec) labels() (map[string]string, error) {
	labels := map[string]string{pod.RunLabel: s.uid}
	for _, l := range s.place.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" || k == pod.RunLabel {
			return nil, fmt.Errorf("--label %q is not NAME=VALUE, or has the name %s", l, pod.RunLabel)
		}
		labels[k] = v
	}
	return labels, nil
}

func (s runSpec) namespaces() *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if s.place.network == "host" {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	return o
}

// container is the container that is asked for.
func (s runSpec) container() (*runtimeapi.ContainerConfig, error) {
	mounts, err := parseAll(s.place.mounts, parseMount)
	if err != nil {
		return nil, err
	}
	env, err := parseAll(s.process.env, parseEnv)
	if err != nil {
		return nil, err
	}
	resources, err := s.limits.resources()
	if err != nil {
		return nil, err
	}
	labels, err := s.labels()
	if err != nil {
		return nil, err
	}
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: s.name}, Image: &runtimeapi.ImageSpec{Image: s.image, RuntimeHandler: s.place.handler},
		Args: s.command, WorkingDir: s.process.workdir, Envs: env, Mounts: mounts, Labels: labels, LogPath: s.name + ".log",
		Stdin: s.process.stdin, StdinOnce: s.process.stdin, Tty: s.process.tty,
		Linux: &runtimeapi.LinuxContainerConfig{Resources: resources, SecurityContext: s.security()},
	}
	if s.process.entrypoint != "" {
		c.Command = []string{s.process.entrypoint}
	}
	if s.process.user != "" {
		err = setUser(c.Linux.SecurityContext, s.process.user)
	}
	return c, err
}

// security is what the kubelet gives a pod that asks for nothing, and the
// default seccomp profile.
func (s runSpec) security() *runtimeapi.LinuxContainerSecurityContext {
	o := &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: s.namespaces(), Privileged: s.process.privileged}
	if s.process.privileged {
		return o
	}
	o.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	o.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	o.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	return o
}

// parseAll parses every value of a flag.
func parseAll[T any](all []string, parse func(string) (T, error)) (out []T, err error) {
	for _, s := range all {
		v, err := parse(s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

var portForm = regexp.MustCompile(`^(?:(\[[0-9a-fA-F:]+\]|[0-9.]+):)?([0-9]+):([0-9]+)(?:/(tcp|udp|sctp))?$`)

// parsePort takes [IP:]HOST:CONTAINER[/PROTOCOL].
func parsePort(s string) (*runtimeapi.PortMapping, error) {
	m := portForm.FindStringSubmatch(s)
	if m == nil {
		return nil, fmt.Errorf("--publish %q is not [IP:]HOST-PORT:CONTAINER-PORT[/tcp|udp|sctp]", s)
	}
	p := &runtimeapi.PortMapping{HostIp: strings.Trim(m[1], "[]")}
	if p.HostIp != "" {
		if _, err := netip.ParseAddr(p.HostIp); err != nil {
			return nil, fmt.Errorf("--publish %q: %w", s, err)
		}
	}
	for i, to := range []*int32{&p.HostPort, &p.ContainerPort} {
		n, err := strconv.ParseUint(m[2+i], 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("--publish %q: port %s is out of range", s, m[2+i])
		}
		*to = int32(n)
	}
	p.Protocol = runtimeapi.Protocol(runtimeapi.Protocol_value[strings.ToUpper(m[4])]) // none is TCP
	return p, nil
}

// parseMount takes HOST:CONTAINER[:ro].
func parseMount(s string) (*runtimeapi.Mount, error) {
	f := strings.Split(s, ":")
	if len(f) < 2 || len(f) > 3 || f[0] == "" || !filepath.IsAbs(f[1]) || len(f) == 3 && f[2] != "ro" && f[2] != "rw" {
		return nil, fmt.Errorf("--volume %q is not HOST-PATH:CONTAINER-PATH[:ro], or the container's path is not absolute", s)
	}
	host, err := filepath.Abs(f[0])
	if err != nil {
		return nil, err
	}
	return &runtimeapi.Mount{HostPath: host, ContainerPath: f[1], Readonly: len(f) == 3 && f[2] == "ro"}, nil
}

// parseEnv takes NAME=VALUE, or NAME for a variable of berthctl's own.
func parseEnv(s string) (*runtimeapi.KeyValue, error) {
	k, v, ok := strings.Cut(s, "=")
	if !ok {
		if v, ok = os.LookupEnv(k); !ok {
			return nil, fmt.Errorf("--env %s: berthctl's own environment has no such variable; give NAME=VALUE", s)
		}
	}
	if k == "" {
		return nil, fmt.Errorf("--env %q has no name", s)
	}
	return &runtimeapi.KeyValue{Key: k, Value: []byte(v)}, nil
}

// setUser takes a name, UID or UID:GID.
func setUser(o *runtimeapi.LinuxContainerSecurityContext, user string) error {
	u, g, both := strings.Cut(user, ":")
	uid, err := strconv.ParseUint(u, 10, 31)
	if err != nil {
		if both || u == "" {
			return fmt.Errorf("--user %q is neither a name nor UID[:GID]", user)
		}
		o.RunAsUsername = u
		return nil
	}
	o.RunAsUser = &runtimeapi.Int64Value{Value: int64(uid)}
	if both {
		gid, err := strconv.ParseUint(g, 10, 31)
		if err != nil {
			return fmt.Errorf("--user %q: %q is no number of a group", user, g)
		}
		o.RunAsGroup = &runtimeapi.Int64Value{Value: int64(gid)}
	}
	return nil
}

// cpuPeriod is the kernel's usual period of CPU limits, in microseconds.
const cpuPeriod = 100_000

// maxShares is the most the kernel and the CRI know; the kubelet stops there too.
const maxShares = 1 << 18

func (l limitFlags) resources() (*runtimeapi.LinuxContainerResources, error) {
	r := &runtimeapi.LinuxContainerResources{}
	if l.cpus != 0 && !(l.cpus >= 0.01 && l.cpus <= 1e6) { // NaN too
		return nil, fmt.Errorf("--cpus %v is not between 0.01 and 1000000", l.cpus)
	}
	if l.cpus > 0 {
		r.CpuPeriod, r.CpuQuota = cpuPeriod, int64(l.cpus*cpuPeriod)
		r.CpuShares = min(max(2, int64(l.cpus*1024)), maxShares)
	}
	if l.memory == "" {
		return r, nil
	}
	digits := strings.TrimRight(l.memory, "kKmMgGiIbB")
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "ki": 10, "kib": 10, "m": 20, "mi": 20, "mib": 20, "g": 30, "gi": 30, "gib": 30}[strings.ToLower(l.memory[len(digits):])]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n <= 0 || n > 1<<62>>shift {
		return nil, fmt.Errorf("--memory %q is no size such as 64Mi or 1G", l.memory)
	}
	r.MemoryLimitInBytes = n << shift
	return r, nil
}
