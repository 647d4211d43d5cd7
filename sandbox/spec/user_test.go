package spec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const passwdFile = `root:x:0:0:root:/root:/bin/sh
# a comment
broken:x:one:two
alice:x:1000:1000::/home/alice:/bin/sh
alice:x:7:7::/second:/bin/sh
nohome:x:1001:1001
relative:x:1002:1002::home:/bin/sh
`

const groupFile = `root:x:0:root
broken
alice:x:1000:
staff:x:50: bob, alice
wheel:x:10:alice,root
numbers:x:4294967296:alice
`

func id(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

func TestResolveUser(t *testing.T) {
	type sctx = runtimeapi.LinuxContainerSecurityContext
	strict := runtimeapi.SupplementalGroupsPolicy_Strict
	cases := []struct {
		name  string
		sc    *sctx
		image string
		want  User
	}{
		{"nothing", nil, "", User{Groups: []uint32{0, 10}, Home: "/root"}},
		{"image name", nil, "alice", User{1000, 1000, []uint32{1000, 50, 10}, "/home/alice"}},
		{"image uid", nil, "1000", User{1000, 1000, []uint32{1000, 50, 10}, "/home/alice"}},
		{"image unknown uid", nil, "42", User{UID: 42, Groups: []uint32{0}}},
		{"image uid:gid", nil, "42:43", User{UID: 42, GID: 43, Groups: []uint32{43}}},
		{"image user:group", nil, "alice:wheel", User{1000, 10, []uint32{10, 50}, "/home/alice"}},
		{"image group only", nil, ":staff", User{GID: 50, Groups: []uint32{50, 0, 10}, Home: "/root"}},
		{"uid", &sctx{RunAsUser: id(1000)}, "root:staff", User{1000, 1000, []uint32{1000, 50, 10}, "/home/alice"}},
		{"uid zero over image", &sctx{RunAsUser: id(0)}, "alice", User{Groups: []uint32{0, 10}, Home: "/root"}},
		{"uid and gid", &sctx{RunAsUser: id(1000), RunAsGroup: id(3000)}, "", User{1000, 3000, []uint32{3000, 50, 10}, "/home/alice"}},
		{"unknown uid", &sctx{RunAsUser: id(4294967294)}, "", User{UID: 4294967294, Groups: []uint32{0}}},
		{"name", &sctx{RunAsUsername: "alice"}, "root:staff", User{1000, 1000, []uint32{1000, 50, 10}, "/home/alice"}},
		{"name and gid", &sctx{RunAsUsername: "alice", RunAsGroup: id(9)}, "", User{1000, 9, []uint32{9, 50, 10}, "/home/alice"}},
		{"supplemental", &sctx{RunAsUser: id(1000), SupplementalGroups: []int64{10, 60}}, "", User{1000, 1000, []uint32{1000, 50, 10, 60}, "/home/alice"}},
		{"strict", &sctx{RunAsUser: id(1000), SupplementalGroups: []int64{60, 60}, SupplementalGroupsPolicy: strict}, "", User{1000, 1000, []uint32{1000, 60}, "/home/alice"}},
		{"no home", &sctx{RunAsUsername: "nohome"}, "", User{1001, 1001, []uint32{1001}, ""}},
		{"relative home", &sctx{RunAsUsername: "relative"}, "", User{1002, 1002, []uint32{1002}, ""}},
	}
	for _, c := range cases {
		got, err := ResolveUser([]byte(passwdFile), []byte(groupFile), c.sc, c.image)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
	if u, err := ResolveUser(nil, nil, nil, "5"); err != nil || u.UID != 5 {
		t.Errorf("without files: %v, %v", u, err)
	}
}

func TestResolveUserRefuses(t *testing.T) {
	type sctx = runtimeapi.LinuxContainerSecurityContext
	cases := []struct {
		name, image, text string
		sc                *sctx
	}{
		{"group without user", "alice", "run_as_group", &sctx{RunAsGroup: id(1)}},
		{"uid and name", "", "run_as_username", &sctx{RunAsUser: id(1), RunAsUsername: "alice"}},
		{"unknown name", "", `"mallory"`, &sctx{RunAsUsername: "mallory"}},
		{"number as name", "", `"1000"`, &sctx{RunAsUsername: "1000"}},
		{"unknown image user", "mallory", `"mallory"`, nil},
		{"unknown image group", "alice:cabal", `"cabal"`, nil},
		{"broken entry", "broken", `"broken"`, nil},
		{"negative uid", "", "run_as_user", &sctx{RunAsUser: id(-1)}},
		{"all-ones uid", "", "run_as_user", &sctx{RunAsUser: id(4294967295)}},
		{"large gid", "", "run_as_group", &sctx{RunAsUser: id(1), RunAsGroup: id(1 << 32)}},
		{"negative group", "", "supplemental_groups", &sctx{SupplementalGroups: []int64{-5}}},
		{"policy", "", "policy", &sctx{SupplementalGroupsPolicy: 3}},
	}
	for _, c := range cases {
		_, err := ResolveUser([]byte(passwdFile), []byte(groupFile), c.sc, c.image)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.text)
		}
	}
}

