package timeline

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/observe"
)

func recorder(pods int) *Recorder {
	return New(Config{Pods: pods,
		PodOf: func(w observe.Work) string {
			if w.Pod == "" && strings.HasPrefix(w.Name, "sandbox.") {
				return w.Object
			}
			return w.Pod
		},
		NameOf: func(id string) (string, string) { return "ns", "name-" + id }})
}

func any(string, string, string) bool { return true }

func work(ctx context.Context, k observe.Kind, name, pod string, inner ...func(context.Context) error) error {
	return observe.Do(ctx, observe.Work{Kind: k, Name: name, Object: pod}, func(ctx context.Context) error {
		for _, f := range inner {
			if err := f(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

func transcript(p Pod) string {
	var b strings.Builder
	for _, s := range p.Spans {
		fmt.Fprintf(&b, "%s%s", strings.Repeat("  ", s.Depth), s.Work.Name)
		if s.Running {
			b.WriteString(" ...")
		}
		if s.Error != "" {
			b.WriteString(" (" + s.Error + ")")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestTimelineOfAPod(t *testing.T) {
	r := recorder(4)
	ctx := observe.With(t.Context(), r)
	_ = work(ctx, observe.Call, "RunPodSandbox", "", func(ctx context.Context) error {
		return work(ctx, observe.Verb, "sandbox.run", "p", func(ctx context.Context) error {
			return work(ctx, observe.Step, "network", "", func(context.Context) error { return errors.New("no route") })
		})
	})
	_ = work(ctx, observe.Call, "ListPodSandbox", "")
	_ = work(ctx, observe.Call, "ExecSync", "", func(ctx context.Context) error {
		return observe.Do(ctx, observe.Work{Kind: observe.Exec, Pod: "p"}, func(ctx context.Context) error {
			return work(ctx, observe.Shim, "exec", "p")
		})
	})
	stop, done := observe.Begin(ctx, observe.Work{Kind: observe.Verb, Name: "sandbox.stop", Object: "p"})
	_, inner := observe.Begin(stop, observe.Work{Kind: observe.CNI, Name: "DEL bridge"})
	pods := r.Pods(any)
	want := "RunPodSandbox (no route)\n  sandbox.run (no route)\n    network (no route)\nsandbox.stop ...\n  DEL bridge ...\n"
	if len(pods) != 1 || pods[0].Name != "name-p" || transcript(pods[0]) != want {
		t.Fatalf("%d pods\n%s", len(pods), transcript(pods[0]))
	}
	for _, s := range pods[0].Spans {
		if s.Running && s.Took <= 0 {
			t.Errorf("%s has been running for %v", s.Work.Name, s.Took)
		}
	}
	inner(nil)
	done(nil)
	if got := transcript(r.Pods(any)[0]); strings.Contains(got, "...") {
		t.Error(got)
	}
	if len(r.Pods(func(id, _, _ string) bool { return id != "p" })) != 0 {
		t.Error("a pod that nobody asked for")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	r := recorder(2)
	ctx := observe.With(t.Context(), r)
	_, open := observe.Begin(ctx, observe.Work{Kind: observe.Verb, Name: "sandbox.stuck", Object: "a"})
	for range 3 * maxCalls {
		_ = work(ctx, observe.Verb, "sandbox.run", "a")
	}
	p := r.Pods(any)[0]
	if len(p.Spans) != maxCalls || p.Dropped != 2*maxCalls+1 || p.Spans[0].Work.Name != "sandbox.stuck" {
		t.Errorf("%d spans, %d dropped, first %s", len(p.Spans), p.Dropped, p.Spans[0].Work.Name)
	}
	_ = work(ctx, observe.Verb, "sandbox.run", "b", func(ctx context.Context) error {
		for range 2 * maxSpans {
			_ = work(ctx, observe.Step, "s", "")
		}
		return nil
	})
	b := r.Pods(func(id, _, _ string) bool { return id == "b" })[0]
	if len(b.Spans) != maxSpans || b.Dropped != maxSpans+1 {
		t.Errorf("%d spans, %d dropped", len(b.Spans), b.Dropped)
	}
	_ = work(ctx, observe.Verb, "sandbox.run", "c")
	if pods := r.Pods(any); len(pods) != 2 || pods[0].ID != "b" || pods[1].ID != "c" {
		t.Errorf("%d pods", len(pods))
	}
	open(nil) // of a pod that is forgotten
}

func TestConcurrentUse(t *testing.T) {
	r := recorder(3)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx := observe.With(context.Background(), r)
			for range 100 {
				_ = work(ctx, observe.Verb, "sandbox.run", fmt.Sprint("p", i), func(ctx context.Context) error {
					return work(ctx, observe.Step, "s", "")
				})
				r.Pods(any)
			}
		})
	}
	wg.Wait()
	if n := len(r.Pods(any)); n != 3 {
		t.Errorf("%d pods", n)
	}
}
