package suite

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/images"
)

func imageStories() []story {
	return []story{
		{name: "image/pull list status remove", tell: imageLife},
		{name: "image/by digest", tell: imageByDigest},
		{name: "image/one of two registries", tell: imageOfTwoRegistries},
		{name: "image/compressions", tell: imageCompressions},
		{name: "image/whiteouts", tell: imageWhiteouts},
		{name: "image/many platforms", tell: imagePlatforms},
		{name: "image/credentials", tell: imageCredentials},
		{name: "image/tls", tell: imageTLS},
		{name: "image/unknown and unreachable", tell: imageMissing},
		{name: "image/fs info", tell: imageFSInfo},
	}
}

func (n *node) imageStatus(t *testing.T, ref string) *runtimeapi.Image {
	t.Helper()
	r, err := n.im.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	must(t, err)
	return r.GetImage()
}

func imageLife(t *testing.T, n *node) {
	ref := n.pull(t, "busybox:1")
	img := n.imageStatus(t, ref)
	if img == nil {
		t.Fatal("a pulled image has no status")
	}
	if !strings.HasPrefix(img.GetId(), "sha256:") || img.GetSize() == 0 || len(img.GetRepoDigests()) != 1 {
		t.Errorf("status is not complete: %v", img)
	}
	equal(t, "tag", strings.Join(img.GetRepoTags(), " "), ref)
	for _, other := range []string{img.GetId(), strings.TrimPrefix(img.GetId(), "sha256:"), img.GetRepoDigests()[0]} {
		if got := n.imageStatus(t, other); got.GetId() != img.GetId() {
			t.Errorf("status by %s: %v", other, got)
		}
	}
	l, err := n.im.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}}})
	must(t, err)
	if n.own != nil { // containerd lists all images, whatever the filter
		equal(t, "images listed by tag", len(l.GetImages()), 1)
	}
	v, err := n.im.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
	must(t, err)
	if len(v.GetInfo()) == 0 {
		t.Error("verbose status has no info")
	}
	n.removeImage(t, ref)
	if got := n.imageStatus(t, ref); got != nil {
		t.Errorf("a removed image has a status: %v", got)
	}
	n.removeImage(t, ref)
	n.pull(t, "busybox:1")
}

func (n *node) removeImage(t *testing.T, ref string) {
	t.Helper()
	_, err := n.im.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	must(t, err)
}

func imageByDigest(t *testing.T, n *node) {
	digest := n.imageStatus(t, n.pull(t, "scratch:1")).GetRepoDigests()[0]
	n.removeImage(t, n.ref("scratch:1"))
	r, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: digest}})
	must(t, err)
	if r.GetImageRef() == "" {
		t.Error("the pull names no image")
	}
	img := n.imageStatus(t, digest)
	equal(t, "tags of an image pulled by digest", len(img.GetRepoTags()), 0)
	n.removeImage(t, digest)
}

// imageOfTwoRegistries: the same image from two registries is one image, under
// one ID wherever the CRI tells it, with the names of both.
func imageOfTwoRegistries(t *testing.T, n *node) {
	if n.reg == nil {
		t.Skip("needs the suite's own registry: give -hosts-dir")
	}
	names := []string{images.HostPlain + "/cmd:1", images.HostTLS + "/cmd:1"}
	var id string
	for _, name := range names {
		r, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		must(t, err)
		if id == "" {
			id = r.GetImageRef()
		}
		equal(t, "image_ref of a pull of "+name, r.GetImageRef(), id)
	}
	img := n.imageStatus(t, id)
	equal(t, "ID", img.GetId(), id)
	equal(t, "tags", strings.Join(img.GetRepoTags(), " "), strings.Join(names, " "))
	equal(t, "digests", len(img.GetRepoDigests()), 2)
	p := n.pod(t)
	for _, name := range append(names, img.GetRepoDigests()...) {
		list, err := n.im.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: name}}})
		must(t, err)
		if len(list.GetImages()) != 1 || list.GetImages()[0].GetId() != id || n.imageStatus(t, name).GetId() != id {
			t.Errorf("%s: listed as %v, status of %s, want %s", name, list.GetImages(), n.imageStatus(t, name).GetId(), id)
		}
		r, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "of-" + strings.NewReplacer(":", "-", "/", "-", "@", "-").Replace(name)},
			Image:    &runtimeapi.ImageSpec{Image: name, UserSpecifiedImage: name},
		}})
		must(t, err)
		s, err := n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: r.GetContainerId()})
		must(t, err)
		equal(t, "image_id of the status", s.GetStatus().GetImageId(), id)
		equal(t, "name in the status", s.GetStatus().GetImage().GetUserSpecifiedImage(), name)
		l, err := n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: r.GetContainerId()}})
		must(t, err)
		equal(t, "image_id in the list", l.GetContainers()[0].GetImageId(), id)
		_, err = n.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: r.GetContainerId()})
		must(t, err)
	}
	n.removeImage(t, names[0])
	if got := n.imageStatus(t, names[1]); got != nil {
		t.Errorf("the image was removed, and is there under its other name: %v", got)
	}
}

