package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/runtimeservice/reconcile"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// Repair is what a reconciliation does about one object.
type Repair struct {
	Kind, ID, Action, Reason string
	Err                      error // nil: it was done, or was only to be said
}

// repairs is how many objects are repaired at the same time.
const repairs = 16

// Reconcile compares records with kernel and disk, and takes away what belongs
// to no known container or sandbox: processes, mounts, namespaces, networks,
// directories. With dry it only says so. It may run beside verbs: what they work
// on is theirs. The error joins those of the repairs; none is left
// out of them.
func (s *Service) Reconcile(ctx context.Context, dry bool) ([]Repair, error) {
	c := s.containers
	unlock, err := c.locks.lock(ctx, "reconcile")
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Containers first: their processes hold on to their sandbox's cgroup.
	var out []Repair
	for _, part := range []func(context.Context, bool) ([]Repair, error){c.reconcile, s.pods.reconcile} {
		done, err := part(ctx, dry)
		if err != nil {
			done = append(done, Repair{Kind: "node", Action: "look", Err: err})
		}
		out = append(out, done...)
	}
	for _, r := range out {
		if r.Err != nil {
			err = errors.Join(err, fmt.Errorf("reconcile %s %s: %s: %w", r.Kind, r.ID, r.Action, r.Err))
		}
	}
	return out, err
}

// each repairs in parallel.
func each(out []Repair, f func(r Repair) error) []Repair {
	var g errgroup.Group
	g.SetLimit(repairs)
	for i := range out {
		g.Go(func() error { out[i].Err = f(out[i]); return nil })
	}
	_ = g.Wait() // no function of the group returns an error
	return out
}

func (p *pods) reconcile(ctx context.Context, dry bool) ([]Repair, error) {
	actions, err := p.pod.Examine(ctx)
	if err != nil {
		return nil, err
	}
	byID := map[string]*Repair{}
	for _, a := range actions {
		if r := byID[a.ID]; r != nil {
			r.Action += ", " + string(a.Do)
			continue
		}
		byID[a.ID] = &Repair{Kind: kindSandbox, ID: a.ID, Action: string(a.Do), Reason: a.Why}
	}
	var out []Repair
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		out = append(out, *byID[id])
	}
	if dry {
		return out, nil
	}
	return each(out, func(r Repair) error {
		unlock, err := p.locks.lock(ctx, podKey(r.ID))
		if err != nil {
			return err
		}
		defer unlock()
		return p.pod.Settle(ctx, r.ID)
	}), nil
}

func (c *containers) reconcile(ctx context.Context, dry bool) ([]Repair, error) {
	places := reconcile.Places{
		Bundles: filepath.Join(c.cfg.RunDir, "containers"), States: filepath.Join(c.cfg.StateDir, "containers"),
		Runc: map[string]string{},
	}
	for name, h := range c.cfg.Handlers {
		places.Runc[name] = h.Runtime.Root
	}
	w, err := reconcile.Observe(places, c.db.Ops)
	if err != nil {
		return nil, fmt.Errorf("reconcile containers: %w", err)
	}
	actions := map[string]reconcile.Action{}
	var out []Repair
	for _, a := range reconcile.Plan(c.db.Containers(), w) {
		actions[a.ID] = a
		out = append(out, Repair{Kind: kindContainer, ID: a.ID, Action: string(a.Do), Reason: a.Why})
	}
	if dry {
		return out, nil
	}
	return each(out, func(r Repair) error { return c.apply(ctx, actions[r.ID], w) }), nil
}

// apply does what was decided, unless a verb has come between.
func (c *containers) apply(ctx context.Context, a reconcile.Action, w reconcile.World) error {
	unlock, err := c.locks.lock(ctx, containerKey(a.ID))
	if err != nil {
		return err
	}
	defer unlock()
	_, err = c.db.Container(a.ID)
	if slices.ContainsFunc(c.db.Ops(), func(o store.Op) bool { return o.Subject == a.ID }) || errdefs.IsNotFound(err) != (a.Do == reconcile.Remove) {
		return nil
	}
	c.cfg.Logger.Warn("reconcile container", "action", string(a.Do), "container", a.ID, "reason", a.Why)
	return observe.Do(ctx, observe.Work{Kind: observe.Repair, Name: "container: " + string(a.Do), Object: a.ID}, func(ctx context.Context) error {
		return c.repair(ctx, a, w)
	})
}

func (c *containers) repair(ctx context.Context, a reconcile.Action, w reconcile.World) error {
	if a.Do == reconcile.Unmount {
		return c.unmount(ctx, a.ID)
	}
	h, ok := c.cfg.Handlers[w.Runc[a.ID]]
	if !ok {
		h = c.cfg.Handlers[c.cfg.DefaultHandler]
	}
	// The shim's cleanup runs in the run-time directory.
	if err := os.MkdirAll(c.bundle(a.ID), 0o711); err != nil {
		return err
	}
	op.Fault("container.reconcile", "shim", "before")
	if err := c.shim.Delete(ctx, a.ID, h.Runtime); err != nil {
		return err
	}
	op.Fault("container.reconcile", "shim", "after")
	if err := c.dropRootFS(ctx, a.ID); err != nil {
		return err
	}
	return c.removeDirectories(a.ID)
}

// clearState is the journal's payload of a start that has failed.
type clearState struct {
	ID      string
	Runtime shim.Runtime
	Exit    store.Exit
}

// clearVerb lists the steps after a start that has failed. A crash resumes them:
// a record with an exit is not looked at again, and its shim would stay.
func (c *containers) clearVerb() op.Verb[*clearState] {
	return op.Verb[*clearState]{
		Kind:    kindClear,
		OnCrash: op.Resume,
		Steps: []op.Step[*clearState]{
			{Name: "record", Do: c.recordStartError},
			{Name: "shim", Do: func(ctx context.Context, s *clearState) error {
				return c.shim.Delete(ctx, s.ID, s.Runtime)
			}},
			{Name: "unmount", Do: func(ctx context.Context, s *clearState) error {
				c.dropRestored(s.ID)
				return c.unmount(ctx, s.ID)
			}},
		},
	}
}

func (c *containers) recordStartError(ctx context.Context, s *clearState) error {
	fresh := false
	rec, err := c.commitFacts(ctx, s.ID, func(f *store.ContainerFacts) bool {
		if fresh = f.Exit == nil; fresh {
			x := s.Exit
			f.Exit = &x
		}
		return fresh
	})
	if errdefs.IsNotFound(err) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	if fresh {
		c.plugins.ContainerStopped(ctx, rec)
	}
	c.ends.announce(rec.ID)
	return nil
}
