package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/store"
)

func (n *node) pod(names ...string) Pod {
	p := Pod{ID: "p1", Config: []byte(`{"hostname":"h"}`), Configs: []byte("[]"), Shm: n.upper}
	n.subject = p.ID
	for _, name := range names {
		c := n.container()
		c.ID, c.Config.Name = "id-"+name, name
		p.Containers = append(p.Containers, &c)
	}
	return p
}

// TestPod: all stand still before anything is taken of one.
func TestPod(t *testing.T) {
	n := newNode(t)
	if err := n.m.Pod(t.Context(), n.pod("a", "b"), n.dir); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff("freeze freeze dump dump thaw thaw", strings.Join(n.events, " ")); d != "" {
		t.Error(d)
	}
	left := n.left()
	slices.Sort(left)
	if d := cmp.Diff([]string{"a.tar", "b.tar", "containers.dump", "devshm-checkpoint.tar", "pod.dump", "pod.options"}, left); d != "" {
		t.Error(d)
	}
	for _, name := range []string{"a", "b"} {
		_, content := names(t, filepath.Join(n.dir, name+".tar"))
		if !strings.Contains(content["config.dump"], `"name": "`+name+`"`) || content["checkpoint/pages-1.img"] != "memory" {
			t.Error(content)
		}
	}
	if _, content := names(t, filepath.Join(n.dir, "devshm-checkpoint.tar")); content["written"] != "by the container\n" {
		t.Error(content)
	}
	if err := n.m.Pod(t.Context(), n.pod("a"), n.dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("into a directory with files: %v", err)
	}
}

func TestPodFailures(t *testing.T) {
	for _, tc := range []struct {
		name, names string
		break_      func(n *node, p *Pod)
		is          error
		events      string
	}{
		{"one cannot be frozen", "a b c", func(n *node, _ *Pod) { n.refuses = "id-b" }, errdefs.ErrFailedPrecondition,
			"freeze freeze freeze thaw thaw thawed thawed thawed"},
		{"shared memory is gone", "a b", func(_ *node, p *Pod) { p.Shm += "/none" }, os.ErrNotExist, "freeze freeze dump dump thaw thaw thawed thawed"},
		{"one ends", "a b", func(n *node, p *Pod) {
			ended := make(chan struct{})
			p.Containers[1].Ended = ended
			n.dump = func(ctx context.Context, _, _ string) error { close(ended); <-ctx.Done(); return ctx.Err() }
		}, errEnded, "freeze freeze dump thaw thaw thawed thawed"},
		{"same name", "a a", nil, errdefs.ErrInvalidArgument, ""},
		{"name is a path", "../a", nil, errdefs.ErrInvalidArgument, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			p := n.pod(strings.Fields(tc.names)...)
			if tc.break_ != nil {
				tc.break_(n, &p)
			}
			if err := n.m.Pod(t.Context(), p, n.dir); !errors.Is(err, tc.is) {
				t.Error(err)
			}
			if got := strings.Join(n.events, " "); got != tc.events {
				t.Errorf("%s, want %s", got, tc.events)
			}
			if left := n.left(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestPodCrash(t *testing.T) {
	n := newNode(t)
	p := n.pod("a", "b")
	s := newState("p1", n.dir, p.Containers...)
	s.pod, s.Files, s.Temp = &p, []string{"a.tar", "b.tar", shmFile, optionsFile, configsFile, podFile}, tempIn(n.dir, "p1")
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.db.BeginOp(t.Context(), store.Op{ID: "o", Kind: PodKind, Subject: "p1", Payload: b}); err != nil {
		t.Fatal(err)
	}
	n.db.ReleaseOp("o")
	for _, st := range n.m.verb(PodKind, n.m.podArchivesStep()).Steps {
		if err := st.Do(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(n.dir, podFile)); err != nil {
		t.Fatal(err)
	}
	if err := n.m.Recover(t.Context(), "p1"); err != nil {
		t.Error(err)
	}
	if left := n.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestPodUndoneLate: one that could be undone only later does not take away what
// another has put into the directory meanwhile, be it of the same pod or not.
func TestPodUndoneLate(t *testing.T) {
	for _, next := range []string{"p1", "p2"} {
		t.Run(next, func(t *testing.T) {
			n := newNode(t)
			works := n.dump
			n.dump = func(context.Context, string, string) error {
				n.thawed = errdefs.ErrUnavailable
				return errdefs.ErrInternal
			}
			if err := n.m.Pod(t.Context(), n.pod("a"), n.dir); !errdefs.IsInternal(err) || len(n.db.Ops()) != 1 {
				t.Fatalf("%v, journal %v", err, n.db.Ops())
			}
			other := n.pod("a")
			other.ID, n.dump, n.events = next, works, nil
			if next == "p1" {
				if err := n.m.Pod(t.Context(), other, n.dir); !errdefs.IsUnavailable(err) || len(n.db.Ops()) != 1 {
					t.Errorf("while CRIU may write: %v, journal %v", err, n.db.Ops())
				}
			}
			n.thawed = nil
			if err := n.m.Pod(t.Context(), other, n.dir); err != nil {
				t.Fatal(err)
			}
			if err := n.m.Recover(t.Context(), "p1"); err != nil {
				t.Error(err)
			}
			left := n.left()
			slices.Sort(left)
			if d := cmp.Diff([]string{"a.tar", "containers.dump", "devshm-checkpoint.tar", "pod.dump", "pod.options"}, left); d != "" {
				t.Error(d)
			}
		})
	}
}
