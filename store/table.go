package store

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// table is one kind of object in memory: found by ID, listed oldest first.
// Entries are never changed in place, so a list taken earlier stays true.
type table[T any] struct {
	kind    string
	id      func(T) string
	created func(T) time.Time
	byID    map[string]*T
	order   []*T // by creation, then ID
}

func newTable[T any](kind string, id func(T) string, created func(T) time.Time) table[T] {
	return table[T]{kind: kind, id: id, created: created, byID: map[string]*T{}}
}

func (t *table[T]) compare(a, b *T) int {
	if c := t.created(*a).Compare(t.created(*b)); c != 0 {
		return c
	}
	return strings.Compare(t.id(*a), t.id(*b))
}

// put adds or replaces an entry. New objects are the youngest, so that the
// usual insertion is an append.
func (t *table[T]) put(v T) {
	id := t.id(v)
	if old, ok := t.byID[id]; ok {
		if i, found := slices.BinarySearchFunc(t.order, old, t.compare); found && t.compare(old, &v) == 0 {
			t.order[i] = &v
			t.byID[id] = &v
			return
		}
		t.delete(id)
	}
	i, _ := slices.BinarySearchFunc(t.order, &v, t.compare)
	t.order = slices.Insert(t.order, i, &v)
	t.byID[id] = &v
}

func (t *table[T]) delete(id string) {
	old, ok := t.byID[id]
	if !ok {
		return
	}
	delete(t.byID, id)
	if i, found := slices.BinarySearchFunc(t.order, old, t.compare); found {
		t.order = slices.Delete(t.order, i, i+1)
	}
}

// list returns the records in a slice of the caller's own. What the records
// point to is shared and must not be modified.
func (t *table[T]) list() []T {
	out := make([]T, len(t.order))
	for i, p := range t.order {
		out[i] = *p
	}
	return out
}

// find looks an object up by its full ID or a unique prefix of it. The full
// IDs begin with fixed, which the query may leave out.
func (t *table[T]) find(query, fixed string) (T, error) {
	var none T
	bare := strings.TrimPrefix(query, fixed)
	if bare == "" {
		return none, fmt.Errorf("%s ID is empty: %w", t.kind, errdefs.ErrInvalidArgument)
	}
	full := fixed + bare
	for _, id := range []string{query, full} {
		if v, ok := t.byID[id]; ok {
			return *v, nil
		}
	}
	var hit *T
	for id, v := range t.byID {
		if !strings.HasPrefix(id, full) {
			continue
		}
		if hit != nil {
			return none, fmt.Errorf("%s ID %q is ambiguous, give more digits: %w", t.kind, query, errdefs.ErrInvalidArgument)
		}
		hit = v
	}
	if hit == nil {
		return none, fmt.Errorf("%s %q: %w", t.kind, query, errdefs.ErrNotFound)
	}
	return *hit, nil
}
