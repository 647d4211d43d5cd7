package doctor

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/store"
)

func id(c string) string { return strings.Repeat(c, 64) }

func TestLeaks(t *testing.T) {
	pod, ctr, ended, gone, busy := id("a"), id("b"), id("c"), id("d"), id("e")
	k := Known{Source: "the daemon", Sandboxes: map[string]bool{pod: true}, Containers: map[string]bool{ctr: true, ended: false},
		Busy: map[string]bool{busy: true}, Alone: true}
	crowd := k
	crowd.Alone = false
	foreigners := k
	foreigners.Foreign = map[string]bool{gone: true}
	tests := []struct {
		name  string
		known Known
		thing []Thing
		want  int
	}{
		{"nothing", k, nil, 0},
		{"a pod's pin", k, []Thing{{Kind: "namespace", Owner: pod, Class: OfSandbox}}, 0},
		{"a container is no sandbox", k, []Thing{{Kind: "namespace", Owner: ctr, Class: OfSandbox}}, 1},
		{"a sandbox is no container", k, []Thing{{Kind: "directory", Owner: pod, Class: OfContainer}}, 1},
		{"an unknown pin", k, []Thing{{Kind: "namespace", Owner: gone, Class: OfSandbox}}, 1},
		{"an operation under way", k, []Thing{{Kind: "namespace", Owner: busy, Class: OfSandbox}}, 0},
		{"a live shim", k, []Thing{{Kind: "process", Owner: ctr, Class: OfLive}}, 0},
		{"a shim that outlives its container", k, []Thing{{Kind: "process", Owner: ended, Class: OfLive}}, 1},
		{"the directory of an ended container", k, []Thing{{Kind: "directory", Owner: ended, Class: OfContainer}}, 0},
		{"either", k, []Thing{{Owner: pod, Class: OfEither}, {Owner: ctr, Class: OfEither}}, 0},
		{"a rule with a cut-off comment", k, []Thing{{Owner: pod[:60], Class: OfSandbox}}, 0},
		{"an unknown rule with a cut-off comment", k, []Thing{{Owner: gone[:60], Class: OfSandbox}}, 1},
		{"a chain of nobody", k, []Thing{{Kind: "packet filter chain", Class: OfNobody}}, 1},
		{"an unknown cgroup, alone", k, []Thing{{Kind: "cgroup", Owner: gone, Class: OfEither, Shared: true}}, 1},
		{"an unknown cgroup beside others", crowd, []Thing{{Kind: "cgroup", Owner: gone, Class: OfEither, Shared: true}}, 0},
		{"an unknown cgroup that a directory proves ours", crowd,
			[]Thing{{Kind: "cgroup", Owner: gone, Class: OfEither, Shared: true}, {Kind: "directory", Owner: gone, Class: OfContainer}}, 2},
		{"another runtime's cgroup", foreigners, []Thing{{Kind: "cgroup", Owner: gone, Class: OfEither, Shared: true}}, 0},
		{"twice the same", k, []Thing{{Kind: "x", Owner: gone, Class: OfEither}, {Kind: "x", Owner: gone, Class: OfEither}}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Leaks(tt.known, tt.thing)
			if len(got) != tt.want {
				t.Errorf("%d leaks, want %d: %v", len(got), tt.want, got)
			}
			for _, l := range got {
				if l.Owner == "" || l.Why == "" || l.Remedy == "" {
					t.Errorf("a leak without owner, reason or remedy: %+v", l)
				}
			}
		})
	}
}

