package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

// TestIntegrationFill: a container begins with what another had written and
// removed, and a tar that is up to something writes nowhere else.
func TestIntegrationFill(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "lib/app", "v1")
	n := newNode(t, nil)
	n.mustPull(t, reg.Host()+"/lib/app:v1")
	img, err := n.Resolve(t.Context(), &runtimeapi.ImageSpec{Image: reg.Host() + "/lib/app:v1"})
	if err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	link := func(name, to string) rt.File {
		return rt.File{Header: tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}}
	}
	cid := strings.Repeat("ab", 32)
	target := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	files := rt.Tar(t, dir("etc/", 0o711), file("etc/a", "changed"), file("new", "new"), link("out", outside), file("out/through", "x"),
		file("etc/.wh.b", ""), file(".wh.old", ""))
	if err := n.Fill(t.Context(), cid, img, bytes.NewReader(files)); err != nil {
		t.Fatal(err)
	}
	if err := n.Mount(t.Context(), cid, img, target, store.RootView{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"etc/a": "changed", "etc/hard": "lower", "new": "new"} {
		if b, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for _, name := range []string{"etc/b", "old", "etc/gone"} {
		if _, err := os.Lstat(filepath.Join(target, name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for what, bad := range map[string][]rt.File{
		"path that climbs":      {file("../../escaped", "x")},
		"hard link that climbs": {{Header: tar.Header{Name: "hard", Linkname: "../../../etc/passwd", Typeflag: tar.TypeLink}}},
	} {
		if err := n.Fill(t.Context(), strings.Repeat("cd", 32), img, bytes.NewReader(rt.Tar(t, bad...))); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	shm := t.TempDir()
	if err := n.Unpack(t.Context(), shm, bytes.NewReader(rt.Tar(t, file("one", "1"), link("out", outside), file("out/through", "x")))); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(shm, "one")); err != nil || string(b) != "1" {
		t.Errorf("%q, %v", b, err)
	}
	if err := n.Unpack(t.Context(), shm, bytes.NewReader(rt.Tar(t, file("../escaped", "x")))); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("written through a link: %v, %v", left, err)
	}
	for _, id := range []string{cid, strings.Repeat("cd", 32)} {
		if err := errors.Join(n.Unmount(context.Background(), id, target), n.Remove(context.Background(), id)); err != nil {
			t.Error(err)
		}
	}
	n.clean(t, 3)
}
