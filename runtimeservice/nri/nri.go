// Package nri lets node resource plugins watch pods and containers and adjust
// containers before they are made, by the interface of
// github.com/containerd/nri.
//
// What plugins have been told is kept as a view. It changes together with the
// event that tells them, and a plugin that joins is synchronised with the view
// while no event can be told. So each pod and container reaches each plugin
// once, by its synchronisation or by an event, however long the making of it
// takes; and a plugin that joins holds up nothing but events.
//
// All methods of a nil Manager do nothing: the node serves no plugins.
package nri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// Config says how plugins are reached and how long they may take.
type Config struct {
	Socket           string        // that plugins connect to; "": none may
	PluginDir        string        // programs that are started with the daemon; need not exist
	PluginConfigDir  string        // their configuration
	RegistrationTime time.Duration // for a plugin to register once connected
	RequestTime      time.Duration // for a plugin to answer; one that takes longer is disconnected
	Version          string        // Berth's
	BootID           string        // of this boot
	Logger           *slog.Logger  // nil: discard
}

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	switch {
	case c.Socket != "" && !filepath.IsAbs(c.Socket):
		return fmt.Errorf("socket for plugins %q is not absolute: %w", c.Socket, errdefs.ErrInvalidArgument)
	case c.RegistrationTime <= 0, c.RequestTime <= 0:
		return fmt.Errorf("times that plugins may take must be set: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// Resources is a change of a container's resources: CRI holds what the CRI can
// say, Rest what it cannot. What is not set stays as it is.
type Resources struct {
	CRI  *runtimeapi.LinuxContainerResources
	Rest *specs.LinuxResources
}

// Runtime is what plugins may ask of the node.
type Runtime interface {
	// StoredSpec returns the specification a container was made with.
	StoredSpec(id string) (*specs.Spec, error)
	// UpdateResources changes the resources of a container.
	UpdateResources(ctx context.Context, id string, r Resources) error
	// Evict ends a container at once.
	Evict(ctx context.Context, id string) error
}

// Manager tells plugins what happens and asks them what to change.
type Manager struct {
	cfg    Config
	db     *store.DB
	rt     Runtime // set by Start
	a      *adaptation.Adaptation
	view   *view
	count  atomic.Int32  // of plugins; may be too high until the next event, never too low under a sync block
	alone  atomic.Bool   // until Start has synchronised: no plugin is installed
	ready  chan struct{} // closed when Start is over
	jobs   jobs
	ctx    context.Context // of work that plugins cause
	cancel context.CancelFunc
}

// New prepares for plugins; none is served before Start. The pods and
// containers of db are what plugins will be told first.
func New(cfg Config, db *store.DB) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure plugins: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{cfg: cfg, db: db, view: newView(db), ready: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	// The library keeps its logger and its times for the whole process.
	nrilog.Set(logger{cfg.Logger.With("part", "nri")})
	adaptation.SetPluginRegistrationTimeout(cfg.RegistrationTime)
	adaptation.SetPluginRequestTimeout(cfg.RequestTime)
	opts := []adaptation.Option{
		adaptation.WithPluginPath(cfg.PluginDir),
		adaptation.WithPluginConfigPath(cfg.PluginConfigDir),
		adaptation.WithMetrics((*counter)(m)),
		adaptation.WithTTRPCOptions(
			[]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(collectEvictions)},
			[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(m.serveEvictions)}),
	}
	if cfg.Socket == "" {
		opts = append(opts, adaptation.WithDisabledExternalConnections())
	} else {
		opts = append(opts, adaptation.WithSocketPath(cfg.Socket))
	}
	var err error
	if m.a, err = adaptation.New("berth", cfg.Version, m.synchronise, m.unsolicited, opts...); err != nil {
		m.cancel()
		return nil, fmt.Errorf("configure plugins: %w", err)
	}
	return m, nil
}

// Start starts the installed plugins and lets others connect. It takes as long
// as slow installed plugins take to register, each within its time; events
// wait for it. Call it once, before recovery and before clients are served.
func (m *Manager) Start(rt Runtime) error {
	if m == nil {
		return nil
	}
	defer close(m.ready)
	m.rt = rt
	m.alone.Store(m.noneInstalled())
	if err := m.a.Start(); err != nil {
		return fmt.Errorf("start plugins: %w", err)
	}
	return nil
}

// Close disconnects plugins and ends those that Start started. It waits for
// work that plugins caused until ctx ends.
func (m *Manager) Close(ctx context.Context) error {
	if m == nil {
		return nil
	}
	m.cancel()
	m.a.Stop()
	return m.jobs.wait(ctx)
}

// synchronise tells a plugin that joins what the others know. The library lets
// nobody hold a sync block meanwhile.
func (m *Manager) synchronise(ctx context.Context, tell adaptation.SyncCB) error {
	if m.alone.Swap(false) && m.noneInstalled() {
		// The first call is Start's, for installed plugins. To read the
		// specifications of all containers for nobody would hold up a start.
		_, err := tell(ctx, nil, nil)
		return err
	}
	pods, containers := m.snapshot()
	updates, err := tell(ctx, pods, containers)
	if err != nil {
		return err
	}
	// Not waited for: no event can be told until this returns.
	m.jobs.add(func() { m.applyAll(updates, "synchronisation") })
	return nil
}

// noneInstalled reports that there is no plugin for Start to run.
func (m *Manager) noneInstalled() bool {
	entries, err := os.ReadDir(m.cfg.PluginDir)
	return len(entries) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist))
}