// FuzzResolveUser reads hostile account files: no panic, and what is found is
// always a possible identity.
func FuzzResolveUser(f *testing.F) {
	f.Add([]byte(passwdFile), []byte(groupFile), "alice:wheel")
	f.Add([]byte("a:x:1:1"), []byte(":::\n,"), "a")
	f.Add([]byte("\x00:::\r\n::::"), []byte(nil), ":")
	f.Fuzz(func(t *testing.T, passwd, group []byte, user string) {
		u, err := ResolveUser(passwd, group, nil, user)
		if err != nil {
			return
		}
		if u.UID == 1<<32-1 || u.GID == 1<<32-1 || slices.Contains(u.Groups, 1<<32-1) {
			t.Errorf("impossible ID in %+v", u)
		}
		if len(u.Groups) == 0 || u.Groups[0] != u.GID {
			t.Errorf("primary group is not first in %+v", u)
		}
		if u.Home != "" && (u.Home[0] != '/' || strings.ContainsAny(u.Home, "\x00\n")) {
			t.Errorf("home %q", u.Home)
		}
	})
}

// FuzzSeccompProfile reads hostile profiles: refused or evaluated, no panic.
func FuzzSeccompProfile(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64"}],"syscalls":[{"name":"a","action":"x","includes":{"minKernel":"4.8"}}]}`))
	f.Add([]byte(`{"syscalls":[null,{}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		in := base()
		sec(&in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/p")
		in.SeccompLocalhost = body
		if s, err := Build(in); err == nil && s.Linux.Seccomp == nil {
			t.Error("a profile was asked for and none is set")
		}
	})
}

func TestSeccompProfileFile(t *testing.T) {
	type sctx = runtimeapi.LinuxContainerSecurityContext
	local := profile(runtimeapi.SecurityProfile_Localhost, "/p.json")
	for _, c := range []struct {
		sc   *sctx
		want string
	}{
		{nil, ""}, {&sctx{Seccomp: local}, "/p.json"}, {&sctx{SeccompProfilePath: "localhost//q.json"}, "/q.json"},
		{&sctx{Seccomp: local, Privileged: true}, ""}, {&sctx{SeccompProfilePath: "runtime/default"}, ""},
	} {
		if got, err := SeccompProfileFile(c.sc); err != nil || got != c.want {
			t.Errorf("%v: got %q, %v, want %q", c.sc, got, err, c.want)
		}
	}
	if _, err := SeccompProfileFile(&sctx{SeccompProfilePath: "localhost/q.json"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative path: %v", err)
	}
}

func TestExecProcess(t *testing.T) {
	in := base()
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ExecProcess(s, []string{"sh", "-c", "true"}, true)
	if err != nil {
		t.Fatal(err)
	}
	want := *s.Process
	want.Args, want.Terminal = []string{"sh", "-c", "true"}, true
	want.Env = append(slices.Clone(s.Process.Env), "TERM=xterm")
	if d := cmp.Diff(want, *p); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if s.Process.Terminal || hasEnv(s.Process.Env, "TERM") {
		t.Error("the container's specification was changed")
	}
	if _, err := ExecProcess(s, nil, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no command: %v", err)
	}
	if _, err := ExecProcess(&specs.Spec{}, []string{"a"}, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no process: %v", err)
	}
}

func TestLinuxResourcesLeavesOutWhatIsNotGiven(t *testing.T) {
	r, err := LinuxResources(nil, Host{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&specs.LinuxResources{}, r); d != "" {
		t.Error(d)
	}
}
