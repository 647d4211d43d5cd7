package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/runtimeservice/checkpoint"
	"github.com/berth-dev/berth/runtimeservice/recovery"
	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// commitRetry is the longest pause between two attempts to commit an exit when
// the store refuses, for want of disk space for example.
const commitRetry = 5 * time.Second

// findPause is the longest pause between two attempts to find a container again.
const findPause = time.Minute

// settlePause is the first pause before a sandbox is settled: its lost holder
// should show at once.
const settlePause = 10 * time.Millisecond

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
			// A container may end before its start is committed. A record with an
			// exit is not looked at again, so a daemon that dies now would forget
			// that it ever started.
			if f.StartedAt.IsZero() {
				f.StartedAt = x.StartedAt
			}
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
	if fresh {
		c.plugins.ContainerStopped(ctx, rec) // before those who wait for the end go on
	}
	c.ends.announce(rec.ID)
	if !fresh {
		return nil
	}
	op.Fault("container.exit", "commit", "after")
	c.dropRestored(rec.ID)
	if endedAtOnce(rec.Facts) {
		c.images.Suspect(ctx, rec.Facts.Image.ID)
	}
	// Nothing will look at the root file system again; its writable layer stays
	// until the removal, which unmounts once more if this fails.
	if err := c.unmount(ctx, rec.ID); err != nil {
		c.cfg.Logger.Warn("cannot unmount the root file system of an ended container", "container", rec.ID, "error", err)
	}
	op.Fault("container.exit", "unmount", "after")
	return nil
}

// Recover begins to bring objects into a known state: what an earlier daemon
// left half done, containers whose shims have to be found, and more, of other
// layers. When it returns calls may be served: those on an object wait for the
// first attempt on it. Ends of a former boot that cannot be committed are derived
// until they can.
func (s *Service) Recover(ctx context.Context, more ...recovery.Work) error {
	c := s.containers
	if err := errors.Join(op.Declare(c.createVerb()), op.Declare(c.removeVerb()), op.Declare(c.clearVerb())); err != nil {
		return err
	}
	if err := c.maker.Sweep(); err != nil {
		c.cfg.Logger.Error("files of finished checkpoints are left; remove them by hand", "directory", filepath.Join(c.cfg.StateDir, "checkpoints"), "error", err)
	}
	ops := c.db.UnclaimedOps()
	works := append(more, s.unfinished(ops, false)...)
	if err := c.endBoot(ctx); err != nil {
		c.cfg.Logger.Error("not all ends of the former boot are recorded; that is tried again", "error", err)
		works = append(works, recovery.Work{Kind: "node", Doing: "record the ends of the former boot", Late: true, Run: c.endBootLate})
	}
	for _, rec := range c.db.Containers() {
		// What is undone of a checkpoint says nothing of how its container fares.
		busy := slices.ContainsFunc(ops, func(o store.Op) bool { return o.Subject == rec.ID && o.Kind != checkpoint.Kind })
		if rec.Facts.Exit == nil && rec.Facts.BootID == c.cfg.BootID && !busy {
			works = append(works, c.finding(rec.ID))
		}
	}
	first := c.locks.recovery.Go(works...)
	lost := c.pod.WatchHolders()
	c.tasks.spawn(func(ctx context.Context) { s.follow(ctx, first, lost) })
	return nil
}

// follow reconciles once everything was attempted, and goes on with what verbs
// leave unfinished, and with sandboxes that lose their holder, from then on.
func (s *Service) follow(ctx context.Context, first <-chan struct{}, lost <-chan string) {
	c := s.containers
	reconciling := recovery.Work{Kind: "node", Doing: "reconcile", Run: func(ctx context.Context) error {
		_, err := s.Reconcile(ctx, false)
		return err
	}}
	for _, step := range []func() <-chan struct{}{
		func() <-chan struct{} { return first },
		func() <-chan struct{} { return c.locks.recovery.Go(reconciling) },
	} {
		select {
		case <-step():
		case <-ctx.Done():
			return
		}
	}
	c.locks.recovery.Settle()
	reconciling.Late = true
	for {
		select {
		case <-c.db.Leftovers():
			c.locks.recovery.Go(append(s.unfinished(c.db.UnclaimedOps(), true), reconciling)...)
		case id := <-lost:
			c.locks.recovery.Go(s.pods.settling(id))
		case <-ctx.Done():
			return
		}
	}
}

// Recovery returns the objects that are not in a known state yet, and whether
// each has been attempted once since the start.
func (s *Service) Recovery() (all []recovery.State, settled bool) {
	select {
	case <-s.Settled():
		settled = true
	default:
	}
	return s.containers.locks.recovery.List(), settled
}

// Settled is closed when each object has been attempted once since the start.
func (s *Service) Settled() <-chan struct{} { return s.containers.locks.recovery.Settled() }

// WaitImages waits for the recovery of the image store, which is among the more
// of Recover.
func (s *Service) WaitImages(ctx context.Context) error {
	return s.containers.locks.recovery.Wait(ctx, kindImages, "")
}

// kindImages is the image store, as recovery names it.
const kindImages = "images"

