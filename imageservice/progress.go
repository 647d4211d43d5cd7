package imageservice

import (
	"cmp"
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/imageservice/content"
	"github.com/berth-dev/berth/imageservice/limit"
	"github.com/berth-dev/berth/imageservice/registry"
)

// PullLimits bound what all pulls of the node take together. Zero values get
// the defaults.
type PullLimits struct {
	Downloads   int   // blobs fetched at the same time; default 3
	Connections int   // transfers at the same time; default 6
	PerBlob     int   // connections of one large blob; default 3
	Unpacks     int   // layers unpacked at the same time; default the number of CPUs
	Rate        int64 // bytes per second; default none
	Host        registry.Limits
}

func (l PullLimits) content() content.Limits {
	return content.Limits{Downloads: l.Downloads, Connections: l.Connections, PerBlob: l.PerBlob, Rate: l.Rate}
}

func (l PullLimits) unpacks() int {
	if l.Unpacks <= 0 {
		return runtime.NumCPU()
	}
	return l.Unpacks
}

// Apply changes the settings. Transfers and unpacking under way feel the limits
// at once; hosts and files of registries are what they were at the beginning of
// a pull, the program that unpacks at that of a layer.
func (s *Service) Apply(c Settings) {
	s.blobs.SetLimits(c.Pull.content())
	s.pulls.unpacks.Resize(c.Pull.unpacks())
	s.registry.SetLimits(c.Pull.Host)
	if c.HostsDirs == nil {
		c.HostsDirs = []string{"/etc/berth/certs.d", "/etc/containerd/certs.d"}
	}
	s.registry.SetFiles(registry.Files{HostsDirs: c.HostsDirs, AuthFiles: c.AuthFiles})
	s.gzip.Store(&c.Gzip)
	pinned := pinnedNames(c.Pinned)
	s.pinned.Store(&pinned)
}

// PullStats counts what pulls did since the start of the daemon.
type PullStats struct {
	Pulls, Failed                int64 // ended pulls; those of them that failed
	LayersFetched, LayersPresent int64 // unpacked; found on the node (cache hits)
	BytesFetched, BytesResumed   int64 // received; found of earlier tries
	Breaks                       int64 // transfers that broke off and went on
	Registry                     RegistryStats
	// The time of all layers together; phases of one layer overlap.
	Download, Unpack, Commit time.Duration
}

// RegistryStats counts requests to registries.
type RegistryStats struct {
	Requests, Retries int64 // sent; of them repetitions
	Failures          int64 // hosts tried in vain
}

// PullStats returns the counters.
func (s *Service) PullStats() PullStats {
	c, b, r := &s.pulls.counters, s.blobs.Stats(), s.registry.Stats()
	return PullStats{
		Pulls: c.Pulls.Load(), Failed: c.Failed.Load(),
		LayersFetched: c.LayersFetched.Load(), LayersPresent: c.LayersPresent.Load(),
		BytesFetched: b.Bytes.Load(), BytesResumed: b.Resumed.Load(),
		Breaks:   b.Breaks.Load(),
		Registry: RegistryStats{Requests: r.Requests.Load(), Retries: r.Retries.Load(), Failures: r.Failed.Load()},
		Download: time.Duration(b.Nanoseconds.Load()), Unpack: time.Duration(c.UnpackNanoseconds.Load()),
		Commit: time.Duration(c.CommitNanoseconds.Load()),
	}
}

// counters are the pulls' own part of PullStats.
type counters struct {
	Pulls, Failed, LayersFetched, LayersPresent atomic.Int64
	UnpackNanoseconds, CommitNanoseconds        atomic.Int64
}

// spent adds the time until the returned function runs.
func spent(ns *atomic.Int64) func() {
	start := time.Now()
	return func() { ns.Add(int64(time.Since(start))) }
}

// pulls is what the pulls of a node share.
type pulls struct {
	unpacks  *limit.Gate
	counters counters

	mu      sync.Mutex
	running map[*run]bool
}

func newPulls(l PullLimits) *pulls {
	return &pulls{unpacks: limit.NewGate(l.unpacks()), running: map[*run]bool{}}
}

// run is one pull under way.
type run struct {
	ref     string
	started time.Time
	trace   func(registry.Attempt)

	mu      sync.Mutex
	flights []*flight
}

func (p *pulls) begin(ref string, trace func(registry.Attempt)) *run {
	r := &run{ref: ref, started: time.Now(), trace: trace}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running[r] = true
	return r
}

func (p *pulls) end(r *run, err error) {
	p.counters.Pulls.Add(1)
	if err != nil {
		p.counters.Failed.Add(1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, r)
}

func (r *run) show(flights []*flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flights = flights
}

// packed is a layer's blob, and how far it is for all to see.
type packed struct {
	desc    ocispec.Descriptor
	arrives atomic.Pointer[content.Download]
	plain   atomic.Int64 // unpacked bytes
}

func (p *packed) begin(blob *content.Download) {
	p.plain.Store(0)
	p.arrives.Store(blob)
}

// Phases of a layer.
const (
	PhasePresent  = "present" // the node had it before
	PhaseWaiting  = "waiting"
	PhaseDownload = "downloading" // and unpacking what has arrived
	PhaseUnpack   = "unpacking"   // all bytes are here
	PhaseDone     = "done"
	PhaseFailed   = "failed"
)

// LayerProgress is how far a layer is.
type LayerProgress struct {
	Digest digest.Digest // of the packed bytes
	Size   int64         // packed
	Have   int64         // of Size, those of earlier tries included
	Plain  int64         // unpacked bytes so far
	Phase  string
}

// PullProgress is how far a pull is.
type PullProgress struct {
	Ref     string
	Started time.Time
	Layers  []LayerProgress // bottom first; empty until the manifest is here
}

// Pulls returns all pulls under way, oldest first.
func (s *Service) Pulls() []PullProgress {
	s.pulls.mu.Lock()
	var all []PullProgress
	for r := range s.pulls.running {
		all = append(all, r.progress())
	}
	s.pulls.mu.Unlock()
	slices.SortFunc(all, func(a, b PullProgress) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Ref, b.Ref))
	})
	return all
}

func (r *run) progress() PullProgress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := PullProgress{Ref: r.ref, Started: r.started}
	for _, f := range r.flights {
		p.Layers = append(p.Layers, f.progress())
	}
	return p
}

func (f *flight) progress() LayerProgress {
	p := LayerProgress{Digest: f.desc.Digest, Size: f.desc.Size, Plain: f.plain.Load(), Phase: PhaseWaiting}
	if b := f.arrives.Load(); b != nil {
		p.Have = b.Have()
	}
	select {
	case <-f.done:
		switch {
		case f.err != nil:
			p.Phase = PhaseFailed
		case f.cancel == nil:
			p.Phase, p.Have = PhasePresent, p.Size
		default:
			p.Phase, p.Have = PhaseDone, p.Size
		}
		return p
	default:
	}
	switch {
	case p.Have == p.Size && p.Size > 0:
		p.Phase = PhaseUnpack
	case p.Have > 0:
		p.Phase = PhaseDownload
	}
	return p
}

type traceKey struct{}

// WithTrace returns a context in which a pull tells every host it tries. The
// function is called from many goroutines, until the pull has returned and
// now and then after that.
func WithTrace(ctx context.Context, trace func(registry.Attempt)) context.Context {
	return context.WithValue(ctx, traceKey{}, trace)
}

func tracer(ctx context.Context) func(registry.Attempt) {
	f, _ := ctx.Value(traceKey{}).(func(registry.Attempt))
	return f
}
