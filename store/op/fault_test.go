//go:build faults

package op

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/berth-dev/berth/store"
)

// fileStep makes a file: an effect that outlives the process.
func fileStep(dir, name string) Step[*state] {
	path := filepath.Join(dir, name)
	return Step[*state]{
		Name: name,
		Do:   func(context.Context, *state) error { return os.WriteFile(path, nil, 0o600) },
		Undo: func(context.Context, *state) error {
			if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		},
		Done: func(context.Context, *state) (bool, error) {
			_, err := os.Stat(path)
			return err == nil, nil
		},
	}
}

func fileVerb(dir string, p Policy) Verb[*state] {
	return Verb[*state]{
		Kind: "pod.run", OnCrash: p,
		Steps:  []Step[*state]{fileStep(dir, "a"), fileStep(dir, "b")},
		Commit: func(s *state) store.Change { return store.Change{PutSandboxes: []store.Sandbox{{ID: s.Name}}} },
	}
}

// TestCrashEverywhere kills a process at each fault point and recovers in this one.
func TestCrashEverywhere(t *testing.T) {
	if dir := os.Getenv("BERTH_TEST_CRASH_DIR"); dir != "" {
		policy := Rollback
		if os.Getenv("BERTH_TEST_CRASH_RESUME") != "" {
			policy = Resume
		}
		db, err := store.Open(store.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Fatal("survived: ", Run(context.Background(), db, fileVerb(dir, policy), "s", &state{"x"}))
	}
	for _, point := range []string{"journal/after", "a/before", "a/after", "b/before", "b/after", "commit/before", "commit/after"} {
		for policy, resume := range map[Policy]string{Rollback: "", Resume: "1"} {
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0], "-test.run=^TestCrashEverywhere$")
			cmd.Env = append(os.Environ(), "BERTH_FAULT=pod.run/"+point, "BERTH_TEST_CRASH_DIR="+dir, "BERTH_TEST_CRASH_RESUME="+resume)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s: not killed: %v\n%s", point, err, out)
			}
			db, err := store.Open(store.Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			if err := Recover(context.Background(), db, fileVerb(dir, policy), "s", newState); err != nil {
				t.Error(point, err)
			}
			want := 0
			if policy == Resume || point == "commit/after" {
				want = 1
			}
			_, aErr := os.Stat(filepath.Join(dir, "a"))
			_, bErr := os.Stat(filepath.Join(dir, "b"))
			if n := len(db.Sandboxes()); n != want || (aErr == nil) != (n == 1) || (bErr == nil) != (n == 1) || len(db.Ops()) != 0 {
				t.Errorf("%s, policy %d: %d sandboxes, a %v, b %v, ops %v", point, policy, n, aErr, bErr, db.Ops())
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
