package suite

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

func badImageStories() []story {
	return []story{
		{name: "image/damaged on the way", tell: damagedImages},
		{name: "image/removed while used", tell: removedWhileUsed},
		{name: "image/hostile layers", berth: true, alone: true, tell: hostileImages},
		{name: "image/full disk", berth: true, alone: true, tell: fullDisk},
	}
}

func (n *node) tryPull(t *testing.T, ref string) error {
	t.Helper()
	_, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err
}

// damagedImages pulls what the registry serves wrongly, and then rightly.
func damagedImages(t *testing.T, n *node) {
	if n.reg == nil {
		t.Skip("needs the suite's own registry: give -hosts-dir")
	}
	bad := []string{images.BadDigest, images.BadLength, images.BadCut}
	for _, name := range bad {
		err := n.tryPull(t, n.ref(name+":1"))
		if err == nil {
			t.Errorf("%s was pulled", name)
		}
		if n.own != nil {
			wantCode(t, name, err, codes.DataLoss, codes.Unavailable)
		}
		if img := n.imageStatus(t, n.ref(name+":1")); img != nil {
			t.Errorf("%s has a status after a failed pull: %v", name, img)
		}
	}
	n.reg.Heal()
	if n.own == nil {
		return // containerd keeps wrong bytes and fails again because of them
	}
	p := n.pod(t)
	for _, name := range bad {
		equal(t, name, p.output(t, image(name+":1"), shell("cat /note")), name+"\n")
	}
}

// removedWhileUsed takes an image away from under a container.
func removedWhileUsed(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, image("whiteout:1"), probe("sleep"))
	n.removeImage(t, n.ref("whiteout:1"))
	equal(t, "file of the image", c.sh(t, "cat /full/new"), "new")
	equal(t, "state", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	again := p.containerConfig(t, probe("sleep"))
	again.Image.Image = n.ref("whiteout:1")
	if _, err := p.tryCreate(t, again); err == nil {
		t.Error("a container was made of a removed image")
	}
	n.pull(t, "whiteout:1")
	d := p.run(t, image("whiteout:1"), probe("sleep"))
	equal(t, "file of the image pulled again", d.sh(t, "cat /full/new"), "new")
	equal(t, "file of the first", c.sh(t, "cat /full/new"), "new")
}

// hostileImages pulls layers that try to get out, or to fill the node.
func hostileImages(t *testing.T, n *node) {
	outside := t.TempDir()
	const limits = "[image]\nmax_layer_size = \"16MiB\"\nmax_layer_files = 1000\n"
	reg := func(name string) images.File { return images.File{Name: name, Mode: 0o644, Body: []byte("escaped")} }
	link := func(name, to string) images.File { return images.File{Name: name, Type: tar.TypeSymlink, Link: to} }
	var devices, deep []images.File
	for i := range 2000 {
		devices = append(devices, images.File{Name: fmt.Sprintf("dev/d%d", i), Mode: 0o666, Type: tar.TypeBlock})
		deep = append(deep, images.File{Name: fmt.Sprintf("f%d", i), Mode: 0o644})
	}
	hostile := map[string][]images.File{
		"dotdot":        {reg("../../../../../../../.." + outside + "/dotdot")},
		"absolute":      {reg(outside + "/absolute")},
		"symlink":       {link("way", outside), reg("way/symlink")},
		"relative":      {link("way", "../../../../../../../.."+outside), reg("way/relative")},
		"hardlink":      {{Name: "passwd", Type: tar.TypeLink, Link: "../../../../../../../../etc/passwd"}},
		"hard-absolute": {link("way", "/etc"), {Name: "passwd", Type: tar.TypeLink, Link: "way/passwd"}},
		"devices":       devices,
		"files":         deep,
		"zeros":         {{Name: "zeros", Mode: 0o644, Body: make([]byte, 64<<20)}},
	}
	more := map[string]any{}
	for name, files := range hostile {
		img, err := images.Build(images.Spec{Layers: []images.Layer{{Files: files, Compression: images.Zstd}}})
		must(t, err)
		more["hostile-"+name+":1"] = img
	}
	s := n.spare(t, harness.Config{TOML: limits}, nil, more)
	for name := range hostile {
		err := s.tryPull(t, s.ref("hostile-"+name+":1"))
		switch name {
		case "devices", "files", "zeros":
			wantCode(t, name, err, codes.ResourceExhausted)
		case "absolute", "symlink", "relative":
			// What stays inside the image is no harm: the path is one below its root.
			wantCode(t, name, err, codes.OK, codes.InvalidArgument)
		default:
			wantCode(t, name, err, codes.InvalidArgument)
		}
		if _, err := os.Stat(filepath.Join(outside, name)); err == nil {
			t.Errorf("%s: a file was written outside of the image", name)
		}
	}
	equal(t, "exit code of an honest image", s.pod(t).run(t, probe("exit", "0")).wait(t).GetExitCode(), 0)
}

// fullDisk fills the file system of the state directory.
func fullDisk(t *testing.T, n *node) {
	s := n.spare(t, harness.Config{}, func(own *harness.Node) {
		out, err := own.Space().Command(t.Context(), "mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", own.Dir("state")).CombinedOutput()
		if err != nil {
			t.Fatalf("mount tmpfs: %v: %s", err, out)
		}
	}, nil)
	inside := func(script string) {
		t.Helper()
		if out, err := s.own.Space().Command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	fill := s.own.Dir("state", "fill")
	s.pull(t, "probe:1")
	inside("cat /dev/zero > " + fill + " 2>/dev/null || true")
	wantCode(t, "pull to a full disk", s.tryPull(t, s.ref("scratch:1")), codes.ResourceExhausted)
	pc := s.podConfig(t)
	_, err := s.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pc})
	wantCode(t, "pod on a full disk", err, codes.OK, codes.ResourceExhausted)
	inside("rm " + fill)
	must(t, s.tryPull(t, s.ref("scratch:1")))
	p := s.podOf(t, pc)
	equal(t, "exit code with room again", p.run(t, probe("exit", "0")).wait(t).GetExitCode(), 0)
}
