// Package timeline remembers what was done for the latest pods and how long each
// piece took: calls, the verbs and steps in them, and what is under way. It is
// kept in memory, bounded, and gone with the daemon.
package timeline

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/berth-dev/berth/observe"
)

const (
	maxCalls = 48   // of one pod; older ones that have ended are dropped
	maxSpans = 512  // inside one call
	maxError = 1000 // bytes of an error's text
)

// Config bounds the memory and says how work belongs to pods.
type Config struct {
	Pods int // how many are remembered
	// PodOf returns the ID of the pod that work is for; "" when it is not known (yet).
	PodOf func(w observe.Work) string
	// NameOf returns what a pod is called; "" when it is not known (any more).
	NameOf func(pod string) (namespace, name string)
}

// Span is one piece of work. Depth is 0 for a call and counts up inwards.
type Span struct {
	Depth   int
	Work    observe.Work
	Began   time.Time
	Took    time.Duration // so far, while it is running
	Running bool
	Error   string
}

// Pod is what was done for one pod. Inner spans follow the one they belong to.
type Pod struct {
	ID, Namespace, Name string
	Spans               []Span
	Dropped             int // spans that are remembered no longer
}

// Recorder is the observer.
type Recorder struct {
	cfg  Config
	mu   sync.Mutex
	pods map[string]*pod
	used []*pod // least lately first
}

var _ observe.Observer = (*Recorder)(nil)

type pod struct {
	id, namespace, name string
	roots               []*root
	dropped             int
}

// root is a piece of work that belongs to no other.
type root struct {
	pod   *pod // nil: not known yet
	top   *span
	spans int
}

type span struct {
	root     *root
	depth    int
	work     observe.Work
	began    time.Time
	took     time.Duration
	running  bool
	err      string
	children []*span
}

// New returns an empty recorder.
func New(cfg Config) *Recorder { return &Recorder{cfg: cfg, pods: map[string]*pod{}} }

type key struct{}

// Begin hears of work. What commands are run in containers is not remembered:
// probes would drive out everything else.
func (r *Recorder) Begin(ctx context.Context, w observe.Work) (context.Context, observe.End) {
	parent, _ := ctx.Value(key{}).(*span)
	if w.Kind == observe.Exec || r.cfg.Pods <= 0 || parent != nil && parent.root == nil {
		return context.WithValue(ctx, key{}, &span{}), func(error) {}
	}
	s := &span{work: w, began: time.Now(), running: true}
	r.mu.Lock()
	defer r.mu.Unlock()
	if parent == nil {
		s.root = &root{top: s}
	} else {
		s.root, s.depth = parent.root, parent.depth+1
	}
	if !r.add(parent, s) {
		return context.WithValue(ctx, key{}, &span{}), func(error) {}
	}
	return context.WithValue(ctx, key{}, s), func(err error) { r.end(s, err) }
}

// add hangs the span where it belongs, and the root to its pod once that is known.
func (r *Recorder) add(parent, s *span) bool {
	at := s.root
	if at.spans++; at.spans > maxSpans {
		if at.pod != nil {
			at.pod.dropped++
		}
		return false
	}
	if parent != nil {
		parent.children = append(parent.children, s)
	}
	if at.pod != nil {
		return true
	}
	if id := r.cfg.PodOf(s.work); id != "" {
		at.pod = r.use(id)
		at.pod.roots = append(at.pod.roots, at)
		at.pod.prune()
	}
	return true
}

// use returns a pod and makes it the last one to be forgotten.
func (r *Recorder) use(id string) *pod {
	p := r.pods[id]
	if p == nil {
		p = &pod{id: id}
		r.pods[id] = p
	} else {
		r.used = slices.DeleteFunc(r.used, func(q *pod) bool { return q == p })
	}
	r.used = append(r.used, p)
	if len(r.used) > r.cfg.Pods {
		delete(r.pods, r.used[0].id)
		r.used = slices.Delete(r.used, 0, 1)
	}
	return p
}

// prune drops the oldest calls that have ended.
func (p *pod) prune() {
	for i := 0; len(p.roots) > maxCalls && i < len(p.roots); {
		if p.roots[i].top.running {
			i++
			continue
		}
		p.dropped += p.roots[i].spans
		p.roots = slices.Delete(p.roots, i, i+1)
	}
}

func (r *Recorder) end(s *span, err error) {
	took := time.Since(s.began)
	text := ""
	if err != nil {
		text = err.Error()
		text = text[:min(len(text), maxError)]
	}
	r.mu.Lock()
	p := s.root.pod
	s.took, s.running, s.err = took, false, text
	unnamed := p != nil && p.name == "" && s.root.top == s
	r.mu.Unlock()
	if unnamed {
		r.name(p)
	}
}

// name asks what the pod is called, outside the lock.
func (r *Recorder) name(p *pod) {
	namespace, name := r.cfg.NameOf(p.id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if name != "" {
		p.namespace, p.name = namespace, name
	}
}

// Pods returns what is remembered of every pod for which want is true, the pod
// that was worked on last at the end.
func (r *Recorder) Pods(want func(id, namespace, name string) bool) []Pod {
	r.mu.Lock()
	all := slices.Clone(r.used)
	r.mu.Unlock()
	for _, p := range all {
		r.name(p)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Pod
	for _, p := range all {
		if !want(p.id, p.namespace, p.name) {
			continue
		}
		o := Pod{ID: p.id, Namespace: p.namespace, Name: p.name, Dropped: p.dropped}
		for _, at := range p.roots {
			o.Spans = at.top.flatten(o.Spans, time.Now())
		}
		out = append(out, o)
	}
	return out
}

func (s *span) flatten(out []Span, now time.Time) []Span {
	took := s.took
	if s.running {
		took = now.Sub(s.began)
	}
	out = append(out, Span{Depth: s.depth, Work: s.work, Began: s.began, Took: took, Running: s.running, Error: s.err})
	for _, c := range s.children {
		out = c.flatten(out, now)
	}
	return out
}
