package store

import (
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Sandbox is the durable record of one pod sandbox. Config is the message as
// the client sent it; it must not be modified once the record is committed.
type Sandbox struct {
	ID      string // 64 hex digits
	Handler string // runtime_handler as asked; "" is the default handler
	Config  *runtimeapi.PodSandboxConfig
	Facts   SandboxFacts
}

// SandboxFacts is what Berth itself learned or decided about a sandbox.
type SandboxFacts struct {
	CreatedAt    time.Time
	StoppedAt    time.Time         // zero while the sandbox has not been stopped
	BootID       string            // /proc/sys/kernel/random/boot_id when it was made
	CgroupParent string            // pod cgroup; containers live directly below it
	OwnsCgroup   bool              // Berth made CgroupParent and removes it
	Namespaces   map[string]string // "net", "ipc", "uts", "pid" -> pin path; absent: the node's
	HolderPID    int               // PID 1 of a shared PID namespace; 0: none
	Network      NetworkFacts
	SELinuxLevel string                              // of the pod's containers, and of no other pod's; "": SELinux is off
	SELinuxMount string                              // label of what the pod lends to its containers
	Overhead     *runtimeapi.LinuxContainerResources // of the pod, as last told; nil: as in Config
	Resources    *runtimeapi.LinuxContainerResources // sum of its containers', as last told; nil: as in Config
}

// RootView is how a container is to see its root file system.
type RootView struct {
	UserNS string // pin of the user namespace whose owners it shows; "": the node's
	Label  string // SELinux label of all files; "": their own
}

// NetworkFacts is the outcome of attaching a sandbox to its networks.
type NetworkFacts struct {
	Attached bool     // a CNI ADD has run: DEL is owed
	IPs      []string // primary address first, without prefix length
	Result   []byte   // CNI result as JSON, newest version libcni knows
}

// Container is the durable record of one container.
type Container struct {
	ID        string // 64 hex digits
	SandboxID string
	Config    *runtimeapi.ContainerConfig
	Facts     ContainerFacts
}

// ContainerFacts is what Berth itself learned or decided about a container.
type ContainerFacts struct {
	CreatedAt  time.Time
	StartedAt  time.Time // zero: never started
	BootID     string
	PID        int // of the container's init, in the node's PID namespace
	CgroupPath string
	LogPath    string // absolute; "" when the client asked for no log
	Exit       *Exit  // nil while the container has not ended
	Image      ImageUse
	User       User
	Resources  *runtimeapi.LinuxContainerResources // as last applied
	StopSignal string                              // "SIGTERM"-style name, resolved from config and image
	Volumes    []ImageUse                          // images mounted into it, in the order of its image mounts
}

// ImageUse says which image a container was made from.
type ImageUse struct {
	ID       string // config digest, "sha256:..."
	Ref      string // repo digest if there is one, else ID
	TopLayer string // chain ID of the top layer
}

// User is the identity a container's first process runs under.
type User struct {
	UID    uint32
	GID    uint32
	Groups []uint32
}

// Exit is how a container ended.
type Exit struct {
	Code       int32 // 128+signal when killed by one
	Signal     int   // 0: ended by itself
	OOMKilled  bool
	FinishedAt time.Time
	Reason     string // Completed, Error, OOMKilled, StartError, ContainerStatusUnknown
	Message    string
}

// Image is the durable record of one image, by ID.
type Image struct {
	ID          string   // digest of the image configuration, "sha256:..."; of the manifest for an artifact
	Manifest    string   // digest of the manifest that was pulled
	RepoTags    []string // "docker.io/library/busybox:1.36", sorted
	RepoDigests []string // "docker.io/library/busybox@sha256:...", sorted
	Config      []byte   // OCI image configuration, JSON, as pulled
	Layers      []string // chain IDs, bottom first
	SizeBytes   uint64   // compressed blobs plus configuration and manifest
	PulledAt    time.Time
	Artifact    string `json:",omitempty"` // type of an OCI artifact, whose files can be mounted; "" for a container image
	// Elsewhere are names under which the image is found by runtime handlers for
	// another platform than the node's: "linux/arm64 docker.io/library/busybox:1.36".
	// Another image may have the same name for the node's platform.
	Elsewhere []string `json:",omitempty"`
	// Verified says under which requirements its signatures were accepted.
	Verified []Verification `json:",omitempty"`
}

// Names returns the image's tags and digests on whatever platform, sorted.
func (i Image) Names() (tags, digests []string) {
	tags, digests = slices.Clone(i.RepoTags), slices.Clone(i.RepoDigests)
	for _, n := range i.Elsewhere {
		_, name, _ := strings.Cut(n, " ")
		if strings.Contains(name, "@") {
			digests = append(digests, name)
		} else {
			tags = append(tags, name)
		}
	}
	slices.Sort(tags)
	slices.Sort(digests)
	return slices.Compact(tags), slices.Compact(digests)
}

// Verification is the fact that a manifest had a signature which a requirement
// of the signature policy accepts.
type Verification struct {
	Manifest    string // digest
	Requirement string // digest of the rule with the content of its files
	By          string // who signed
	At          time.Time
}

// Layer is the durable record of one unpacked layer, by chain ID.
type Layer struct {
	ChainID     string
	Parent      string // chain ID; "" for a bottom layer
	DiffID      string
	Blob        string // digest of the compressed blob it was unpacked from
	UsageBytes  uint64 // bytes on disk
	UsageInodes uint64
	UnpackedAt  time.Time
	BootID      string `json:",omitempty"` // of the boot it was written in
}

// Op is one journaled verb that has begun and not ended.
type Op struct {
	ID        string
	Kind      string // "sandbox.run", "container.create", ...
	Subject   string // object ID
	Payload   []byte // the verb's state, enough to resume or undo it
	StartedAt time.Time
}

// Change is a set of writes that become durable together or not at all.
type Change struct {
	PutSandboxes     []Sandbox
	DeleteSandboxes  []string
	PutContainers    []Container
	DeleteContainers []string
	PutImages        []Image
	DeleteImages     []string
	PutLayers        []Layer
	DeleteLayers     []string
	EndOps           []string // journal entries closed by this change
	Quarantine       []Quarantined

	dropQuarantined []string // names
}
