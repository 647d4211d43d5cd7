package observe

import (
	"context"
	"errors"
	"slices"
	"testing"
)

type recorder struct {
	name string
	log  *[]string
}

type mark struct{ name string }

func (r recorder) Begin(ctx context.Context, w Work) (context.Context, End) {
	*r.log = append(*r.log, r.name+" begins "+w.Name)
	return context.WithValue(ctx, mark{r.name}, w.Name), func(err error) {
		*r.log = append(*r.log, r.name+" ends "+w.Name)
		if err != nil {
			*r.log = append(*r.log, err.Error())
		}
	}
}

func TestNobodyListens(t *testing.T) {
	ctx, end := Begin(t.Context(), Work{Name: "x"})
	end(nil)
	if ctx != t.Context() || With(ctx, nil) != ctx {
		t.Error("a context without observer has changed")
	}
}

func TestJoin(t *testing.T) {
	var log []string
	ctx := With(t.Context(), Join(recorder{"a", &log}, recorder{"b", &log}))
	err := Do(ctx, Work{Name: "w"}, func(ctx context.Context) error {
		if ctx.Value(mark{"a"}) != "w" || ctx.Value(mark{"b"}) != "w" {
			t.Error("what the observers put into the context is not there")
		}
		return errors.New("failed")
	})
	want := []string{"a begins w", "b begins w", "b ends w", "failed", "a ends w", "failed"}
	if err == nil || !slices.Equal(log, want) {
		t.Errorf("%v: %v", err, log)
	}
}

func TestDetached(t *testing.T) {
	var log []string
	call, hangUp := context.WithCancel(With(t.Context(), recorder{"a", &log}))
	life, end := context.WithCancel(context.Background())
	ctx, stop := context.WithCancel(Detached(life, call))
	defer stop()
	hangUp()
	if ctx.Err() != nil {
		t.Error("the client's end reaches detached work")
	}
	_, done := Begin(ctx, Work{Name: "w"})
	done(nil)
	if len(log) != 2 {
		t.Error("detached work is not observed:", log)
	}
	end()
	<-ctx.Done()
}