func imageCompressions(t *testing.T, n *node) {
	p := n.pod(t)
	for _, name := range []string{"zstd", "plain"} {
		equal(t, name, strings.TrimSpace(p.output(t, image(name+":1"), shell("cat /note"))), name)
	}
}

func imageWhiteouts(t *testing.T, n *node) {
	c := n.pod(t).run(t, image("whiteout:1"), probe("sleep"))
	equal(t, "/data", c.sh(t, "ls -A /data"), "kept")
	equal(t, "/full", c.sh(t, "ls -A /full"), "new")
}

func imagePlatforms(t *testing.T, n *node) {
	has(t, "output", n.pod(t).output(t, image("multi:1"), probe("both")), "to stdout")
	_, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.ref("foreign:1")}})
	if err == nil {
		t.Error("an image for another platform was pulled")
	}
}

func imageCredentials(t *testing.T, n *node) {
	if n.reg == nil {
		t.Skip("needs the suite's own registry: give -hosts-dir")
	}
	pull := func(a *runtimeapi.AuthConfig) error {
		_, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.HostAuth + "/scratch:1"}, Auth: a})
		return err
	}
	for _, a := range []*runtimeapi.AuthConfig{nil, {Username: images.User, Password: "wrong"}} {
		if err := pull(a); err == nil {
			t.Errorf("pulled with credentials %v", a)
		}
	}
	must(t, pull(&runtimeapi.AuthConfig{Username: images.User, Password: images.Password}))
	n.removeImage(t, images.HostAuth+"/scratch:1")
}

func imageTLS(t *testing.T, n *node) {
	if n.reg == nil {
		t.Skip("needs the suite's own registry: give -hosts-dir")
	}
	ref := images.HostTLS + "/scratch:1"
	_, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	must(t, err)
	n.removeImage(t, ref)
}

func imageMissing(t *testing.T, n *node) {
	for _, c := range []struct {
		ref  string
		want []codes.Code
	}{
		{n.ref("no-such-image:1"), []codes.Code{codes.NotFound}},
		{n.ref("busybox:no-such-tag"), []codes.Code{codes.NotFound}},
		{"UPPER/not a reference", []codes.Code{codes.InvalidArgument, codes.Unknown}},
		{images.HostDead + "/a:1", []codes.Code{codes.Unavailable, codes.Unknown}},
	} {
		_, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: c.ref}})
		wantCode(t, "pull "+c.ref, err, c.want...)
	}
	if img := n.imageStatus(t, n.ref("no-such-image:1")); img != nil {
		t.Errorf("an unknown image has a status: %v", img)
	}
}

func imageFSInfo(t *testing.T, n *node) {
	n.pull(t, "probe:1")
	r, err := n.im.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	must(t, err)
	if len(r.GetImageFilesystems()) == 0 {
		t.Fatal("no image file system is reported")
	}
	fs := r.GetImageFilesystems()[0]
	if fs.GetFsId().GetMountpoint() == "" || fs.GetTimestamp() == 0 {
		t.Errorf("not complete: %v", fs)
	}
	if n.own != nil && (fs.GetUsedBytes().GetValue() == 0 || fs.GetInodesUsed().GetValue() == 0) {
		t.Errorf("no usage with an image on disk: %v", fs)
	}
}
