package bench

import (
	"context"
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// fetch makes sure of the pods' image, and says whether it was not there before.
func (b *bench) fetch(ctx context.Context) (fetched bool, err error) {
	spec := &runtimeapi.ImageSpec{Image: b.plan.Image}
	st, err := b.cl.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return false, fmt.Errorf("look for image %s: %w", b.plan.Image, err)
	}
	if b.image = st.GetImage().GetId(); b.image != "" {
		return false, nil
	}
	r, err := b.cl.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec})
	if err != nil {
		return false, fmt.Errorf("pull image %s: %w", b.plan.Image, err)
	}
	b.image = r.GetImageRef()
	return true, nil
}

func (b *bench) removeImage(ctx context.Context, name string) error {
	if _, err := b.cl.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	return nil
}

// pulls measures pulls of an image that is not there, and removes it each time.
func (b *bench) pulls(ctx context.Context) (_ *Stats, err error) {
	spec := &runtimeapi.ImageSpec{Image: b.plan.Pull}
	st, err := b.cl.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, fmt.Errorf("look for image %s: %w", b.plan.Pull, err)
	}
	if st.GetImage() != nil {
		return nil, cli.Failed(fmt.Errorf("image %s is there already, so its pull cannot be measured", b.plan.Pull), "Remove it, or name another with --pull.")
	}
	b.say("%d pulls of %s", b.plan.Pulls, b.plan.Pull)
	return measurePulls(b.plan.Pulls, func() error {
		if _, err := b.cl.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
			return fmt.Errorf("pull image %s: %w", b.plan.Pull, err)
		}
		return nil
	}, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWait)
		defer cancel()
		return b.removeImage(ctx, b.plan.Pull)
	})
}

// measurePulls measures pull n times, and removes after each, also after one that failed.
func measurePulls(n int, pull, remove func() error) (*Stats, error) {
	var r recorder
	for range n {
		err := r.time("", pull)
		if err = errors.Join(err, remove()); err != nil {
			return nil, err
		}
	}
	s := r.stats()[""]
	return &s, nil
}
