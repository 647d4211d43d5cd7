package runtimeservice

import (
	"context"
	"net"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/runtimeservice/checkpoint"
	"github.com/berth-dev/berth/runtimeservice/confine"
	"github.com/berth-dev/berth/runtimeservice/nri"
	"github.com/berth-dev/berth/runtimeservice/stats"
	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

// Images finds the images a container configuration names, and lends their files.
type Images interface {
	// Resolve returns the image for an ID, tag or digest; NotFound when the
	// node does not have it.
	Resolve(ctx context.Context, spec *runtimeapi.ImageSpec) (store.Image, error)
	// Lend mounts the image's files read-only at target, which exists, for
	// container id, with owners as for RootFS.Mount. RootFS.Unmount takes the
	// mount away, RootFS.Remove gives the image up. Idempotent.
	Lend(ctx context.Context, id string, img store.Image, target string, view store.RootView) error
	// Suspect says that a container of the image failed as it would with a
	// damaged image. It returns at once; the image is checked and repaired.
	Suspect(ctx context.Context, imageID string)
}

// RootFS makes writable root file systems from an image's layers.
type RootFS interface {
	// Mount makes the writable layer of container id if missing and mounts
	// the overlay at target, which exists, as the view says. Idempotent.
	Mount(ctx context.Context, id string, img store.Image, target string, view store.RootView) error
	// Unmount takes the mount at target away. Idempotent.
	Unmount(ctx context.Context, id, target string) error
	// Remove deletes the writable layer. Idempotent.
	Remove(ctx context.Context, id string) error
}

// Streams hands out one-time URLs of the streaming server.
type Streams interface {
	GetExec(*runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	GetAttach(*runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	GetPortForward(*runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// Network is what the service needs of the node's networks beyond sandboxes.
type Network interface {
	// SetPodCIDR takes the subnets of the node's pods, separated by commas.
	SetPodCIDR(ctx context.Context, cidr string) error
	// Describe returns what is known of the networks, to be shown as JSON.
	Describe(ctx context.Context) any
}

// Disk knows what containers have written.
type Disk interface {
	stats.Disk
	// WritableLayer returns where container id writes, and the layers under that
	// from topLayer on, top first.
	WritableLayer(id, topLayer string) (upper string, lower []string, err error)
	checkpoint.Filler
}

// Deps are the parts the service stands on.
type Deps struct {
	Store     *store.DB
	Sandboxes *sandbox.Manager
	Shims     *shim.Manager
	Images    Images
	RootFS    RootFS
	Streams   Streams
	Network   Network
	Disk      Disk             // what containers have written
	Cgroups   cgroup.Mode      // where their use is read
	Observer  observe.Observer // hears of work that no call has asked for; nil: nobody does
	Plugins   *nri.Manager     // nil: none
	Confine   *confine.Node    // what the node confines containers with; nil: nothing
}

// The interfaces below are what this package needs of the layers under it, so
// that tests can stand in for them.

// podVerbs are the steps on sandboxes.
type podVerbs interface {
	Run(ctx context.Context, rec store.Sandbox) (store.Sandbox, error)
	Stop(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
}

// podRepair settles what crashes and failures have left of sandboxes.
type podRepair interface {
	Resume(ctx context.Context, id string) error
	Examine(ctx context.Context) ([]sandbox.Action, error)
	Settle(ctx context.Context, id string) error
}

// podWatch learns which sandboxes have lost their holder.
type podWatch interface {
	WatchHolders() <-chan string
}

// podHost is what a sandbox offers to the rest of the node.
type podHost interface {
	Files(s store.Sandbox) sandbox.Files
	NetworkReady(ctx context.Context) (note string, err error)
	// Limit applies resources to the sandbox's cgroup and records them; nil: as they are.
	Limit(ctx context.Context, s store.Sandbox, overhead, resources *runtimeapi.LinuxContainerResources) error
}

// podDialer connects to a port inside a pod.
type podDialer interface {
	Dial(ctx context.Context, id string, port uint16) (net.Conn, error)
}

// shimLife makes, starts and deletes containers.
type shimLife interface {
	Create(ctx context.Context, r shim.CreateRequest) (shim.Created, error)
	Start(ctx context.Context, id string) (shim.Started, error)
	Delete(ctx context.Context, id string, r shim.Runtime) error
}

// shimEarly begins to make a container before all is there that it takes.
type shimEarly interface {
	Prepare(id string)
}

// shimControl acts on containers that exist.
type shimControl interface {
	Signal(ctx context.Context, id string, sig syscall.Signal) error
	Update(ctx context.Context, id string, r shim.Runtime, res *specs.LinuxResources) error
	ReopenLog(ctx context.Context, id string) error
}

// shimWatch learns how containers fare.
type shimWatch interface {
	Reconnect(ctx context.Context, id string) (shim.State, error)
	State(ctx context.Context, id string) (shim.State, error)
	Exits() <-chan shim.Exit
}

// shimRecords reads what containers left on disk.
type shimRecords interface {
	LastExit(id string) (x shim.Exit, ok bool, err error)
}

// shimHealth tells which containers' logs cannot be written, and what they lost.
type shimHealth interface {
	LogTrouble(ctx context.Context) []shim.LogTrouble
	LogLosses(ctx context.Context) shim.LogLosses
}

// shimStreams are the byte streams of containers.
type shimStreams interface {
	Exec(ctx context.Context, id string, r shim.ExecRequest) (*shim.Exec, error)
	Attach(ctx context.Context, id string, stdin bool) (*shim.Attached, error)
	Resize(ctx context.Context, id string, width, height uint16) error
}

// shimFreeze makes containers stand still.
type shimFreeze interface {
	Freeze(ctx context.Context, id string) (*shim.Frozen, error)
	Thawed(ctx context.Context, id string) error
}

// clock is the time source of the stop logic; tests drive it by hand.
type clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }
