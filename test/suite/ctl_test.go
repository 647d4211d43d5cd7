package suite

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func ctlStories() []story {
	return []story{
		{name: "berthctl/scripts", owned: true, tell: ctlScripts},
		{name: "berthctl/exec in a terminal", owned: true, tell: execInTerminal},
		{name: "berthctl/run in a terminal", owned: true, tell: runInTerminal},
		{name: "berthctl/run in a terminal, and removed", owned: true, tell: runRemovedInTerminal},
	}
}

// ctlScripts runs the scripts of testdata/berthctl against the suite's node.
// Scripts run beside each other, so each has names of its own.
func ctlScripts(t *testing.T, n *node) {
	bin := n.ctlProgram(t)
	programs, err := harness.Find(*binDir)
	must(t, err)
	n.cleanRuns(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "berthctl"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+":"+e.Getenv("PATH"))
			e.Setenv("IMAGES", *imagePrefix)
			e.Setenv("NODE", n.own.Dir())
			e.Setenv("RUNC", programs.Runc)
			e.Setenv("TERM", "xterm")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await},
	})
}

// await runs a program again until it succeeds: await PROGRAM ARG...
// or until its output has a text: await -has TEXT PROGRAM ARG...
func await(ts *testscript.TestScript, neg bool, args []string) {
	want := ""
	if len(args) > 2 && args[0] == "-has" {
		want, args = args[1], args[2:]
	}
	if neg || len(args) == 0 {
		ts.Fatalf("usage: await [-has TEXT] PROGRAM ARG...")
	}
	var last error
	ok := poll(func() bool {
		last = ts.Exec(args[0], args[1:]...)
		return last == nil && strings.Contains(ts.ReadFile("stdout"), want)
	})
	if !ok {
		ts.Fatalf("after %v: %v; %q is missing in:\n%s%s", patience, last, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// ctlProgram makes a directory with a berthctl that works on the suite's node.
func (n *node) ctlProgram(t *testing.T) string {
	t.Helper()
	p, err := harness.Find(*binDir)
	must(t, err)
	dir := t.TempDir()
	cmd := n.own.Space().Command(t.Context(), filepath.Join(p.Bin, "berthctl"),
		"--address", n.own.Dir("run", "berth.sock"), "--admin-address", n.own.Dir("run", "admin.sock"))
	// Completion scripts call the program with the first argument __complete.
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in\n__complete) shift; exec %s __complete %s \"$@\" ;;\nesac\nexec %s \"$@\"\n",
		strings.Join(append([]string{cmd.Path}, cmd.Args[1:len(cmd.Args)-4]...), " "), strings.Join(cmd.Args[len(cmd.Args)-4:], " "),
		strings.Join(append([]string{cmd.Path}, cmd.Args[1:]...), " "))
	must(t, os.WriteFile(filepath.Join(dir, "berthctl"), []byte(script), 0o755))
	return dir
}

// cleanRuns removes, at the end of the test, pods of berthctl run that a
// failure left behind.
func (n *node) cleanRuns(t *testing.T) {
	t.Cleanup(func() {
		r, err := n.rt.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{})
		must(t, err)
		for _, p := range r.GetItems() {
			if p.GetLabels()["berthctl.run"] != "" {
				(&pod{n: n, id: p.GetId()}).remove(t)
				must(t, os.RemoveAll(filepath.Join("/var/log/berthctl", p.GetMetadata().GetUid())))
			}
		}
	})
}
