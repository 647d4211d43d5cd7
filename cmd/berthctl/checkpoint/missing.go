package checkpoint

import (
	"fmt"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cmd/berthctl/image"
)

// ensureImages pulls the images that the containers were made from, by digest,
// when the node lacks them. A name may stand for another image by now: the
// digest takes its place then.
func (r restoration) ensureImages(c *cobra.Command, a *cli.App, cl cli.Clients, req *runtimeapi.RestorePodRequest) error {
	if r.pull != "missing" {
		return nil
	}
	all, err := open(req.GetCheckpointPath())
	if err != nil {
		return cli.Failed(err, nextRead)
	}
	refs := map[string]string{}
	for _, s := range all {
		refs[s.Name] = s.ImageRef
	}
	for _, k := range req.GetContainerConfigs() {
		if err := ensureImage(c, a, cl, k, refs[k.GetMetadata().GetName()]); err != nil {
			return err
		}
	}
	return nil
}

func ensureImage(c *cobra.Command, a *cli.App, cl cli.Clients, k *runtimeapi.ContainerConfig, ref string) error {
	if named, err := reference.ParseNormalizedNamed(ref); err != nil || reference.IsNameOnly(named) {
		return nil //nolint:nilerr // of an image without a registry; the daemon says what it lacks
	}
	id := func(name string) (string, error) {
		r, err := cl.Images.ImageStatus(c.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		return r.GetImage().GetId(), err
	}
	want, err := id(ref)
	if err == nil && want == "" {
		if err = image.Pull(c, a, ref, false); err == nil {
			want, err = id(ref)
		}
	}
	if err != nil {
		return err
	}
	has, err := id(k.GetImage().GetImage())
	if err != nil || has == want {
		return err
	}
	if k.Image == nil {
		k.Image = &runtimeapi.ImageSpec{}
	}
	k.Image.Image = ref
	return nil
}

func (r restoration) checkPull() error {
	if r.pull != "missing" && r.pull != "never" {
		return fmt.Errorf("--pull %q is unknown; use missing or never", r.pull)
	}
	return nil
}
