package runtimeservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// StartContainer starts a created container. A start that fails leaves the
// container exited, with reason StartError.
func (c *containers) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	rec, err := c.container(ctx, r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("start container %q: %w", r.GetContainerId(), err)
	}
	unlockPod, err := c.locks.rlock(ctx, podKey(rec.SandboxID))
	if err != nil {
		return nil, fmt.Errorf("start container %s: %w", rec.ID, err)
	}
	defer unlockPod()
	unlock, err := c.locks.lock(ctx, containerKey(rec.ID))
	if err != nil {
		return nil, fmt.Errorf("start container %s: %w", rec.ID, err)
	}
	defer unlock()
	if err := c.start(ctx, rec.ID); err != nil {
		return nil, fmt.Errorf("start container %s: %w", rec.ID, err)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// start runs under the container's lock. A start that has begun is not left
// when the client goes away: half started is no state.
func (c *containers) start(ctx context.Context, id string) error {
	// What an earlier start has left to clear away must not hit this one's container.
	if err := op.Recover(ctx, c.db, c.clearVerb(), id, func() *clearState { return &clearState{} }); err != nil {
		return err
	}
	rec, err := c.db.Container(id)
	if err != nil {
		return err
	}
	pod, err := c.db.Sandbox(rec.SandboxID)
	if err != nil {
		return err
	}
	if err := canStart(rec, pod, c.cfg.BootID); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Limits.CreateTime)
	defer cancel()
	return observe.Do(ctx, observe.Work{Kind: observe.Verb, Name: "container.start", Object: id, Pod: rec.SandboxID},
		func(ctx context.Context) error { return c.startNow(ctx, rec) })
}

func (c *containers) startNow(ctx context.Context, rec store.Container) error {
	id := rec.ID
	if err := c.plugins.StartContainer(ctx, rec); err != nil {
		return errors.Join(err, c.startFailed(ctx, rec, err))
	}
	op.Fault("container.start", "shim", "before")
	started, err := c.startShim(ctx, id)
	if err = c.whyNotRestored(id, endedMeanwhile(err)); err != nil {
		c.suspect(ctx, rec, err)
		return errors.Join(err, c.startFailed(ctx, rec, err))
	}
	op.Fault("container.start", "shim", "after")
	rec, err = c.commitFacts(ctx, id, func(f *store.ContainerFacts) bool {
		f.StartedAt, f.PID = started.At, started.PID
		return true
	})
	if err != nil {
		c.findLater(id) // it runs
		return err
	}
	op.Fault("container.start", "commit", "after")
	c.dropRestored(id)
	c.plugins.ContainerStarted(ctx, rec)
	return nil
}

// startShim starts a container, or finds that it was: for a daemon that did not
// live to write that down, or could not. One that is still under way may fail yet.
func (c *containers) startShim(ctx context.Context, id string) (shim.Started, error) {
	started, err := c.shim.Start(ctx, id)
	if errdefs.IsFailedPrecondition(err) {
		if st, e := c.shim.State(ctx, id); e == nil && st.Phase == shim.PhaseRunning {
			if starting(st) {
				return started, fmt.Errorf("an earlier start is still under way, repeat the call: %w", errdefs.ErrUnavailable)
			}
			return shim.Started{At: st.StartedAt, PID: st.PID}, nil
		}
	}
	return started, err
}

// startAgain waits for the restoring of a container that an earlier daemon had
// begun, and records what comes of it.
func (c *containers) startAgain(ctx context.Context, id string) {
	unlock, err := c.locks.lock(ctx, containerKey(id))
	if err != nil {
		return
	}
	defer unlock()
	if err := c.start(ctx, id); err != nil {
		c.cfg.Logger.Warn("a container whose restoring went on is not started", "container", id, "error", err)
	}
}

