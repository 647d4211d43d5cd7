package imageservice

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/store"
)

func TestParseRef(t *testing.T) {
	const d = "sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for in, want := range map[string]string{
		"busybox": "docker.io/library/busybox:latest", "a/b:1": "docker.io/a/b:1", "localhost:5000/x": "localhost:5000/x:latest",
		"q.io/a/b:t@" + d: "q.io/a/b@" + d, "q.io/a/b@" + d: "q.io/a/b@" + d, "": "", "Upper": "", "a:b:c": "", d: "", "../x": "", "https://q.io/x": "",
	} {
		r, err := ParseRef(in)
		if (err == nil) != (want != "") || (err == nil && r.String() != want) {
			t.Errorf("%q: got %v, %v, want %q", in, r, err, want)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("busybox")
	f.Add("localhost:5000/a/b:c@sha256:0123456789012345678901234567890123456789012345678901234567890123")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		again, err := ParseRef(r.String())
		if err != nil || again != r {
			t.Fatalf("%q -> %q -> %v, %v", s, r, again, err)
		}
	})
}

func TestPinned(t *testing.T) {
	s := &Service{}
	for _, tt := range []struct {
		pattern, names string
		want           bool
	}{
		{"busybox:1", "docker.io/library/busybox:1", true},
		{"busybox", "docker.io/library/busybox:1", false},
		{"busybox", "docker.io/library/busybox:latest", true},
		{"registry.k8s.io/pause*", "other.test/x:1 registry.k8s.io/pause:3.10", true},
		{"registry.k8s.io/pause*", "registry.k8s.io/pause@sha256:" + strings.Repeat("a", 64), true},
		{"registry.k8s.io/pause*", "mirror.test/registry.k8s.io/pause:3.10", false},
		{"registry.k8s.io/pause*", "registryxk8s.io/pause:3.10", false},
		{"*/pause:*", "mirror.test/registry.k8s.io/pause:3.10", true},
		{"*", "", false},
	} {
		p := pinnedNames([]string{"nothing.test/x:1", tt.pattern})
		s.pinned.Store(&p)
		if got := s.isPinned(store.Image{RepoTags: strings.Fields(tt.names)}); got != tt.want {
			t.Errorf("%s pins %q: %v", tt.pattern, tt.names, got)
		}
	}
}
