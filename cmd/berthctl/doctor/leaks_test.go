package doctor

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
