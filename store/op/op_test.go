package op

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/store"
)

// world is what the steps act on; log is the transcript of their calls.
type world struct {
	have    map[string]bool
	log     []string
	failDo  string
	failUnd string
	onDo    func(step string)
}

type state struct{ Name string }

func (w *world) step(name string) Step[*state] {
	return Step[*state]{
		Name: name,
		Do: func(ctx context.Context, s *state) error {
			w.log = append(w.log, "do "+name+" "+s.Name)
			if w.onDo != nil {
				w.onDo(name)
			}
			if w.failDo == name {
				return errdefs.ErrUnavailable
			}
			w.have[name] = true
			return nil
		},
		Undo: func(ctx context.Context, s *state) error {
			w.log = append(w.log, "undo "+name+" "+s.Name)
			if err := ctx.Err(); err != nil {
				return err
			}
			if w.failUnd == name {
				return errdefs.ErrInternal
			}
			delete(w.have, name)
			return nil
		},
		Done: func(context.Context, *state) (bool, error) { return w.have[name], nil },
	}
}

func (w *world) verb(p Policy) Verb[*state] {
	return Verb[*state]{
		Kind: "pod.run", OnCrash: p,
		Steps: []Step[*state]{w.step("a"), w.step("b"), w.step("c")},
		Commit: func(s *state) store.Change {
			w.log = append(w.log, "commit "+s.Name)
			return store.Change{PutSandboxes: []store.Sandbox{{ID: s.Name}}}
		},
	}
}

func newState() *state { return &state{} }