// startFailed records why, and clears away what did not start: what of that
// fails is tried again by recovery. It runs even when the time for the start is
// over.
//
// A start whose shim can't be asked any more has not failed: either this
// daemon is ending and the next one learns from the shim what came of it, or
// the shim died and its end is on its way.
func (c *containers) startFailed(ctx context.Context, rec store.Container, cause error) error {
	if errdefs.IsUnavailable(cause) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Limits.CreateTime)
	defer cancel()
	st := &clearState{ID: rec.ID, Runtime: c.runtimeOf(rec), Exit: *startErrorExit(cause, c.clock.Now())}
	return op.Run(ctx, c.db, c.clearVerb(), rec.ID, st)
}

// RemoveContainer removes a container, by force when it runs. An unknown
// container is no error. The log file stays: it is the client's.
func (c *containers) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	rec, err := c.container(ctx, r.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove container %q: %w", r.GetContainerId(), err)
	}
	if err := c.remove(ctx, rec.ID); err != nil {
		return nil, fmt.Errorf("remove container %s: %w", rec.ID, err)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// removeState is the journal's payload of a removal.
type removeState struct {
	ID      string
	Runtime shim.Runtime
}

func (c *containers) remove(ctx context.Context, id string) error {
	if err := c.locks.recovery.Wait(ctx, kindContainer, id); err != nil {
		return err
	}
	unlock, err := c.locks.lock(ctx, containerKey(id))
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := c.db.Container(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.stop(ctx, rec, 0); err != nil {
		return err
	}
	if rec, err = c.beginRemoval(ctx, id); err != nil {
		return err
	}
	defer c.ends.setRemoving(id, false)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Limits.CreateTime)
	defer cancel()
	c.plugins.RemoveContainer(ctx, rec)
	if err := op.Run(ctx, c.db, c.removeVerb(), id, &removeState{ID: id, Runtime: c.runtimeOf(rec)}); err != nil {
		return err
	}
	c.ends.announce(id)
	c.stops.forget(id)
	return nil
}

// beginRemoval makes late facts bounce off the record, and returns it as last
// committed.
func (c *containers) beginRemoval(ctx context.Context, id string) (store.Container, error) {
	return c.commitFacts(ctx, id, func(*store.ContainerFacts) bool {
		c.ends.setRemoving(id, true)
		return false
	})
}

// removeVerb lists the steps that remove a container. A crash resumes them: all
// may be repeated.
func (c *containers) removeVerb() op.Verb[*removeState] {
	return op.Verb[*removeState]{
		Kind:    kindRemove,
		OnCrash: op.Resume,
		Steps: []op.Step[*removeState]{
			{Name: "shim", Do: func(ctx context.Context, s *removeState) error {
				return c.shim.Delete(ctx, s.ID, s.Runtime)
			}},
			{Name: "rootfs", Do: func(ctx context.Context, s *removeState) error {
				return c.dropRootFS(ctx, s.ID)
			}},
			{Name: "directories", Done: func(_ context.Context, s *removeState) (bool, error) {
				return c.directoriesGone(s.ID)
			}, Do: func(_ context.Context, s *removeState) error { return c.removeDirectories(s.ID) }},
		},
		Commit: func(s *removeState) store.Change {
			change := store.Change{DeleteContainers: []string{s.ID}}
			for _, o := range c.db.Ops() {
				if o.Kind == kindClear && o.Subject == s.ID {
					change.EndOps = append(change.EndOps, o.ID) // nothing is left to clear away
				}
			}
			return change
		},
	}
}

func (c *containers) directoriesGone(id string) (bool, error) {
	for _, p := range []string{c.bundle(id), c.stateDir(id)} {
		if _, err := os.Lstat(p); err == nil {
			return false, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("look for %s: %w", p, err)
		}
	}
	return true, nil
}

// makeLogDirectory comes before a log is opened, and waits until nobody removes
// one: whoever does so afterwards knows of this creation from the journal.
func (c *containers) makeLogDirectory(path string) error {
	if path == "" {
		return nil
	}
	c.emptyLogs.Lock()
	defer c.emptyLogs.Unlock()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	return nil
}

// removeEmptyLog removes the log that a container which was never made has not
// written to: it would stay for ever, since no container of the client's has it.
// The client may have asked again meanwhile; then the log is the new one's.
func (c *containers) removeEmptyLog(id, path string) error {
	if path == "" {
		return nil
	}
	c.emptyLogs.Lock()
	defer c.emptyLogs.Unlock()
	if c.logOfAnother(id, path) {
		return nil
	}
	st, err := os.Lstat(path)
	if err == nil && st.Mode().IsRegular() && st.Size() == 0 {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("remove empty log: %w", err)
	}
	return nil
}

// logOfAnother reports whether another container, or one that is being made,
// logs there. The journal comes first: its entry ends with the record's start.
func (c *containers) logOfAnother(id, path string) bool {
	for _, o := range c.db.Ops() {
		if o.Kind != kindCreate || o.Subject == id {
			continue
		}
		var s createState
		if json.Unmarshal(o.Payload, &s) == nil && s.LogPath == path {
			return true
		}
	}
	for _, r := range c.db.Containers() {
		if r.ID != id && r.Facts.LogPath == path {
			return true
		}
	}
	return false
}

// endBoot commits the ends of all that did not outlive a boot, at once and
// without asking any shim.
func (c *containers) endBoot(ctx context.Context) error {
	var change store.Change
	var unread error
	for _, rec := range c.db.Containers() {
		if rec.Facts.Exit != nil || rec.Facts.BootID == c.cfg.BootID {
			continue
		}
		if err := c.endWithBoot(rec.ID, &rec.Facts); err != nil {
			unread = errors.Join(unread, err)
			continue
		}
		change.PutContainers = append(change.PutContainers, rec)
	}
	for _, rec := range c.db.Sandboxes() {
		if rec.Facts.StoppedAt.IsZero() && rec.Facts.BootID != c.cfg.BootID {
			rec.Facts.StoppedAt = c.clock.Now()
			change.PutSandboxes = append(change.PutSandboxes, rec)
		}
	}
	if len(change.PutContainers)+len(change.PutSandboxes) == 0 {
		return unread
	}
	if err := c.db.Commit(ctx, change); err != nil {
		return errors.Join(unread, fmt.Errorf("commit that the node was restarted: %w", err))
	}
	return unread
}

// endBootLate commits, one by one beside the calls that are served, the ends that
// endBoot could not. Sandboxes are left to the comparison with the kernel.
func (c *containers) endBootLate(ctx context.Context) error {
	var errs []error
	for _, rec := range c.db.Containers() {
		if rec.Facts.Exit != nil || rec.Facts.BootID == c.cfg.BootID {
			continue
		}
		var unread error
		_, err := c.commitFacts(ctx, rec.ID, func(f *store.ContainerFacts) bool {
			if f.Exit == nil {
				unread = c.endWithBoot(rec.ID, f)
			}
			return f.Exit != nil
		})
		if errdefs.IsNotFound(err) {
			err = nil // removed meanwhile
		}
		errs = append(errs, unread, err)
	}
	return errors.Join(errs...)
}

// endWithBoot fills in the end of a container of a former boot. One that had
// ended by itself left its record; when that cannot be read, a later look may
// know better than that it was the reboot.
func (c *containers) endWithBoot(id string, f *store.ContainerFacts) error {
	x, ok, err := c.shim.LastExit(id)
	if err != nil {
		return fmt.Errorf("learn the end of container %s: %w", id, err)
	}
	if !ok {
		f.Exit = rebootExit(endOfBoot(*f, c.clock.Now()))
		return nil
	}
	f.Exit = exitFacts(x, c.clock.Now())
	if f.StartedAt.IsZero() {
		f.StartedAt = x.StartedAt
	}
	return nil
}
