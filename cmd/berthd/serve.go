package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/runtimeservice"
)

// drainTime is how long calls in flight may go on after SIGTERM. It is shorter
// than systemd's patience.
const drainTime = 20 * time.Second

// settings is a configuration and where it came from.
type settings struct {
	cfg    config.Config
	source string
}

// node is a running daemon.
type node struct {
	*parts
	flags   *flags
	log     *slog.Logger
	level   *slog.LevelVar
	started time.Time

	mu  sync.Mutex
	now settings // in force; a reload replaces it
}

// serve builds the daemon, runs it until a signal, and closes it.
func serve(fl *flags, st settings, log *slog.Logger, level *slog.LevelVar) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	p, err := build(st, log)
	if err != nil {
		return err
	}
	n := &node{parts: p, flags: fl, log: log, level: level, started: time.Now(), now: st}
	streamer := runtimeservice.NewStreamer(runtimeservice.StreamerConfig{
		RunDir: n.now.cfg.Paths.Run, KeepExec: n.now.cfg.Streaming.KeepExec, Observer: n.watch.observer,
	}, n.shims, n.pods)
	if err := n.start(streamer); err != nil {
		return errors.Join(err, n.stop(signals))
	}
	failed := n.background(streamer)
	log.Info("berthd serves", "version", config.Version, "pid", os.Getpid(), "config", st.source,
		"cri", st.cfg.CRISocket(), "streaming", n.streams.BaseURL())
	n.notify(daemon.SdNotifyReady)
	watch, cancel := context.WithCancel(context.Background())
	defer cancel()
	go n.watchdog(watch)
	go n.collectNetworks(watch)
	go n.unmapIdle(watch)
	err = n.wait(signals, failed)
	cancel()
	return errors.Join(err, n.stop(signals))
}

// start opens the admin socket, serves plugins and begins to recover. Plugins
// come first: recovery may have news for them.
func (n *node) start(streamer *runtimeservice.Streamer) (err error) {
	n.admin, err = admin.New(admin.Config{Socket: n.now.cfg.AdminSocket(), Logger: n.log}, admin.Sources{
		Source: n, Repairer: n, Quarantiner: n, Insight: n, Puller: n, Signaller: n.runtime, Attachments: streamer,
		Images: adminImages{Service: n.images, wait: n.runtime.WaitImages},
	})
	if err == nil {
		err = n.runtime.StartPlugins()
	}
	if err == nil {
		n.recover(context.Background())
	}
	return err
}

// background serves all listeners; the channel gets what fails.
func (n *node) background(streamer *runtimeservice.Streamer) <-chan error {
	failed := make(chan error, 4)
	report := func(f func() error) {
		if err := f(); err != nil {
			failed <- err
		}
	}
	go report(func() error { return n.streams.Serve(streamer) })
	go report(n.admin.Serve)
	go report(n.watch.serve)
	go report(n.cri.Serve)
	return failed
}

// wait handles signals until one ends the daemon or a listener fails.
func (n *node) wait(signals <-chan os.Signal, failed <-chan error) error {
	for {
		select {
		case s := <-signals:
			if s != syscall.SIGHUP {
				n.log.Info("stopping; containers go on", "signal", s.String())
				return nil
			}
			n.reload()
		case err := <-failed:
			return err
		}
	}
}

// stop drains and closes; a second SIGTERM or SIGINT ends the wait.
func (n *node) stop(signals <-chan os.Signal) error {
	n.notify(daemon.SdNotifyStopping)
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	go func() {
		for {
			select {
			case s := <-signals:
				if s != syscall.SIGHUP {
					n.log.Warn("second signal: ending at once")
					cancel()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	done := make(chan error, 1)
	go func() { done <- n.close(ctx) }()
	select {
	case err := <-done:
		if err != nil {
			n.log.Warn("stopped with calls cut off", "error", err)
		}
		return nil
	case <-ctx.Done():
	}
	// A part that ignores its context must not keep the daemon alive: state is
	// committed as verbs go, and the journal covers the rest.
	select {
	case err := <-done:
		if err != nil {
			n.log.Warn("stopped late", "error", err)
		}
	case <-time.After(2 * time.Second):
		n.log.Warn("stopped without a clean end; the next start recovers")
	}
	return nil
}

// reload reads the file again. A bad one is logged and changes nothing.
func (n *node) reload() {
	n.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	defer n.notify(daemon.SdNotifyReady)
	cfg, source, err := n.flags.load()
	if err != nil {
		n.log.Error("reload failed; the old configuration stays in force", "error", err)
		return
	}
	// The files that a policy names may have changed although the policy has not.
	policy, err := signatures(cfg.Image.Signatures)
	if err != nil {
		n.log.Error("reload failed; the old configuration stays in force", "error", err)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := config.Diff(n.now.cfg, cfg)
	for _, d := range changed {
		if d.Hot {
			n.log.Info("configuration changed", "key", d.Path, "old", d.Old, "new", d.New)
		} else {
			n.log.Warn("configuration changed; takes effect at a restart (containers go on)", "key", d.Path, "old", d.Old, "new", d.New)
		}
	}
	n.log.Info("configuration reloaded", "source", source, "changes", len(changed))
	setLevel(n.level, cfg.Log.Level)
	n.images.Apply(imageSettings(cfg.Image))
	n.images.SetSignatures(policy)
	n.now.cfg.Log.Level, n.now.source = cfg.Log.Level, source
	was := n.now.cfg.Image
	n.now.cfg.Image = cfg.Image
	n.now.cfg.Image.KeepBlobs, n.now.cfg.Image.MaxLayerSize, n.now.cfg.Image.MaxLayerFiles = was.KeepBlobs, was.MaxLayerSize, was.MaxLayerFiles
}

// notify tells systemd; without systemd it does nothing.
func (n *node) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.log.Warn("cannot notify the service manager", "state", state, "error", err)
	}
}

// databaseSize returns the size of the database file, 0 when it cannot be read.
func databaseSize(root string) int64 {
	info, err := os.Stat(filepath.Join(root, "berth.db"))
	if err != nil {
		return 0
	}
	return info.Size()
}

// probeError says that the daemon does not answer on its own socket.
func probeError(err error) error { return fmt.Errorf("probe the CRI socket: %w", err) }
