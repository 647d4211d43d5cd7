// Package spec turns CRI and image configuration plus host facts into an OCI
// runtime specification. It is pure: no clock, no I/O. docs/cri-fields.md says
// for every CRI field what it becomes here.
package spec

import (
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
	Mounts           []Mount      // one for each of the container's CRI mounts, in order
	Devices          []HostDevice // nodes behind the container's CRI devices, resolved
	Host             Host
	Handler          Handler
	SeccompLocalhost []byte // content of the file SeccompProfileFile names; nil: not there
	Cgroup
}

// Cgroup is where the container is counted and limited, beside its own resources.
type Cgroup struct {
	CgroupsPath string // value of linux.cgroupsPath, already in the driver's form
	Classes     Classes
}

// Classes are those of the node's that a container belongs to.
type Classes struct {
	BlockIO *specs.LinuxBlockIO // nil: none
	ClosID  string              // group of resctrl; "": none
}

// User is a resolved identity.
type User struct {
	UID, GID uint32
	Groups   []uint32 // what the process starts with, policy applied, the primary group first
	Home     string   // for HOME when the environment has none; "": left to the OCI runtime
}

// Pod is what the sandbox lends to its containers. Empty namespace paths mean
// the node's own namespace, except PID, where empty with PrivatePID makes a new one.
// An empty file path leaves that mount out; an empty ShmPath gives a /dev/shm
// of the container's own.
type Pod struct {
	SandboxID                  string // for the annotations of the specification
	NetNS, IPCNS, UTSNS, PIDNS string
	UserNS                     string // as the sandbox's configuration asks; its maps are read there
	PrivatePID                 bool
	Hostname                   string // value of HOSTNAME; "" sets none
	HostnamePath, HostsPath    string
	ResolvPath, ShmPath        string
}

// Mount is one CRI mount whose host side has been looked at.
type Mount struct {
	CRI    *runtimeapi.Mount
	Source string // symlinks resolved; "": the host path does not exist. For an image mount the directory of its files
	IsDir  bool
	// SourcePropagation is "shared", "slave" or "private": that of the mount Source lies on.
	SourcePropagation string
	// Relabelled says that the SELinux label of Source is right already.
	// Only asked for when Host.Security.SELinux is set.
	Relabelled bool
}

// HostDevice is a device node of the node.
type HostDevice struct {
	HostPath      string
	ContainerPath string
	Type          string // "c" or "b"
	Major, Minor  int64
	Mode          uint32 // permission bits
	UID, GID      uint32
	Permissions   string // subset of "rwm"; "" means "rwm"
}

// Host is what the specification must know about the node and its runtime.
type Host struct {
	Controllers
	SeccompEnabled      bool
	KernelVersion       string       // release, as uname prints it; "" counts as a new kernel
	Capabilities        []string     // all the daemon may hand out: "CAP_..." names; nil: all known ones
	AllDevices          []HostDevice // for privileged containers; an empty ContainerPath means HostPath
	RestrictOOMScoreAdj bool         // lowering below OOMScoreAdj is not possible here
	OOMScoreAdj         int          // the daemon's own
	RecursiveReadOnly   bool         // kernel and runtime do rro
	UserNamespaces      bool         // kernel, file system and runtime do user namespaces and idmapped mounts
	Security            HostSecurity
}

// Controllers are the node's means to count and limit.
type Controllers struct {
	CgroupV2       bool
	SwapController bool
	HugePageSizes  []string // "2MB", "1GB" limits that the node's controller knows
	Cpuset         Cpuset   // what a container's cpuset may be of
}

// Cpuset is the processors and memory nodes there are, as the kernel writes
// lists: "0-3,8". An empty list is not known and not checked.
type Cpuset struct{ CPUs, Mems string }

// HostSecurity is what the node offers beside seccomp. The zero value is a
// node without security modules.
type HostSecurity struct {
	Arch             string   // GOARCH the seccomp profile is made for; "": this program's
	AppArmor         bool     // AppArmor is on
	AppArmorDefault  string   // name of the loaded default profile; "": none is loaded
	AppArmorTrouble  string   // why none is
	AppArmorProfiles []string // names of the loaded profiles; nil: not known, not checked
	SELinux          bool     // SELinux is on and the configuration asks for labels
	SELinuxProcess   string   // label of containers by the node's policy; "": that of most
	SELinuxFile      string   // label of their files by the node's policy
	SELinuxLevel     string   // of the pod's containers that name none; "": the policy's
}

// Handler is the configuration of the runtime handler that applies.
type Handler struct {
	PrivilegedWithoutHostDevices bool // privileged adds no device nodes of the host
	PrivilegedAllDevicesAllowed  bool // with the above: still allow access to every device
	AmbientCapabilities          bool // capabilities a client adds become ambient too, so that a non-root user has them
	SeccompNativeOnly            bool // RuntimeDefault without the architectures that run beside the node's own
	SeccompDefault               bool // use RuntimeDefault when the client names no profile
	CgroupWritable               bool // mount cgroups read-write in every container
	DeviceOwnership              bool // devices belong to run_as_user and run_as_group
	PidsLimit                    int64
	Base                         []byte   // a specification, as JSON, for what nobody else decides; nil: none
	PodAnnotations               []string // patterns (path.Match) of pod annotations copied to the specification
	ContainerAnnotations         []string // the same for the container's annotations
}
