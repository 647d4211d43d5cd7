// Package runtimeservice implements the CRI's verbs on pods and containers:
// it validates, locks the one object concerned, runs the verb's named steps,
// commits the facts and publishes an event. Facts live in the store; state is
// derived from them, and List and Status read it without waiting for a verb.
package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/runtimeservice/checkpoint"
	"github.com/berth-dev/berth/runtimeservice/confine"
	"github.com/berth-dev/berth/runtimeservice/recovery"
	"github.com/berth-dev/berth/runtimeservice/stats"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

// Handler is one runtime handler of the configuration.
type Handler struct {
	Runtime shim.Runtime
	Spec    spec.Handler
}

// Config is what the service must know about the node and its own settings.
type Config struct {
	RunDir         string             // run-time directory, absolute
	StateDir       string             // state directory, absolute
	Handlers       map[string]Handler // by the name that runtime_handler uses
	DefaultHandler string             // serves an empty runtime_handler
	SystemdCgroup  bool               // cgroup driver: systemd instead of cgroupfs
	BootID         string             // of this boot
	Host           spec.Host          // see ProbeHost; AllDevices is read anew when needed
	Version        string             // Berth's version
	Limits         Limits
	CDIDirs        []string     // of the files that say what CDI devices are; none: there are no such devices
	Logger         *slog.Logger // nil: discard
}

// Limits bound what a call may take. Zero values mean the defaults.
type Limits struct {
	ExecOutputBytes int            // of each stream of ExecSync; default 16 MiB
	ExecDrain       time.Duration  // wait for pipes that a leftover child holds open; default 2 s
	KillWait        time.Duration  // wait after SIGKILL before the next resort; default 10 s
	FindWait        time.Duration  // for one shim to answer after a restart, while calls on its container wait; default 10 s
	CreateTime      time.Duration  // for RunPodSandbox and CreateContainer once begun; default 4 min
	LogLineBytes    int            // longest log line before it is split; 0: the shim's default
	Log             shim.LogLimits // of every container
}