func openDB(t testing.TB) *store.DB {
	t.Helper()
	db, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestRun(t *testing.T) {
	const undone = "undo c x, undo b x, undo a x"
	for name, tc := range map[string]struct {
		policy  Policy
		failDo  string
		failUnd string
		want    string // transcript
		entries int    // left in the journal
		errText string
	}{
		"all well":             {Rollback, "", "", "do a x, do b x, do c x, commit x", 0, ""},
		"first step fails":     {Rollback, "a", "", "do a x, " + undone, 0, "step a: "},
		"last step fails":      {Rollback, "c", "", "do a x, do b x, do c x, " + undone, 0, "step c: "},
		"undo fails too":       {Rollback, "c", "b", "do a x, do b x, do c x, undo c x, undo b x", 1, "undo step b: "},
		"resume, all well":     {Resume, "", "", "do a x, do b x, do c x, commit x", 0, ""},
		"resume, a step fails": {Resume, "b", "", "do a x, do b x", 1, "step b: "},
	} {
		t.Run(name, func(t *testing.T) {
			db := openDB(t)
			w := &world{have: map[string]bool{}, failDo: tc.failDo, failUnd: tc.failUnd}
			w.onDo = func(string) {
				if len(db.Ops()) != 1 {
					t.Error("a step acts without a journal entry")
				}
			}
			err := Run(context.Background(), db, w.verb(tc.policy), "subject", &state{"x"})
			if got := strings.Join(w.log, ", "); got != tc.want {
				t.Errorf("transcript\n got %s\nwant %s", got, tc.want)
			}
			if n := len(db.Ops()); n != tc.entries {
				t.Errorf("%d journal entries left, want %d", n, tc.entries)
			}
			if (err == nil) != (tc.errText == "") || err != nil && !strings.Contains(err.Error(), tc.errText) {
				t.Errorf("error %v, want %q", err, tc.errText)
			}
			if tc.failDo != "" && !errdefs.IsUnavailable(err) {
				t.Errorf("the step's error is lost: %v", err)
			}
			if n := len(db.Sandboxes()); (n == 1) != (err == nil) {
				t.Errorf("%d sandboxes committed", n)
			}
		})
	}
}

func TestCancelledRunIsUndone(t *testing.T) {
	db := openDB(t)
	w := &world{have: map[string]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	w.onDo = func(step string) {
		if step == "b" {
			cancel()
		}
	}
	err := Run(ctx, db, w.verb(Rollback), "s", &state{"x"})
	if !errors.Is(err, context.Canceled) || len(w.have) != 0 || len(db.Ops()) != 0 {
		t.Errorf("err %v, left %v, ops %v", err, w.have, db.Ops())
	}
	if slices.Contains(w.log, "do c x") {
		t.Error("a step ran after the cancellation")
	}
}

func TestFailedCommitIsUndone(t *testing.T) {
	db := openDB(t)
	w := &world{have: map[string]bool{}}
	v := w.verb(Rollback)
	v.Commit = func(*state) store.Change { return store.Change{PutSandboxes: []store.Sandbox{{}}} }
	if err := Run(context.Background(), db, v, "s", &state{"x"}); !errdefs.IsInvalidArgument(err) || len(w.have) != 0 || len(db.Ops()) != 0 {
		t.Errorf("err %v, left %v, ops %v", err, w.have, db.Ops())
	}
}

// TestRecover starts from every state a crash can leave: n steps had run.
func TestRecover(t *testing.T) {
	steps := []string{"a", "b", "c"}
	for n := range len(steps) + 1 {
		for _, policy := range []Policy{Rollback, Resume} {
			db := openDB(t)
			w := &world{have: map[string]bool{}}
			for _, s := range steps[:n] {
				w.have[s] = true
			}
			stage(t, db, "pod.run", "s", `{"Name":"x"}`)
			stage(t, db, "other", "s", `{}`)
			if err := Recover(context.Background(), db, w.verb(policy), "s", newState); err != nil {
				t.Fatal(err)
			}
			want := []string{"undo c x", "undo b x", "undo a x"}
			have := 0
			if policy == Resume {
				want, have = nil, 3
				for _, s := range steps[n:] {
					want = append(want, "do "+s+" x")
				}
				want = append(want, "commit x")
			}
			if d := cmp.Diff(want, w.log); d != "" || len(w.have) != have {
				t.Errorf("%d steps, policy %d: have %v\n%s", n, policy, w.have, d)
			}
			if ops := db.Ops(); len(ops) != 1 || ops[0].Kind != "other" {
				t.Errorf("journal: %v", ops)
			}
		}
	}
}

func stage(t *testing.T, db *store.DB, kind, subject, payload string) {
	t.Helper()
	id := kind + "-" + subject + payload
	if err := db.BeginOp(context.Background(), store.Op{ID: id, Kind: kind, Subject: subject, Payload: []byte(payload)}); err != nil {
		t.Fatal(err)
	}
	db.ReleaseOp(id) // as after a restart
}

func TestRecoverGoesOnAfterAFailure(t *testing.T) {
	db := openDB(t)
	w := &world{have: map[string]bool{"a": true}, failUnd: "b"}
	stage(t, db, "pod.run", "s", `{"Name":"x"}`)
	stage(t, db, "pod.run", "s", `{`)
	stage(t, db, "pod.run", "s", `{"Name":"y"}`)
	stage(t, db, "pod.run", "other", `{"Name":"z"}`)
	err := Recover(context.Background(), db, w.verb(Rollback), "s", newState)
	if err == nil || !strings.Contains(err.Error(), "decode journal entry") || len(db.Ops()) != 4 || !slices.Contains(w.log, "undo b y") || slices.Contains(w.log, "undo b z") {
		t.Errorf("err %v, log %v", err, w.log)
	}
	w.failUnd = ""
	if err := Recover(context.Background(), db, w.verb(Rollback), "other", newState); err != nil || len(db.Ops()) != 3 {
		t.Errorf("err %v, ops %v", err, db.Ops())
	}
	if err := Recover(context.Background(), db, w.verb(Rollback), "s", newState); err == nil || len(db.Ops()) != 1 {
		t.Errorf("err %v, ops %v", err, db.Ops())
	}
}

func TestRecoverLeavesRunningVerbsAlone(t *testing.T) {
	db := openDB(t)
	w := &world{have: map[string]bool{}}
	v := w.verb(Rollback)
	w.onDo = func(step string) {
		if step != "b" {
			return
		}
		if err := Recover(context.Background(), db, v, "s", newState); err != nil {
			t.Error(err)
		}
	}
	if err := Run(context.Background(), db, v, "s", &state{"x"}); err != nil || !w.have["a"] {
		t.Errorf("err %v, have %v", err, w.have)
	}
}

func TestResumeRetryKeepsOneEntry(t *testing.T) {
	db := openDB(t)
	w := &world{have: map[string]bool{}, failDo: "b"}
	for range 3 {
		if err := Run(context.Background(), db, w.verb(Resume), "s", &state{"x"}); err == nil || len(db.Ops()) != 1 {
			t.Fatalf("err %v, ops %v", err, db.Ops())
		}
	}
	w.failDo = ""
	if err := Run(context.Background(), db, w.verb(Resume), "s", &state{"x"}); err != nil || len(db.Ops()) != 0 {
		t.Fatalf("err %v, ops %v", err, db.Ops())
	}
}

func TestBadVerbs(t *testing.T) {
	w := &world{}
	twice := Verb[*state]{Kind: "k", Steps: []Step[*state]{w.step("a"), w.step("a")}}
	for _, v := range []Verb[*state]{{}, twice, {Kind: "k", Steps: []Step[*state]{{Name: "a"}}}} {
		if err := Run(context.Background(), openDB(t), v, "s", newState()); !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
	}
}

// Records travel in payloads: what goes in must come out.
func TestPayloadCarriesRecords(t *testing.T) {
	in := struct{ Rec store.Sandbox }{store.Sandbox{ID: "x", Handler: "h"}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out := in
	out.Rec = store.Sandbox{}
	if err := json.Unmarshal(b, &out); err != nil || out.Rec.ID != "x" || out.Rec.Handler != "h" {
		t.Errorf("%+v, %v", out, err)
	}
}

// hearer writes down what it is told.
type hearer struct{ log []string }

func (h *hearer) Begin(ctx context.Context, w observe.Work) (context.Context, observe.End) {
	name := strings.TrimSpace(string(w.Kind) + " " + w.Verb + " " + w.Name)
	return ctx, func(err error) {
		if err != nil {
			name += " failed"
		}
		h.log = append(h.log, name)
	}
}

func TestObserverHearsOfSteps(t *testing.T) {
	h := &hearer{}
	ctx := observe.With(t.Context(), h)
	w := &world{have: map[string]bool{}, failDo: "b"}
	if err := Run(ctx, openDB(t), w.verb(Rollback), "s", &state{"x"}); err == nil {
		t.Fatal("no error")
	}
	want := []string{"step pod.run journal", "step pod.run a", "step pod.run b failed",
		"undo pod.run c", "undo pod.run b", "undo pod.run a", "verb  pod.run failed"}
	if d := cmp.Diff(want, h.log); d != "" {
		t.Error(d)
	}
	h.log, w = nil, &world{have: map[string]bool{}}
	if err := Run(ctx, openDB(t), w.verb(Rollback), "s", &state{"x"}); err != nil {
		t.Fatal(err)
	}
	want = []string{"step pod.run journal", "step pod.run a", "step pod.run b", "step pod.run c", "step pod.run commit", "verb  pod.run"}
	if d := cmp.Diff(want, h.log); d != "" {
		t.Error(d)
	}
	h.log = nil
	db := openDB(t)
	stage(t, db, "pod.run", "s", `{"Name":"x"}`)
	if err := Recover(ctx, db, w.verb(Rollback), "s", newState); err != nil {
		t.Fatal(err)
	}
	if want := []string{"undo pod.run c", "undo pod.run b", "undo pod.run a", "recovery  pod.run"}; !slices.Equal(h.log, want) {
		t.Error(h.log)
	}
}

// BenchmarkRun is what the journal adds to a verb: the entry before its first
// step, and its end in the transaction of the commit. Both are synced.
func BenchmarkRun(b *testing.B) {
	db := openDB(b)
	w := &world{have: map[string]bool{}}
	v := w.verb(Rollback)
	b.ReportAllocs()
	for b.Loop() {
		w.log = w.log[:0]
		if err := Run(context.Background(), db, v, "subject", &state{"x"}); err != nil {
			b.Fatal(err)
		}
	}
}
