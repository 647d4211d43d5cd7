package op

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/store"
)

// Recover finishes or undoes the journal entries that the verb's kind has of a
// subject: a Rollback verb is undone, a Resume verb runs the steps that are not
// Done and commits. Entries that fail stay for the next call; their errors come
// back joined, after all others were tried. newState returns an empty S to decode
// the payload into.
//
// The caller holds the lock that keeps other verbs off the subject. Entries that a
// running verb has claimed are left alone (see Claimer).
func Recover[S any](ctx context.Context, j Journal, v Verb[S], subject string, newState func() S) error {
	if err := v.validate(); err != nil {
		return err
	}
	var errs []error
	for _, o := range j.Ops() {
		if o.Kind != v.Kind || o.Subject != subject {
			continue
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := recoverOne(ctx, j, v, newState(), o); err != nil {
			errs = append(errs, fmt.Errorf("recover %s %s: %w", o.Kind, o.Subject, err))
		}
	}
	return errors.Join(errs...)
}

// Declare checks the verb, and tells crash tests which fault points it has. Call
// it at a start, whether or not there is anything to recover.
func Declare[S any](v Verb[S]) error {
	if err := v.validate(); err != nil {
		return err
	}
	declare(v.points())
	return nil
}

func recoverOne[S any](ctx context.Context, j Journal, v Verb[S], s S, o store.Op) error {
	if !claim(j, o.ID) {
		return nil // a running verb works on it, or has just ended it
	}
	defer release(j, o.ID)
	// &s serves both a pointer S, which is decoded into what it points to,
	// and a plain one.
	if err := json.Unmarshal(o.Payload, &s); err != nil {
		return fmt.Errorf("decode journal entry %s: %w", o.ID, err)
	}
	return observe.Do(ctx, observe.Work{Kind: observe.Recovery, Name: v.Kind, Object: o.Subject}, func(ctx context.Context) error {
		if v.OnCrash == Resume {
			return resume(ctx, j, v, o.ID, s)
		}
		return rollback(ctx, j, v, o.ID, s)
	})
}