// TestRecordsOfAStoppedDaemon looks at what a daemon that is down has left. Where
// its records cannot be read nothing counts as leaked: its next start rebuilds them.
func TestRecordsOfAStoppedDaemon(t *testing.T) {
	pod, ctr, late := id("a"), id("b"), id("c")
	type change struct{ from, to string }
	alter := func(c change) func(t *testing.T, root string) {
		return func(t *testing.T, root string) {
			file := filepath.Join(root, "berth.db")
			b, err := os.ReadFile(file)
			if err != nil || !bytes.Contains(b, []byte(c.from)) {
				t.Fatalf("%q is not in the database: %v", c.from, err)
			}
			put(t, file, bytes.ReplaceAll(b, []byte(c.from), []byte(c.to)))
		}
	}
	remove := func(t *testing.T, root string, names ...string) {
		for _, name := range names {
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		spoil      func(t *testing.T, root string)
		unreadable bool
		pods       int // that are known
	}{
		"whole":           {func(*testing.T, string) {}, false, 1},
		"a bad record":    {alter(change{`"Handler":"runc"`, `"Handler":"runk"`}), false, 1},
		"a bad operation": {alter(change{`"Kind":"container.create"`, `"Kind":"container.creaTe"`}), true, 0},
		"empty":           {func(t *testing.T, root string) { put(t, filepath.Join(root, "berth.db"), nil) }, true, 0},
		"garbage":         {func(t *testing.T, root string) { put(t, filepath.Join(root, "berth.db"), []byte("garbage")) }, true, 0},
		"cut short": {func(t *testing.T, root string) {
			if err := os.Truncate(filepath.Join(root, "berth.db"), 12288); err != nil {
				t.Fatal(err)
			}
		}, true, 0},
		"a damaged key":  {alter(change{pod + "\x01", id("d") + "\x01"}), true, 0},
		"gone":           {func(t *testing.T, root string) { remove(t, root, "berth.db") }, true, 0},
		"all of it gone": {func(t *testing.T, root string) { remove(t, root, "berth.db", "sandboxes", "containers") }, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			n := Node{CRIErr: errors.New("down"), AdminErr: errors.New("down")}
			n.Config.Paths.Root, n.Config.Paths.Run = t.TempDir(), t.TempDir()
			root := n.Config.Paths.Root
			for _, d := range []string{"sandboxes/" + pod, "containers/" + ctr} {
				if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			db, err := store.Open(store.Config{Dir: root})
			if err != nil {
				t.Fatal(err)
			}
			err = errors.Join(
				db.Commit(t.Context(), store.Change{PutSandboxes: []store.Sandbox{{ID: pod, Handler: "runc"}}, PutContainers: []store.Container{{ID: ctr, SandboxID: pod}}}),
				db.BeginOp(t.Context(), store.Op{ID: "1", Kind: "container.create", Subject: late}), db.Close())
			if err != nil {
				t.Fatal(err)
			}
			tt.spoil(t, root)
			before, _ := os.ReadFile(filepath.Join(root, "berth.db"))
			k, err := n.known(t.Context())
			after, _ := os.ReadFile(filepath.Join(root, "berth.db"))
			if !bytes.Equal(before, after) {
				t.Error("the database was changed")
			}
			if kept, _ := filepath.Glob(filepath.Join(root, "*damaged*")); len(kept) > 0 {
				t.Error("the database was set aside")
			}
			if tt.unreadable {
				if err == nil || !strings.Contains(err.Error(), "records can't be read") {
					t.Errorf("known: %+v, %v", k, err)
				}
				if leaks, err := FindLeaks(t.Context(), n); err == nil || len(leaks) > 0 {
					t.Errorf("leaks: %v, %v", leaks, err)
				}
				return
			}
			if err != nil || len(k.Sandboxes) != tt.pods || tt.pods > 0 && !(k.Sandboxes[pod] && k.Containers[ctr] && k.Busy[late]) {
				t.Errorf("known: %+v, %v", k, err)
			}
		})
	}
}

func put(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLeaksText(t *testing.T) {
	if got := writeLeaks(nil); got != "" {
		t.Errorf("no leaks print %q", got)
	}
	got := writeLeaks(Leaks(Known{Source: "the daemon", Containers: map[string]bool{id("c"): false}}, []Thing{
		{Kind: "namespace", Name: "/run/berth/ns/x/net", Owner: id("d"), Class: OfSandbox, Remedy: "umount /run/berth/ns/x/net"},
		{Kind: "mount", Name: "/run/berth/containers/c/rootfs", Owner: id("c"), Class: OfLive}}))
	golden(t, "leaks", []byte(got))
}

func TestBoth(t *testing.T) {
	a := []Leak{{Kind: "x", Thing: "1"}, {Kind: "x", Thing: "2"}}
	if d := cmp.Diff([]Leak{{Kind: "x", Thing: "2"}}, both(a, []Leak{{Kind: "x", Thing: "2", Why: "other"}, {Kind: "x", Thing: "3"}})); d != "" {
		t.Error(d)
	}
}

func TestMarks(t *testing.T) {
	i := id("7")
	for in, want := range map[string]string{
		i: i, "x": "", i[:63]: "", `"name: \"berth\" id: \"` + i + `\""`: i,
		"abc-def, net: n, if: eth0, id: " + i[:60]: i[:60], "id: 1234": "",
	} {
		if got := ruleOwner(in); got != want {
			t.Errorf("owner in %q: %q, want %q", in, got, want)
		}
	}
	if idIn("/a/"+i+"/b") != i || idIn("/a/b") != "" || idInName("net-"+i+"-eth0") != i || idInName("net-x") != "" {
		t.Error("IDs in paths and names")
	}
	n := Node{}
	n.Config.Paths.Root, n.Config.Paths.Run = "/var/lib/berth", "/run/berth"
	for at, want := range map[string]Class{
		"/run/berth/ns/" + i + "/net": OfSandbox, "/run/berth/sandboxes/" + i + "/shm": OfSandbox,
		"/run/berth/containers/" + i + "/rootfs": OfLive, "/var/lib/berth/x/" + i: OfEither,
	} {
		if got, ours := n.mount(at); !ours || got.Class != want || got.Owner != i {
			t.Errorf("%s: %+v, %v", at, got, ours)
		}
	}
	for _, at := range []string{"/run/berth", "/run/berth/ns", "/run/other/" + i, "/var/lib/berth"} {
		if _, ours := n.mount(at); ours {
			t.Errorf("%s is taken for a pod's", at)
		}
	}
}

func TestParseIPTables(t *testing.T) {
	i := id("9")
	save := `*nat
:CNI-DN-0123456789abcdef01234 - [0:0]
:CNI-DN-aaaaaaaaaaaaaaaaaaaaa - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"n\" id: \"` + i + `\"" -j CNI-DN-0123456789abcdef01234
COMMIT
`
	got := parseIPTables("iptables", []byte(save))
	if len(got) != 2 || got[0].Class != OfNobody || !strings.Contains(got[0].Name, "aaaa") || got[1].Owner != i {
		t.Errorf("%+v", got)
	}
}
