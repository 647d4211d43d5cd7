// Package stats answers the CRI's questions about what containers and pods
// use. Every figure is read from the kernel when it is asked for; nothing is
// polled. Only two things are remembered between calls: the CPU reading that a
// rate is computed against, and the size of writable layers, which takes a
// walk and is renewed beside the call.
//
// The calls take no lock that a verb holds: a container that ends meanwhile is
// left out of a list.
package stats

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/chunk"
	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

// streamChunk is how many objects of a stream are measured at a time.
const streamChunk = 64

// maxWorkers bounds how many objects one call reads at the same time.
const maxWorkers = 4

// Config is what the server must know of the node.
type Config struct {
	BootID        string
	StateDir      string   // writable layers live on its file system
	HugePageSizes []string // "2MB"; as the controller names them
	SystemdCgroup bool
	Logger        *slog.Logger // nil: discard
	// Spawn runs work that outlives a call, on a context that ends with the daemon.
	Spawn func(func(context.Context))
}

// Disk measures what containers have written.
type Disk interface {
	// WritableUsage walks the writable layer of a container.
	WritableUsage(ctx context.Context, id string) (bytes, inodes uint64, err error)
}

// Network counts a pod's traffic.
type Network interface {
	// Interfaces returns a pod's interfaces, its default one first; none when
	// it shares the node's.
	Interfaces(s store.Sandbox) ([]sandbox.Interface, error)
}

// Deps are the parts the server reads from.
type Deps struct {
	Store   *store.DB
	Cgroups cgroup.Mode
	Network Network
	Disk    Disk
}

// Server answers the CRI's statistics calls.
type Server struct {
	cfg    Config
	deps   Deps
	rates  *rates
	disk   *disk
	ioCost bool // the node's controller of I/O cost was on at the start
}

// New returns a server. InvalidArgument when a part is missing.
func New(cfg Config, d Deps) (*Server, error) {
	if d.Store == nil || d.Network == nil || d.Disk == nil || cfg.Spawn == nil {
		return nil, fmt.Errorf("configure statistics: a dependency is missing: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, deps: d, rates: newRates(), disk: newDisk(d.Disk, cfg.Spawn), ioCost: d.Cgroups.IOCost()}, nil
}

// alive says whether a container has processes, or a runtime waiting to start
// them. Ended ones have no figures.
func (s *Server) alive(c store.Container) bool {
	return c.Facts.Exit == nil && c.Facts.BootID == s.cfg.BootID && !c.Facts.CreatedAt.IsZero()
}

func (s *Server) ready(p store.Sandbox) bool {
	return p.Facts.StoppedAt.IsZero() && p.Facts.BootID == s.cfg.BootID
}

// forget drops what is remembered of containers and pods that are gone.
func (s *Server) forget() {
	known := func(id string) bool {
		if _, err := s.deps.Store.Container(id); err == nil {
			return true
		}
		_, err := s.deps.Store.Sandbox(id)
		return err == nil
	}
	s.rates.prune(known)
	s.disk.prune(known)
}

// trouble logs why figures are missing, unless the object just went away.
func (s *Server) trouble(what, id string, err error) {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, syscall.ENODEV) {
		return
	}
	s.cfg.Logger.Warn("figures are missing from the statistics", "of", what, "id", id, "error", err)
}

// each calls f for 0 to n-1 from a few goroutines until ctx ends.
func each(ctx context.Context, n int, f func(i int)) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, maxWorkers, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				f(i)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// inParts measures objects a chunk at a time, so that a stream of any length
// takes the memory of a chunk. Objects without figures are nil.
func inParts[R any, T message](ctx context.Context, all []R, measure func(R) T, send func([]T) error) error {
	for some := range slices.Chunk(all, streamChunk) {
		part, err := measured(ctx, some, measure)
		if err != nil {
			return fmt.Errorf("stream statistics: %w", err)
		}
		if err := chunk.Send(slices.Values(part), send); err != nil {
			return fmt.Errorf("send statistics: %w", err)
		}
	}
	return nil
}

// message is a pointer to one of the CRI's messages.
type message interface {
	comparable
	proto.Message
}

// measured measures all objects, in their order, and leaves out those that
// have no figures any more.
func measured[R any, T message](ctx context.Context, all []R, measure func(R) T) ([]T, error) {
	out := make([]T, len(all))
	if err := each(ctx, len(all), func(i int) { out[i] = measure(all[i]) }); err != nil {
		return nil, err
	}
	var none T
	return slices.DeleteFunc(out, func(t T) bool { return t == none }), nil
}

// fits tells whether an object passes a filter: IDs by prefix, labels all.
func fits(id, wantID string, labels, want map[string]string) bool {
	if !strings.HasPrefix(id, wantID) {
		return false
	}
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// now is the time of a reading, in nanoseconds as the CRI counts.
func now() int64 { return time.Now().UnixNano() }
