// Package op runs a verb as named steps that are journaled before the first
// one acts, and undoes or resumes what a crash left half done.
package op

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/store"
)

// Step is one named action of a verb on its state S.
//
// Done asks the world, not a stored flag, whether the step's effect is there.
// Undo must tolerate that Do never ran or ran half.
type Step[S any] struct {
	Name string
	Do   func(ctx context.Context, s S) error
	Undo func(ctx context.Context, s S) error
	Done func(ctx context.Context, s S) (bool, error)
}

// Policy says what recovery does with a verb that a crash interrupted.
type Policy int

const (
	Rollback Policy = iota // undo all steps, last first
	Resume                 // run the steps that are not Done, then commit
)

// Verb is the plan of a multi-step verb. S must survive encoding/json: it is
// the journal's payload.
type Verb[S any] struct {
	Kind    string
	OnCrash Policy
	Steps   []Step[S]
	// Commit returns the change that makes the verb's outcome durable; the
	// runner adds the end of the journal entry to it.
	Commit func(s S) store.Change
}

// Journal is what the runner needs of the store.
type Journal interface {
	BeginOp(ctx context.Context, o store.Op) error
	Commit(ctx context.Context, c store.Change) error
	Ops() []store.Op
}

// Run journals the verb on the subject, runs its steps and commits. On an
// error of a Rollback verb every step is undone, last first, with a context
// that the caller's cancellation does not reach; if an Undo fails too, the
// journal entry stays and Recover tries again.
func Run[S any](ctx context.Context, j Journal, v Verb[S], subject string, s S) error {
	return errdefs.ErrNotImplemented
}

// Recover finishes or undoes every journal entry of the verb's kind.
// newState returns an empty S to decode the payload into.
func Recover[S any](ctx context.Context, j Journal, v Verb[S], newState func() S) error {
	return errdefs.ErrNotImplemented
}
