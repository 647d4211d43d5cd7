package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/runtimeservice/reconcile"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// commitRetry is the longest pause between two attempts to commit an exit when
// the store refuses, for want of disk space for example.
const commitRetry = 5 * time.Second

// findPause is the longest pause between two attempts to find a container again.
const findPause = time.Minute

// consumeExits records the ends of containers until ctx ends. What comes later
// is found by the next daemon in the exit records.
func (s *Service) consumeExits(ctx context.Context) {
	c := s.containers
	exits := c.shim.Exits()
	for {
		select {
		case <-ctx.Done():
			return
		case x, ok := <-exits:
			if !ok {
				return
			}
			c.tasks.spawn(func(ctx context.Context) { c.commitExit(ctx, x) })
		}
	}
}

// commitExit records the end of a container, tries again while the store
// refuses, and wakes those who wait for it.
func (c *containers) commitExit(ctx context.Context, x shim.Exit) {
	pause := 50 * time.Millisecond
	for {
		err := c.recordExit(context.WithoutCancel(ctx), x)
		if err == nil {
			return
		}
		c.cfg.Logger.Error("cannot record the end of a container, trying again", "container", x.ID, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
			pause = min(2*pause, commitRetry)
		}
	}
}

func (c *containers) recordExit(ctx context.Context, x shim.Exit) error {
	fresh := false
	set := func(f *store.ContainerFacts) bool {
		if fresh = f.Exit == nil; fresh {
			f.Exit = exitFacts(x, c.clock.Now())
		}
		return fresh
	}
	op.Fault("container.exit", "commit", "before")
	rec, err := c.commitFacts(ctx, x.ID, set)
	if errdefs.IsNotFound(err) && !c.ends.keep(x) {
		// Its creation may have been committed between the two looks.
		rec, err = c.commitFacts(ctx, x.ID, set)
	}
	if errdefs.IsNotFound(err) {
		return nil // is being made and will take its exit, or has been removed
	}
	if err != nil {
		return err
	}
	c.ends.announce(rec.ID)
	if !fresh {
		return nil
	}
	op.Fault("container.exit", "commit", "after")
	c.publishContainer(rec, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	// Nothing will look at the root file system again; its writable layer stays
	// until the removal, which unmounts once more if this fails.
	if err := c.rootfs.Unmount(ctx, rec.ID, c.rootPath(rec.ID)); err != nil {
		c.cfg.Logger.Warn("cannot unmount the root file system of an ended container", "container", rec.ID, "error", err)
	}
	op.Fault("container.exit", "unmount", "after")
	return nil
}

// Recover finishes or undoes what an earlier daemon left half done and finds
// its containers again. Call it after the sandbox layer's own recovery and
// before serving. Trouble with one container does not stop the others: it is
// part of the error that is returned in the end.
func (s *Service) Recover(ctx context.Context) error {
	c := s.containers
	errs := []error{
		op.Recover(ctx, c.db, c.createVerb(), func() *createState { return &createState{} }),
		op.Recover(ctx, c.db, c.removeVerb(), func() *removeState { return &removeState{} }),
	}
	all := c.db.Containers()
	found := make([]error, len(all))
	var g errgroup.Group
	g.SetLimit(32)
	for i, rec := range all {
		if rec.Facts.Exit != nil {
			continue
		}
		g.Go(func() error {
			if err := c.findAgain(ctx, rec); err != nil {
				found[i] = fmt.Errorf("find container %s again, which goes on in the background: %w", rec.ID, err)
				c.tasks.spawn(func(ctx context.Context) { c.findLater(ctx, rec.ID) })
			}
			return nil
		})
	}
	_ = g.Wait() // no function of the group returns an error
	return errors.Join(append(append(errs, found...), s.Reconcile(ctx))...)
}

// Reconcile takes away what belongs to no known container: shims, processes,
// mounts and directories. It runs in Recover and may run at any time no verb is
// under way.
func (s *Service) Reconcile(ctx context.Context) error {
	c := s.containers
	places := reconcile.Places{
		Bundles: filepath.Join(c.cfg.RunDir, "containers"), States: filepath.Join(c.cfg.StateDir, "containers"),
		Runc: map[string]string{},
	}
	for name, h := range c.cfg.Handlers {
		places.Runc[name] = h.Runtime.Root
	}
	w, err := reconcile.Observe(places, c.db.Ops())
	if err != nil {
		return fmt.Errorf("reconcile containers: %w", err)
	}
	var errs []error
	for _, a := range reconcile.Plan(c.db.Containers(), w) {
		c.cfg.Logger.Warn("reconcile container", "action", string(a.Do), "container", a.ID, "reason", a.Why)
		if err := c.apply(ctx, a, w); err != nil {
			errs = append(errs, fmt.Errorf("reconcile container %s: %s: %w", a.ID, a.Do, err))
		}
	}
	return errors.Join(errs...)
}

func (c *containers) apply(ctx context.Context, a reconcile.Action, w reconcile.World) error {
	if a.Do == reconcile.Unmount {
		return c.rootfs.Unmount(ctx, a.ID, c.rootPath(a.ID))
	}
	h, ok := c.cfg.Handlers[w.Runc[a.ID]]
	if !ok {
		h = c.cfg.Handlers[c.cfg.DefaultHandler]
	}
	// The shim's cleanup runs in the run-time directory.
	if err := os.MkdirAll(c.bundle(a.ID), 0o711); err != nil {
		return err
	}
	if err := c.shim.Delete(ctx, a.ID, h.Runtime); err != nil {
		return err
	}
	if err := c.dropRootFS(ctx, a.ID); err != nil {
		return err
	}
	return c.removeDirectories(a.ID)
}

// findLater goes on looking for a container whose shim gave no answer at the
// start, a frozen one for example, until it answers or the record has ended.
func (c *containers) findLater(ctx context.Context, id string) {
	for pause := c.cfg.Limits.FindWait; ; pause = min(2*pause, findPause) {
		select {
		case <-ctx.Done():
			return
		case <-c.clock.After(pause):
		}
		rec, err := c.db.Container(id)
		if err != nil || rec.Facts.Exit != nil {
			return
		}
		if err = c.findAgain(ctx, rec); err == nil {
			return
		}
		c.cfg.Logger.Warn("cannot find a container again, trying on", "container", id, "error", err)
	}
}

// findAgain brings the record of a container that had not ended up to date. It
// takes no longer than Limits.FindWait: one mute shim must not hold up a node.
func (c *containers) findAgain(ctx context.Context, rec store.Container) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Limits.FindWait)
	defer cancel()
	if rec.Facts.BootID != c.cfg.BootID {
		_, err := c.commitFacts(ctx, rec.ID, func(f *store.ContainerFacts) bool {
			f.Exit = rebootExit(c.clock.Now())
			return true
		})
		return err
	}
	st, err := c.shim.Reconnect(ctx, rec.ID)
	if err != nil {
		return err
	}
	switch st.Phase {
	case shim.PhaseExited:
		x := shim.Exit{ID: rec.ID, Lost: true}
		if st.Exit != nil {
			x = *st.Exit
		}
		return c.recordEnd(ctx, rec, st, x)
	case shim.PhaseGone:
		return c.recordExit(ctx, shim.Exit{ID: rec.ID, Lost: true})
	}
	return c.learn(ctx, rec, st)
}

func (c *containers) recordEnd(ctx context.Context, rec store.Container, st shim.State, x shim.Exit) error {
	if err := c.learn(ctx, rec, st); err != nil {
		return err
	}
	return c.recordExit(ctx, x)
}

// learn takes over what a daemon that died between an act and its commit did
// not write down.
func (c *containers) learn(ctx context.Context, rec store.Container, st shim.State) error {
	_, err := c.commitFacts(ctx, rec.ID, func(f *store.ContainerFacts) bool {
		changed := false
		if st.PID != 0 && f.PID != st.PID {
			f.PID, changed = st.PID, true
		}
		if f.StartedAt.IsZero() && !st.StartedAt.IsZero() {
			f.StartedAt, changed = st.StartedAt, true
		}
		return changed
	})
	return err
}
