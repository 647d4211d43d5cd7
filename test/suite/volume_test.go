package suite

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func volumeStories() []story {
	return append(imagectlStories(), []story{
		{name: "volume/image", tell: volumeImage},
		{name: "volume/sub path", tell: volumeSubPath},
		{name: "volume/artifact", berth: true, tell: volumeArtifact},
		{name: "volume/user namespace", berth: true, tell: volumeUserNS},
		{name: "volume/refusals", tell: volumeRefusals},
		{name: "volume/removed image and restart", owned: true, tell: volumeRestart},
	}...)
}

// volume mounts an image, by its ID as the kubelet does.
func (n *node) volume(t *testing.T, ref, path, sub string) edit {
	t.Helper()
	id := n.imageStatus(t, n.pull(t, ref)).GetId()
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: path, Image: &runtimeapi.ImageSpec{Image: id}, ImageSubPath: sub, Readonly: true})
	}
}

func volumeImage(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"), n.volume(t, "whiteout:1", "/vol", ""), n.volume(t, "scratch:1", "/other", ""))
	equal(t, "merged layers", c.sh(t, "ls -A /vol/data /vol/full | xargs"), "/vol/data: kept /vol/full: new")
	equal(t, "second volume", c.sh(t, "ls /other/probe"), "/other/probe")
	if r := c.exec(t, "/bin/sh", "-c", "touch /vol/x"); r.GetExitCode() == 0 || !strings.Contains(string(r.GetStderr()), "Read-only") {
		t.Errorf("a write to an image volume: code %d, %s", r.GetExitCode(), r.GetStderr())
	}
	mounts := c.status(t).GetMounts()
	equal(t, "mounts", len(mounts), 2)
	for i, ref := range []string{"whiteout:1", "scratch:1"} {
		img := n.imageStatus(t, n.ref(ref))
		equal(t, "image_ref of a mount", mounts[i].GetImage().GetImageRef(), img.GetId())
		equal(t, "image of a mount", mounts[i].GetImage().GetImage(), img.GetId())
	}
	c.stop(t, 0)
	c.remove(t)
}

func volumeSubPath(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"),
		n.volume(t, "whiteout:1", "/vol", "data"), n.volume(t, "whiteout:1", "/file", "full/new"),
		n.volume(t, "linked:1", "/linked", "out"), n.volume(t, "linked:1", "/up", "up"))
	equal(t, "directory", c.sh(t, "ls -A /vol"), "kept")
	equal(t, "file", c.sh(t, "cat /file"), "new")
	equal(t, "an absolute symlink stays in the image", c.sh(t, "cat /linked/marker"), "image")
	has(t, "a symlink that climbs stays in the image", c.sh(t, "cat /up"), "alice")
}

func volumeArtifact(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"), n.volume(t, "artifact:1", "/vol", ""), n.volume(t, "artifact:1", "/numbers", "data/numbers"))
	equal(t, "files", c.sh(t, "cat /vol/notes.txt /vol/data/numbers /numbers"), "an artifact\n1 2 3\n1 2 3")
	img := n.imageStatus(t, n.ref("artifact:1"))
	equal(t, "image_ref", c.status(t).GetMounts()[0].GetImage().GetImageRef(), img.GetId())
}

func volumeUserNS(t *testing.T, n *node) {
	c := n.usernsPod(t).run(t, probe("sleep"), n.volume(t, "whiteout:1", "/vol", ""), n.volume(t, "whiteout:1", "/sub", "data"),
		func(c *runtimeapi.ContainerConfig) {
			c.Mounts[0].UidMappings, c.Mounts[0].GidMappings = idMappings(), idMappings()
		})
	equal(t, "files", c.sh(t, "cat /vol/data/kept /sub/kept | xargs"), "kept kept")
	equal(t, "owners", c.sh(t, "stat -c %u:%g /vol/data/kept /vol/home/alice | xargs"), "0:0 1000:1000")
}

func volumeRefusals(t *testing.T, n *node) {
	p := n.pod(t)
	create := func(edits ...edit) error {
		r, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig(t, edits...), SandboxConfig: p.config})
		if err == nil {
			t.Errorf("made container %s", r.GetContainerId())
		}
		return err
	}
	for _, sub := range []string{"no/such", "/data", "../data", "data/../../data", "data/kept/x"} {
		if err := create(n.volume(t, "whiteout:1", "/vol", sub)); n.own != nil && err != nil {
			has(t, "error for sub path "+sub, err.Error(), "ImageVolumeMountFailed", "image_sub_path")
		}
	}
	writable := func(c *runtimeapi.ContainerConfig) { c.Mounts[0].Readonly = false }
	if err := create(n.volume(t, "whiteout:1", "/vol", ""), writable); n.own != nil {
		wantCode(t, "create with a volume to write to", err, codes.InvalidArgument)
	}
	absent := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/vol", Image: &runtimeapi.ImageSpec{Image: n.ref("absent:1")}}}
	}
	if err := create(absent); n.own != nil {
		wantCode(t, "create with an absent image", err, codes.NotFound)
	}
	if n.own != nil {
		wantCode(t, "run an artifact", create(image("artifact:1")), codes.InvalidArgument)
	}
}

// volumeRestart: a container keeps what it mounts, though the image is removed
// and the daemon starts again; afterwards it goes.
func volumeRestart(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, probe("sleep"), n.volume(t, "whiteout:1", "/vol", ""))
	n.removeImage(t, n.ref("whiteout:1"))
	must(t, n.own.Kill())
	must(t, n.own.Start(t.Context()))
	equal(t, "files", c.sh(t, "cat /vol/data/kept"), "kept")
	again := p.create(t, probe("sleep"), n.volume(t, "linked:1", "/vol", ""))
	must(t, n.own.Kill())
	must(t, n.own.Start(t.Context()))
	again.start(t)
	equal(t, "files of a container started by a later daemon", again.sh(t, "cat /vol/etc/marker"), "image")
}
