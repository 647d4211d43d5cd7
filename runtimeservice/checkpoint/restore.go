package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// RestoreKind is the journal's name for the restoring of a pod.
const RestoreKind = "sandbox.restore"

// Pods are the verbs that the restoring of a pod consists of.
type Pods interface {
	// Run makes the sandbox, with the checkpoint's shared memory.
	Run(ctx context.Context, rec store.Sandbox, from *Source) error
	// Create makes a container whose start restores its processes.
	Create(ctx context.Context, rec store.Container, from *Source) error
	// Remove removes the sandbox with its containers and what is half made of
	// them. Idempotent.
	Remove(ctx context.Context, id string, containers []string) error
}

// Restorer restores pods.
type Restorer struct {
	pods    Pods
	journal op.Journal
}

// NewRestorer returns one.
func NewRestorer(pods Pods, journal op.Journal) *Restorer {
	return &Restorer{pods: pods, journal: journal}
}

// restoreState is the journal's payload.
type restoreState struct {
	ID         string   // of the sandbox
	Containers []string // IDs
	pod        store.Sandbox
	containers []store.Container
	from       *Source
}

// Restore makes a pod of a checkpoint whose containers are created and not
// started. When it fails, also because ctx ends, nothing is left.
func (r *Restorer) Restore(ctx context.Context, from *Source, pod store.Sandbox, containers []store.Container) error {
	s := &restoreState{ID: pod.ID, pod: pod, containers: containers, from: from}
	for _, c := range containers {
		s.Containers = append(s.Containers, c.ID)
	}
	return op.Run(ctx, r.journal, r.verb(), pod.ID, s)
}

// Recover removes what a restoring has left half done.
func (r *Restorer) Recover(ctx context.Context, id string) error {
	return op.Recover(ctx, r.journal, r.verb(), id, func() *restoreState { return &restoreState{} })
}

// verb is made of verbs, which have entries of their own in the journal. It is
// not declared to crash tests, as is the case for checkpoints.
func (r *Restorer) verb() op.Verb[*restoreState] {
	return op.Verb[*restoreState]{
		Kind:    RestoreKind,
		OnCrash: op.Rollback,
		Steps: []op.Step[*restoreState]{
			{
				Name: "sandbox",
				Do:   func(ctx context.Context, s *restoreState) error { return r.pods.Run(ctx, s.pod, s.from) },
				Undo: func(ctx context.Context, s *restoreState) error { return r.pods.Remove(ctx, s.ID, s.Containers) },
			},
			{
				Name: "containers",
				Do: func(ctx context.Context, s *restoreState) error {
					for _, c := range s.containers {
						if err := ctx.Err(); err != nil {
							return err
						}
						if err := r.pods.Create(ctx, c, s.from); err != nil {
							return errors.Join(ctx.Err(), fmt.Errorf("container %s: %w", c.Config.GetMetadata().GetName(), err))
						}
					}
					return ctx.Err() // nobody would hear of the pod
				},
			},
		},
	}
}
