package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// node is a fake shim, and what happened in which order.
type node struct {
	t       *testing.T
	m       *Maker
	db      *store.DB
	dir     string // where archives go
	upper   string
	mu      sync.Mutex
	events  []string
	freeze  error
	refuses string // container that cannot be frozen
	subject string // of the checkpoint
	early   bool   // it has not come to the directories
	dump    func(ctx context.Context, images, work string) error
	thawed  error
}

func newNode(t *testing.T) *node {
	dir := t.TempDir()
	db, err := store.Open(store.Config{Dir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	n := &node{t: t, db: db, subject: "c1", dir: filepath.Join(dir, "archives"), upper: filepath.Join(dir, "upper")}
	n.m = New(filepath.Join(dir, "state", "checkpoints"), n, db)
	err = errors.Join(os.Mkdir(n.dir, 0o755), os.Mkdir(n.upper, 0o755), os.WriteFile(n.upper+"/written", []byte("by the container\n"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	n.dump = func(_ context.Context, images, work string) error {
		return errors.Join(os.WriteFile(images+"/pages-1.img", []byte("memory"), 0o600), os.WriteFile(work+"/dump.log", []byte("done"), 0o600))
	}
	return n
}

func (n *node) note(event string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, event)
}

func (n *node) Freeze(_ context.Context, id string) (Still, error) {
	n.note("freeze")
	if id == n.refuses {
		return nil, errdefs.ErrFailedPrecondition
	}
	return n, n.freeze
}

func (n *node) Dump(ctx context.Context, images, work string) error {
	n.note("dump")
	return n.dump(ctx, images, work)
}

func (n *node) Thaw(context.Context) error {
	n.note("thaw")
	return nil
}

// Thawed finds the files of the dump still there: nothing may be removed before.
func (n *node) Thawed(_ context.Context, id string) error {
	n.note("thawed")
	if _, err := os.Stat(filepath.Join(n.m.work(n.subject), id)); err != nil && !n.early {
		n.t.Error("removed under CRIU:", err)
	}
	return n.thawed
}

func (n *node) container() Container {
	return Container{ID: "c1", Upper: n.upper, Config: Config{ID: "c1", Name: "main", OCIRuntime: "runc"},
		Spec: []byte(`{"ociVersion":"1.2.0"}`), Status: Status{Pid: 7}}
}

// left lists the files that a checkpoint has made, and its journal entries.
func (n *node) left() (out []string) {
	for _, dir := range []string{n.dir, n.m.dir} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			out = append(out, e.Name())
		}
	}
	for _, o := range n.db.Ops() {
		out = append(out, o.Kind)
	}
	return out
}

func names(t *testing.T, file string) (out []string, content map[string]string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content = map[string]string{}
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out, content
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
		content[h.Name] = string(b)
	}
}

func TestContainer(t *testing.T) {
	n := newNode(t)
	file := filepath.Join(n.dir, "c.tar")
	c := n.container()
	c.LogPath = filepath.Join(n.upper, "written") // any file will do
	if err := n.m.Container(t.Context(), c, file); err != nil {
		t.Fatal(err)
	}
	got, content := names(t, file)
	want := []string{"config.dump", "spec.dump", "status.dump", "dump.log", "deleted.files", "rootfs-diff.tar", "checkpoint/", "checkpoint/pages-1.img"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"c.tar"}, n.left()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"freeze", "dump", "thaw"}, n.events); d != "" {
		t.Error(d)
	}
	if content["deleted.files"] != "[]" || content["checkpoint/pages-1.img"] != "memory" || content["spec.dump"] != string(c.Spec) {
		t.Error(content)
	}
	var st Status
	var cfg Config
	if err := errors.Join(json.Unmarshal([]byte(content["status.dump"]), &st), json.Unmarshal([]byte(content["config.dump"]), &cfg)); err != nil {
		t.Error(err)
	}
	if st.Pid != 7 || st.LogBytes != 17 || cfg.CheckpointedAt.IsZero() || cfg.Name != "main" {
		t.Errorf("%+v %+v", st, cfg)
	}
	if err := n.m.Container(t.Context(), c, file); !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
}