// unfinished turns journal entries into work on their objects. late: calls are
// served already.
func (s *Service) unfinished(ops []store.Op, late bool) (works []recovery.Work) {
	c := s.containers
	for _, o := range ops {
		w := recovery.Work{ID: o.Subject, Doing: "finish or undo " + o.Kind, Late: late, Moot: func() bool {
			return !slices.ContainsFunc(c.db.UnclaimedOps(), func(u store.Op) bool { return u.Kind == o.Kind && u.Subject == o.Subject })
		}}
		if name, ours := sandbox.Unfinished(o); ours {
			w.Kind, w.Name, w.Run = kindSandbox, name, func(ctx context.Context) error { return s.pods.resume(ctx, o.Subject) }
		} else if o.Kind == checkpoint.RestoreKind {
			if rec, err := c.db.Sandbox(o.Subject); err == nil {
				w.Name = store.SandboxName(rec)
			}
			w.Kind, w.Run = kindSandbox, func(ctx context.Context) error { return s.checkpoints.restorer.Recover(ctx, o.Subject) }
		} else if o.Kind == checkpoint.PodKind {
			w.Kind, w.Run = kindSandbox, func(ctx context.Context) error { return c.resumeCheckpoint(ctx, o.Subject) }
		} else if o.Kind == kindCreate || o.Kind == kindClear || o.Kind == kindRemove || o.Kind == checkpoint.Kind {
			w.Kind, w.Run = kindContainer, func(ctx context.Context) error { return c.resume(ctx, o.Subject) }
		} else {
			c.cfg.Logger.Error("a journal entry is of a kind that this version does not know; it is left alone", "kind", o.Kind, "subject", o.Subject)
			continue
		}
		works = append(works, w)
	}
	return works
}

// resume finishes or undoes what the journal has of a sandbox.
func (p *pods) resume(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Limits.CreateTime)
	defer cancel()
	unlock, err := p.locks.lock(ctx, podKey(id))
	if err != nil {
		return err
	}
	defer unlock()
	return p.pod.Resume(ctx, id)
}

// settling is the work on a sandbox that has lost what it needs to run containers.
func (p *pods) settling(id string) recovery.Work {
	return recovery.Work{Kind: kindSandbox, ID: id, Doing: "see what its lost holder means", Late: true, Pause: settlePause,
		Run: func(ctx context.Context) error {
			unlock, err := p.locks.lock(ctx, podKey(id))
			if err != nil {
				return err
			}
			defer unlock()
			return p.pod.Settle(ctx, id)
		}}
}

// resumeCheckpoint undoes what the journal has of a checkpoint of a sandbox.
func (c *containers) resumeCheckpoint(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Limits.CreateTime)
	defer cancel()
	unlock, err := c.locks.lock(ctx, podKey(id))
	if err != nil {
		return err
	}
	defer unlock()
	return c.maker.Recover(ctx, id)
}

// resume finishes or undoes what the journal has of a container.
func (c *containers) resume(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Limits.CreateTime)
	defer cancel()
	unlock, err := c.locks.lock(ctx, containerKey(id))
	if err != nil {
		return err
	}
	defer unlock()
	if err := op.Recover(ctx, c.db, c.createVerb(), id, func() *createState { return &createState{} }); err != nil {
		return err
	}
	if err := c.maker.Recover(ctx, id); err != nil {
		return err
	}
	if err := op.Recover(ctx, c.db, c.clearVerb(), id, func() *clearState { return &clearState{} }); err != nil {
		return err
	}
	// An end that is reported meanwhile would bounce off for ever.
	if !slices.ContainsFunc(c.db.Ops(), func(o store.Op) bool { return o.Kind == kindRemove && o.Subject == id }) {
		return nil
	}
	_, err = c.beginRemoval(ctx, id)
	defer c.ends.setRemoving(id, false)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	existed := err == nil
	if err := op.Recover(ctx, c.db, c.removeVerb(), id, func() *removeState { return &removeState{} }); err != nil {
		return err
	}
	if _, err := c.db.Container(id); existed && errdefs.IsNotFound(err) {
		c.ends.announce(id)
	}
	return nil
}

// finding looks for the shim of a container that had not ended. One that gives
// no answer, being frozen for example, is looked for until it does.
func (c *containers) finding(id string) recovery.Work {
	over := func() bool {
		rec, err := c.db.Container(id)
		return err != nil || rec.Facts.Exit != nil
	}
	return recovery.Work{Kind: kindContainer, ID: id, Doing: "find its shim", Moot: over,
		Pause: c.cfg.Limits.FindWait, MaxPause: max(findPause, c.cfg.Limits.FindWait),
		Run: func(ctx context.Context) error {
			rec, err := c.db.Container(id)
			if err != nil || rec.Facts.Exit != nil {
				return nil // removed or ended meanwhile
			}
			return c.findAgain(ctx, rec)
		}}
}

// findLater has a container found while calls are served: its shim knows what
// could not be recorded.
func (c *containers) findLater(id string) {
	w := c.finding(id)
	w.Late, w.Pause = true, 0
	c.locks.recovery.Go(w)
}

// startPoll is the pause between two looks whether a start has come to its end.
const startPoll = 50 * time.Millisecond

// findAgain brings the record of a container that had not ended up to date. It
// takes no longer than Limits.FindWait: one mute shim must not hold up a node.
// A shim tells a start that is under way as done; it may fail yet, and nobody
// would hear that.
func (c *containers) findAgain(ctx context.Context, rec store.Container) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Limits.FindWait)
	defer cancel()
	st, err := c.shim.Reconnect(ctx, rec.ID)
	for err == nil && starting(st) {
		select {
		case <-time.After(startPoll):
			st, err = c.shim.Reconnect(ctx, rec.ID)
		case <-ctx.Done():
			err = fmt.Errorf("its start is still under way: %w", errdefs.ErrUnavailable)
		}
	}
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
	case shim.PhaseCreated:
		if st.Busy.Command == "restore" {
			c.tasks.spawn(func(ctx context.Context) { c.startAgain(ctx, rec.ID) })
		}
	case shim.PhaseRunning:
		c.dropRestored(rec.ID)
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