func (l Limits) withDefaults() Limits {
	if l.ExecOutputBytes <= 0 {
		l.ExecOutputBytes = 16 << 20
	}
	if l.ExecDrain <= 0 {
		l.ExecDrain = 2 * time.Second
	}
	if l.KillWait <= 0 {
		l.KillWait = 10 * time.Second
	}
	if l.FindWait <= 0 {
		l.FindWait = 10 * time.Second
	}
	if l.CreateTime <= 0 {
		l.CreateTime = 4 * time.Minute
	}
	return l
}

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.RunDir):
		return fmt.Errorf("run-time directory %q is not absolute: %w", c.RunDir, errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(c.StateDir):
		return fmt.Errorf("state directory %q is not absolute: %w", c.StateDir, errdefs.ErrInvalidArgument)
	case c.BootID == "":
		return fmt.Errorf("boot ID is empty: %w", errdefs.ErrInvalidArgument)
	}
	if _, ok := c.Handlers[c.DefaultHandler]; !ok {
		return fmt.Errorf("default runtime handler %q is not among the handlers: %w", c.DefaultHandler, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Service is the CRI's RuntimeService. Every RPC is answered by one of the
// receivers it is made of; the embedded Unsafe interface makes a method that
// is missing a compile error.
type Service struct {
	runtimeapi.UnsafeRuntimeServiceServer
	*pods
	*containers
	*execs
	*info
	*checkpoints
	*stats.Server
}

var _ runtimeapi.RuntimeServiceServer = (*Service)(nil)

// core is what the receivers share.
type core struct {
	cfg    Config
	db     *store.DB
	images Images
	rootfs RootFS
	pod    podDeps
	shim   shimDeps
	locks  objectLocks
	joins  *joinGroup
	ends   *endings
	clock  clock
	tasks  *tasks
}

type podDeps struct {
	podVerbs
	podRepair
	podWatch
	podHost
}

type shimDeps struct {
	shimLife
	shimEarly
	shimControl
	shimWatch
	shimRecords
	shimHealth
	shimStreams
	shimFreeze
}

// tasks counts the goroutines that outlive the call that began them.
type tasks struct {
	wg     sync.WaitGroup
	cancel context.CancelFunc
	ctx    context.Context
}

func newTasks(o observe.Observer) *tasks {
	ctx, cancel := context.WithCancel(observe.With(context.Background(), o))
	return &tasks{ctx: ctx, cancel: cancel}
}

// spawn runs f on a context that ends with the service.
func (t *tasks) spawn(f func(ctx context.Context)) {
	t.wg.Go(func() { f(t.ctx) })
}

// New builds the service and starts consuming container exits. Call Recover
// before serving and Close at the end.
func New(cfg Config, d Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure runtime service: %w", err)
	}
	if d.Store == nil || d.Sandboxes == nil || d.Shims == nil || d.Images == nil || d.RootFS == nil || d.Streams == nil || d.Network == nil {
		return nil, fmt.Errorf("configure runtime service: a dependency is missing: %w", errdefs.ErrInvalidArgument)
	}
	c := newCore(cfg, d.Observer)
	c.db, c.images, c.rootfs = d.Store, d.Images, d.RootFS
	c.pod = podDeps{d.Sandboxes, d.Sandboxes, d.Sandboxes, d.Sandboxes}
	c.shim = shimDeps{d.Shims, d.Shims, d.Shims, d.Shims, d.Shims, d.Shims, d.Shims, d.Shims}
	s := newService(c, d.Streams)
	s.containers.cgroups, s.containers.plugins = d.Cgroups, d.Plugins
	if d.Confine != nil {
		s.containers.confine = d.Confine
	}
	s.containers.keepLevels()
	s.info.network, s.checkpoints.disk = d.Network, d.Disk
	var err error
	s.Server, err = stats.New(stats.Config{
		BootID: cfg.BootID, StateDir: cfg.StateDir, HugePageSizes: cfg.Host.HugePageSizes,
		SystemdCgroup: cfg.SystemdCgroup, Logger: cfg.Logger, Spawn: c.tasks.spawn,
	}, stats.Deps{Store: d.Store, Cgroups: d.Cgroups, Network: d.Sandboxes, Disk: d.Disk})
	if err != nil {
		return nil, err
	}
	c.tasks.spawn(s.consumeExits)
	return s, nil
}

// StartPlugins lets plugins connect. Call it before serving and before Recover.
func (s *Service) StartPlugins() error { return s.containers.plugins.Start(pluginSide{s.containers}) }

func newCore(cfg Config, o observe.Observer) *core {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	background := newTasks(o)
	return &core{
		cfg: cfg, locks: objectLocks{newKeyedLocks(), recovery.New(cfg.Logger, background.spawn)}, joins: newJoinGroup(),
		ends: newEndings(), clock: realClock{}, tasks: background,
	}
}

func newService(c *core, streams Streams) *Service {
	ct := &containers{core: c, stops: newStops(), creations: newCreations(), probes: newProbes(), confine: &confine.Node{},
		maker: checkpoint.New(filepath.Join(c.cfg.StateDir, "checkpoints"), freezer{c.shim}, c.db)}
	criu := &checkpoint.CRIU{}
	ps := &pods{core: c, containers: ct}
	cs := &checkpoints{containers: ct, criu: criu, vet: criu.Vet}
	cs.restorer = checkpoint.NewRestorer(podRestore{ps, cs}, c.db)
	return &Service{
		pods:        ps,
		containers:  ct,
		execs:       &execs{core: c, streams: streams},
		info:        &info{core: c, probes: ct.probes, stops: ct.stops, criu: criu},
		checkpoints: cs,
	}
}

// Close ends event streams and background work of the service. Containers go
// on. It waits for the work under way until ctx ends.
func (s *Service) Close(ctx context.Context) error {
	c := s.info.core
	c.tasks.cancel()
	done := make(chan struct{})
	go func() { c.tasks.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close runtime service: verbs are still under way: %w", errors.Join(ctx.Err()))
	}
}

func (c *core) bundle(id string) string   { return filepath.Join(c.cfg.RunDir, "containers", id) }
func (c *core) rootPath(id string) string { return filepath.Join(c.bundle(id), "rootfs") }
func (c *core) stateDir(id string) string { return filepath.Join(c.cfg.StateDir, "containers", id) }

// handler returns the handler for a runtime_handler name.
func (c *core) handler(name string) (Handler, error) {
	if name == "" {
		name = c.cfg.DefaultHandler
	}
	h, ok := c.cfg.Handlers[name]
	if !ok {
		return Handler{}, fmt.Errorf("runtime handler %q is not configured (known: %s): %w",
			name, handlerNames(c.cfg.Handlers), errdefs.ErrInvalidArgument)
	}
	return h, nil
}