// TestFailures: whatever fails, the container goes on first and nothing is left.
func TestFailures(t *testing.T) {
	unknown := fmt.Errorf("runc: criu failed: %w", errdefs.ErrUnknown)
	for _, tc := range []struct {
		name   string
		break_ func(n *node, c *Container, cancel func())
		is     error
		says   string
		events string
	}{
		{"freeze", func(n *node, _ *Container, _ func()) { n.freeze = errdefs.ErrUnavailable }, errdefs.ErrUnavailable, "", "freeze thawed"},
		{"CRIU", func(n *node, _ *Container, _ func()) {
			n.dump = func(_ context.Context, _, work string) error {
				log := "(00.1) Warn (x): no\n(00.2) Error (criu/files.c:12): Can't dump\n(00.3) Error (criu/x.c:1): so there\n"
				return errors.Join(os.WriteFile(work+"/dump.log", []byte(log), 0o600), unknown)
			}
		}, errdefs.ErrFailedPrecondition, "CRIU says: Can't dump; so there", "freeze dump thaw thawed"},
		{"full disk", func(n *node, _ *Container, _ func()) {
			n.dump = func(_ context.Context, _, work string) error {
				return errors.Join(os.WriteFile(work+"/dump.log", []byte("Error (x): No space left on device\n"), 0o600), unknown)
			}
		}, errdefs.ErrResourceExhausted, "No space", "freeze dump thaw thawed"},
		{"time is over", func(n *node, _ *Container, cancel func()) {
			n.dump = func(ctx context.Context, _, _ string) error { cancel(); <-ctx.Done(); return ctx.Err() }
		}, context.Canceled, "", "freeze dump thaw thawed"},
		{"container ends", func(n *node, c *Container, _ func()) {
			ended := make(chan struct{})
			c.Ended = ended
			n.dump = func(ctx context.Context, _, _ string) error { close(ended); <-ctx.Done(); return ctx.Err() }
		}, errdefs.ErrFailedPrecondition, "has ended", "freeze dump thaw thawed"},
		{"layer is gone", func(_ *node, c *Container, _ func()) { c.Upper += "/none" }, os.ErrNotExist, "has written", "freeze dump thaw thawed"},
		{"place is taken meanwhile", func(n *node, _ *Container, _ func()) {
			n.dump = func(context.Context, string, string) error {
				return os.WriteFile(n.dir+"/c.tar", []byte("theirs"), 0o600)
			}
		}, errdefs.ErrAlreadyExists, "c.tar", "freeze dump thaw thawed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			c := n.container()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			tc.break_(n, &c, cancel)
			err := n.m.Container(ctx, c, filepath.Join(n.dir, "c.tar"))
			if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) {
				t.Error(err)
			}
			if got := strings.Join(n.events, " "); got != tc.events {
				t.Errorf("%s, want %s", got, tc.events)
			}
			if b, _ := os.ReadFile(n.dir + "/c.tar"); string(b) == "theirs" {
				err := os.Remove(n.dir + "/c.tar")
				if err != nil {
					t.Error(err)
				}
			}
			if left := n.left(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestCrashes runs a recovery from what a crash leaves at any moment.
func TestCrashes(t *testing.T) {
	for _, tc := range []struct{ after, theirs string }{
		{after: "nothing"}, {after: "directory"}, {after: "dump"}, {after: "archive half written"}, {after: "archive linked"},
		{after: "archive in place"}, {after: "dump", theirs: "another's archive"},
	} {
		t.Run(tc.after+tc.theirs, func(t *testing.T) {
			n := newNode(t)
			file := filepath.Join(n.dir, "c.tar")
			c := n.container()
			s := newState("c1", file, &c)
			s.Temp = filepath.Join(n.dir, ".tmp")
			b, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.db.BeginOp(t.Context(), store.Op{ID: "o", Kind: Kind, Subject: "c1", Payload: b}); err != nil {
				t.Fatal(err)
			}
			n.db.ReleaseOp("o")
			steps := n.m.verb(Kind, n.m.archiveStep()).Steps
			switch tc.after {
			case "directory":
				steps = steps[:1]
			case "dump":
				steps = steps[:2]
			case "nothing":
				steps = nil
			}
			for _, st := range steps {
				if err := st.Do(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			switch tc.after {
			case "archive half written":
				err = errors.Join(os.Rename(file, s.Temp), os.Truncate(s.Temp, 100))
			case "archive linked":
				err = os.Link(file, s.Temp)
			}
			if tc.theirs != "" {
				err = os.WriteFile(file, []byte(tc.theirs), 0o600)
			}
			n.early = tc.after == "nothing"
			if err != nil {
				t.Fatal(err)
			}
			n.events, n.thawed = nil, errdefs.ErrUnavailable
			if err := n.m.Recover(t.Context(), "c1"); !errdefs.IsUnavailable(err) || len(n.db.Ops()) != 1 {
				t.Errorf("with a shim that does not answer: %v", err)
			}
			n.thawed = nil
			if err := n.m.Recover(t.Context(), "c1"); err != nil {
				t.Fatal(err)
			}
			var want []string
			if tc.theirs != "" {
				want = []string{"c.tar"}
			}
			if d := cmp.Diff(want, n.left()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSweep(t *testing.T) {
	n := newNode(t)
	if err := n.m.Sweep(); err != nil {
		t.Error(err) // there is no directory yet
	}
	for _, id := range []string{"busy", "done"} {
		if err := os.MkdirAll(n.m.part(id, "c"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.db.BeginOp(t.Context(), store.Op{ID: "o", Kind: Kind, Subject: "busy"}); err != nil {
		t.Fatal(err)
	}
	if err := n.m.Sweep(); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"busy", Kind}, n.left()); d != "" {
		t.Error(d)
	}
}

func TestVacant(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for location, want := range map[string]error{
		dir + "/new": nil, dir + "/f": errdefs.ErrAlreadyExists, dir + "/f/x": errdefs.ErrInvalidArgument, "x": errdefs.ErrInvalidArgument,
		"": errdefs.ErrInvalidArgument, dir + "/none/x": errdefs.ErrInvalidArgument, dir + "/../x": errdefs.ErrInvalidArgument, dir: errdefs.ErrAlreadyExists,
	} {
		if err := vacant(location); !errors.Is(err, want) {
			t.Errorf("%q: %v", location, err)
		}
	}
}

func TestVerbIsValid(t *testing.T) {
	m := newNode(t).m
	if err := errors.Join(op.Declare(m.verb(Kind, m.archiveStep())), op.Declare(m.verb(PodKind, m.podArchivesStep()))); err != nil {
		t.Error(err)
	}
}

// TestCheck: what criu says is wrong is in the answer, and asked again until it works.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	var c CRIU
	if err := c.Check(t.Context()); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "not installed") {
		t.Error(err)
	}
	program := func(script string) {
		if err := os.WriteFile(dir+"/criu", []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program("echo 'Warn  (criu/x.c:1): hm'\necho 'Error (criu/vdso.c:9): vdso: bad' >&2\necho 'Error (y): too'\nexit 1")
	if err := c.Check(t.Context()); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), ": vdso: bad (") {
		t.Error(err)
	}
	program("[ ! -e " + dir + "/once ] && >" + dir + "/once")
	for range 2 {
		if err := c.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
