// Package op runs a verb as named steps that are journaled before the first
// one acts, and undoes or resumes what a crash left half done.
package op

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/store"
)

// Step is one named action of a verb on its state S.
//
// Done asks the world, not a stored flag, whether the step's effect is there.
// Undo must tolerate that Do never ran or ran half. Do is required; without
// Undo there is nothing to undo, without Done the step is never taken as done,
// so that Do must tolerate running again.
type Step[S any] struct {
	Name string
	Do   func(ctx context.Context, s S) error
	Undo func(ctx context.Context, s S) error
	Done func(ctx context.Context, s S) (bool, error)
}

// Policy says what becomes of a verb that an error or a crash interrupted.
type Policy int

const (
	// Rollback undoes all steps, last first.
	Rollback Policy = iota
	// Resume runs the steps that are not Done, then commits. For verbs whose
	// steps take something away: there is no way back, only on.
	Resume
)

// Verb is the plan of a multi-step verb. S must survive encoding/json: it is
// the journal's payload. It is journaled once, before the first step: what
// steps add to it later is not there after a crash, and Undo and Done must
// find their objects without it.
type Verb[S any] struct {
	Kind    string
	OnCrash Policy
	Steps   []Step[S]
	// Commit returns the change that makes the verb's outcome durable; the
	// runner adds the end of the journal entry to it. nil: nothing to commit.
	Commit func(s S) store.Change
}

// Journal is what the runner needs of the store.
type Journal interface {
	BeginOp(ctx context.Context, o store.Op) error
	Commit(ctx context.Context, c store.Change) error
	Ops() []store.Op
}

// Claimer is implemented by journals that know which entries are being worked
// on; store.DB is one. With it Recover leaves running verbs alone.
type Claimer interface {
	// ClaimOp reports whether the caller now owns the entry. BeginOp claims too.
	ClaimOp(id string) bool
	ReleaseOp(id string)
}

func (v Verb[S]) validate() error {
	if v.Kind == "" {
		return fmt.Errorf("verb has no kind: %w", errdefs.ErrInvalidArgument)
	}
	seen := map[string]bool{}
	for _, st := range v.Steps {
		if st.Name == "" || st.Do == nil || seen[st.Name] {
			return fmt.Errorf("verb %s: step %q needs a name of its own and a Do: %w", v.Kind, st.Name, errdefs.ErrInvalidArgument)
		}
		seen[st.Name] = true
	}
	return nil
}

// points names the verb's fault points, as Fault has them.
func (v Verb[S]) points() []string {
	out := []string{v.Kind + "/journal/after"}
	for _, st := range v.Steps {
		out = append(out, v.Kind+"/"+st.Name+"/before", v.Kind+"/"+st.Name+"/after")
		if v.OnCrash == Rollback && st.Undo != nil {
			out = append(out, v.Kind+"/"+st.Name+"/undo-before", v.Kind+"/"+st.Name+"/undo-after")
		}
	}
	return append(out, v.Kind+"/commit/before", v.Kind+"/commit/after")
}

func (v Verb[S]) change(s S, opID string) store.Change {
	var c store.Change
	if v.Commit != nil {
		c = v.Commit(s)
	}
	c.EndOps = append(append([]string(nil), c.EndOps...), opID)
	return c
}

func claim(j Journal, id string) bool {
	if c, ok := j.(Claimer); ok {
		return c.ClaimOp(id)
	}
	return true
}

func release(j Journal, id string) {
	if c, ok := j.(Claimer); ok {
		c.ReleaseOp(id)
	}
}