func (m *Manager) snapshot() ([]*adaptation.PodSandbox, []*adaptation.Container) {
	pods, containers := m.view.known()
	var outPods []*adaptation.PodSandbox
	var outContainers []*adaptation.Container
	for id, pending := range pods {
		rec, err := m.db.Sandbox(id)
		switch {
		case err == nil:
			outPods = append(outPods, podMessage(rec))
		case pending != nil:
			outPods = append(outPods, podMessage(*pending))
		default:
			m.view.removePod(id) // recovery has removed it
		}
	}
	for id, pending := range containers {
		rec, err := m.db.Container(id)
		switch {
		case err == nil:
			outContainers = append(outContainers, containerMessage(rec, m.storedSpec(id), m.cfg.BootID))
		case pending != nil:
			outContainers = append(outContainers, containerMessage(pending.rec, pending.spec, m.cfg.BootID))
		default:
			m.view.removeContainer(id)
		}
	}
	return outPods, outContainers
}

// storedSpec returns an empty specification when there is none any more.
func (m *Manager) storedSpec(id string) *specs.Spec {
	doc, err := m.rt.StoredSpec(id)
	if err != nil {
		m.cfg.Logger.Debug("plugins see a container without its specification", "container", id, "error", err)
		return &specs.Spec{}
	}
	return doc
}

// jobs runs what plugins ask for one after another, in the order it was asked.
type jobs struct {
	mu      sync.Mutex
	queue   []func()
	running bool
	wg      sync.WaitGroup
}

// add appends a job and returns a channel that is closed when it is done.
func (j *jobs) add(f func()) <-chan struct{} {
	done := make(chan struct{})
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue = append(j.queue, func() { defer close(done); f() })
	if !j.running {
		j.running = true
		j.wg.Go(j.run)
	}
	return done
}

func (j *jobs) run() {
	for {
		j.mu.Lock()
		if len(j.queue) == 0 {
			j.running = false
			j.mu.Unlock()
			return
		}
		next := j.queue[0]
		j.queue = j.queue[1:]
		j.mu.Unlock()
		next()
	}
}

func (j *jobs) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { j.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close plugins: what they asked for is still under way: %w", ctx.Err())
	}
}

// counter learns from the library how many plugins there are.
type counter Manager

// UpdatePluginCount implements adaptation.Metrics.
func (c *counter) UpdatePluginCount(n int) { c.count.Store(int32(n)) }

// RecordPluginInvocation implements adaptation.Metrics.
func (*counter) RecordPluginInvocation(string, string, error) {}

// RecordPluginLatency implements adaptation.Metrics.
func (*counter) RecordPluginLatency(string, string, time.Duration) {}

// RecordPluginAdjustments implements adaptation.Metrics.
func (*counter) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {}
