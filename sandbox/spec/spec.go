// Package spec turns CRI and image configuration plus host facts into an OCI
// runtime specification. It is pure: no clock, no I/O.
package spec

import (
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Input is everything a container's specification depends on.
type Input struct {
	ID               string
	Container        *runtimeapi.ContainerConfig
	Sandbox          *runtimeapi.PodSandboxConfig
	Image            ocispec.ImageConfig
	User             User
	Pod              Pod
	Mounts           []Mount      // the container's CRI mounts, host side resolved, in order
	Devices          []HostDevice // nodes behind the container's CRI devices, resolved
	Host             Host
	Handler          Handler
	SeccompLocalhost []byte // content of the Localhost profile the container names
	CgroupsPath      string // value of linux.cgroupsPath, already in the driver's form
}

// User is a resolved identity.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplemental groups, policy applied
	Home     string   // for HOME when the image sets none; "" : "/"
}

// Pod is what the sandbox lends to its containers. Empty namespace paths mean
// the node's own namespace, except PID, where empty with PrivatePID makes a new one.
type Pod struct {
	NetNS, IPCNS, UTSNS, PIDNS string
	PrivatePID                 bool
	Hostname                   string
	HostnamePath, HostsPath    string
	ResolvPath, ShmPath        string
}

// Mount is one CRI mount whose host side has been looked at.
type Mount struct {
	CRI    *runtimeapi.Mount
	Source string // symlinks resolved
	IsDir  bool
	// SourcePropagation is "shared", "slave" or "private": that of the mount Source lies on.
	SourcePropagation string
}

// HostDevice is a device node of the node.
type HostDevice struct {
	HostPath      string
	ContainerPath string
	Type          string // "c" or "b"
	Major, Minor  int64
	Mode          uint32
	UID, GID      uint32
	Permissions   string // subset of "rwm"
}

// Host is what the specification must know about the node and its runtime.
type Host struct {
	CgroupV2            bool
	SeccompEnabled      bool
	KernelVersion       string
	Capabilities        []string     // all the daemon may hand out: "CAP_..." names
	AllDevices          []HostDevice // for privileged containers
	RestrictOOMScoreAdj bool         // lowering below OOMScoreAdj is not possible here
	OOMScoreAdj         int          // the daemon's own
	HugePageSizes       []string     // "2MB", "1GB" limits that the node's controller knows
	RecursiveReadOnly   bool         // kernel and runtime do rro
	SwapController      bool
}

// Handler is the configuration of the runtime handler that applies.
type Handler struct {
	PrivilegedWithoutHostDevices bool
	AmbientCapabilities          bool
	SeccompDefault               bool // use RuntimeDefault when the client names no profile
}

// Build returns the specification. A configuration that cannot be honoured is
// an InvalidArgument that names the field.
func Build(in Input) (*specs.Spec, error) { return nil, errdefs.ErrNotImplemented }

// ExecProcess returns the process document of an exec in a container that was
// built with the specification s: same user, environment, capabilities and limits.
func ExecProcess(s *specs.Spec, cmd []string, tty bool) (*specs.Process, error) {
	return nil, errdefs.ErrNotImplemented
}

// ResolveUser decides the identity of a container from the security context,
// the image's USER and the contents of the image's passwd and group files
// (nil when the file is missing).
func ResolveUser(passwd, group []byte, sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (User, error) {
	return User{}, errdefs.ErrNotImplemented
}

// LinuxResources converts CRI resources for a live update of a cgroup.
func LinuxResources(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	return nil, errdefs.ErrNotImplemented
}
