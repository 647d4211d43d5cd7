package op

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/store"
)

// undoTimeout bounds the undoing of one verb. The caller's deadline does not:
// it may have passed already, and is often the reason for the undoing.
const undoTimeout = 2 * time.Minute

// Run journals the verb on the subject, runs its steps and commits.
//
// On an error of a Rollback verb every step is undone, last first, with a
// context that the caller's cancellation does not reach. The first Undo that
// fails ends that, because later ones may remove what it still needs; the
// journal entry stays and Recover tries again. On an error of a Resume verb
// nothing is undone, the entry stays, and Recover or the next Run of the same
// kind and subject goes on.
//
// The caller's cancellation is looked at before each step; once all steps have
// run the outcome is committed. Verbs on one subject must not run at the same
// time, which is the caller's care.
//
// The context's observer hears of the verb, of each step and its undoing, and
// of the steps "journal" and "commit" for the runner's own writes.
func Run[S any](ctx context.Context, j Journal, v Verb[S], subject string, s S) error {
	if err := v.validate(); err != nil {
		return err
	}
	return observe.Do(ctx, observe.Work{Kind: observe.Verb, Name: v.Kind, Object: subject}, func(ctx context.Context) error {
		return run(ctx, j, v, subject, s)
	})
}

func run[S any](ctx context.Context, j Journal, v Verb[S], subject string, s S) error {
	var id string
	err := v.observed(ctx, observe.Step, "journal", func(ctx context.Context) (err error) {
		id, err = begin(ctx, j, v, subject, s)
		return err
	})
	if err != nil {
		return fmt.Errorf("journal %s %s: %w", v.Kind, subject, err)
	}
	defer release(j, id)
	Fault(v.Kind, "journal", "after")
	if v.OnCrash == Resume {
		return resume(ctx, j, v, id, s)
	}
	err = doAll(ctx, v, s)
	if err == nil {
		err = commit(ctx, j, v, id, s)
	}
	if err == nil {
		return nil
	}
	if undoErr := rollback(ctx, j, v, id, s); undoErr != nil {
		return errors.Join(err, fmt.Errorf("undo %s %s, to be tried again: %w", v.Kind, subject, undoErr))
	}
	return err
}

// begin writes the journal entry. A Resume verb that failed before has one
// already: it is taken over, so that repeated failures do not pile up entries.
func begin[S any](ctx context.Context, j Journal, v Verb[S], subject string, s S) (string, error) {
	if v.OnCrash == Resume {
		for _, o := range j.Ops() {
			if o.Kind == v.Kind && o.Subject == subject && claim(j, o.ID) {
				return o.ID, nil
			}
		}
	}
	payload, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("encode state: %w", err)
	}
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails, as crypto/rand documents
	o := store.Op{
		ID:        hex.EncodeToString(raw),
		Kind:      v.Kind,
		Subject:   subject,
		Payload:   payload,
		StartedAt: time.Now().UTC(),
	}
	return o.ID, j.BeginOp(ctx, o)
}

func doAll[S any](ctx context.Context, v Verb[S], s S) error {
	for _, st := range v.Steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("step %s: %w", st.Name, err)
		}
		if err := do(ctx, v, st, s); err != nil {
			return err
		}
	}
	return nil
}

func do[S any](ctx context.Context, v Verb[S], st Step[S], s S) error {
	Fault(v.Kind, st.Name, "before")
	if err := v.observed(ctx, observe.Step, st.Name, func(ctx context.Context) error { return st.Do(ctx, s) }); err != nil {
		return fmt.Errorf("step %s: %w", st.Name, err)
	}
	Fault(v.Kind, st.Name, "after")
	return nil
}

func (v Verb[S]) observed(ctx context.Context, kind observe.Kind, step string, f func(context.Context) error) error {
	return observe.Do(ctx, observe.Work{Kind: kind, Verb: v.Kind, Name: step}, f)
}

// resume runs the steps that are not done, then commits.
func resume[S any](ctx context.Context, j Journal, v Verb[S], id string, s S) error {
	for _, st := range v.Steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("step %s: %w", st.Name, err)
		}
		done, err := isDone(ctx, st, s)
		if err != nil {
			return fmt.Errorf("step %s: %w", st.Name, err)
		}
		if done {
			continue
		}
		if err := do(ctx, v, st, s); err != nil {
			return err
		}
	}
	return commit(ctx, j, v, id, s)
}

func isDone[S any](ctx context.Context, st Step[S], s S) (bool, error) {
	if st.Done == nil {
		return false, nil
	}
	return st.Done(ctx, s)
}

func commit[S any](ctx context.Context, j Journal, v Verb[S], id string, s S) error {
	Fault(v.Kind, "commit", "before")
	err := v.observed(context.WithoutCancel(ctx), observe.Step, "commit", func(ctx context.Context) error {
		return j.Commit(ctx, v.change(s, id))
	})
	if err != nil {
		return fmt.Errorf("commit %s: %w", v.Kind, err)
	}
	Fault(v.Kind, "commit", "after")
	return nil
}

// rollback undoes all steps, last first, and ends the journal entry.
func rollback[S any](ctx context.Context, j Journal, v Verb[S], id string, s S) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for i := len(v.Steps) - 1; i >= 0; i-- {
		st := v.Steps[i]
		if st.Undo == nil {
			continue
		}
		Fault(v.Kind, st.Name, "undo-before")
		if err := v.observed(ctx, observe.Undo, st.Name, func(ctx context.Context) error { return st.Undo(ctx, s) }); err != nil {
			return fmt.Errorf("undo step %s: %w", st.Name, err)
		}
		Fault(v.Kind, st.Name, "undo-after")
	}
	if err := j.Commit(context.WithoutCancel(ctx), store.Change{EndOps: []string{id}}); err != nil {
		return fmt.Errorf("end journal entry: %w", err)
	}
	return nil
}
