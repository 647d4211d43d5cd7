package imageservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/imageservice/registry"
	"github.com/berth-dev/berth/imageservice/signature"
	"github.com/berth-dev/berth/store"
)

// SetSignatures puts a policy in force, for what is pulled and for containers
// that are created from now on. Nil allows everything.
func (s *Service) SetSignatures(p *signature.Policy) { s.policy.Store(p) }

// permitted reports whether containers may use the image. It asks nobody: the
// image's record says what was verified when it was pulled. The error is
// signature.ErrRefused and FailedPrecondition.
func (s *Service) permitted(img store.Image) error {
	p := s.policy.Load()
	if p == nil {
		return nil
	}
	var names []string
	tags, digests := img.Names()
	for _, n := range append(tags, digests...) {
		ref, err := ParseRef(n)
		if err != nil {
			return fmt.Errorf("%w: the name %.300q of image %s cannot be read: %w: %w", signature.ErrRefused, n, img.ID, err, errdefs.ErrFailedPrecondition)
		}
		names = append(names, ref.Name())
	}
	slices.Sort(names)
	if err := p.Permit(slices.Compact(names), isVerified(img)); err != nil {
		return fmt.Errorf("%w (image %s): %w", err, img.ID, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// isVerified answers whether the image's signatures were found to meet a
// requirement. Any manifest of the image will do: its ID stands for all that
// runs, and other manifests only pack the same layers otherwise.
func isVerified(img store.Image) func(digest.Digest) bool {
	return func(want digest.Digest) bool {
		return slices.ContainsFunc(img.Verified, func(v store.Verification) bool { return v.Requirement == want.String() })
	}
}

// verify decides by its signatures whether the image may be pulled under the
// name, and notes in its record what was found out.
func (s *Service) verify(ctx context.Context, sess *registry.Session, ref Ref, t target, img *store.Image) error {
	known := *img
	if old, err := s.db.Image(img.ID); err == nil {
		known.Verified = old.Verified
	}
	digests := []digest.Digest{t.top}
	if t.digest != t.top {
		digests = append(digests, t.digest)
	}
	v, err := s.policy.Load().Verify(ctx, ref.Name(), digests, attached{sess}, isVerified(known))
	if err != nil {
		return err
	}
	if v.Requirement != "" {
		s.cfg.Logger.Info("verified image", "ref", ref.String(), "manifest", t.digest, "signed_by", v.By)
		img.Verified = []store.Verification{{
			Manifest: t.digest.String(), Requirement: v.Requirement.String(), By: v.By, At: time.Now(),
		}}
	}
	return nil
}

// maxVerifications is how many former requirements an image's record remembers.
const maxVerifications = 8

// remembered joins what was verified now and before, newest first.
func remembered(now, before []store.Verification) []store.Verification {
	out := slices.Clone(now)
	for _, v := range before {
		same := func(o store.Verification) bool { return o.Manifest == v.Manifest && o.Requirement == v.Requirement }
		if len(out) < maxVerifications && !slices.ContainsFunc(out, same) {
			out = append(out, v)
		}
	}
	return out
}

// attached reads signatures through a session.
type attached struct{ *registry.Session }

// Document implements signature.Source.
func (a attached) Document(ctx context.Context, object string, limit int64) ([]byte, error) {
	m, err := a.Manifest(ctx, object, limit)
	return m.Raw, err
}

// Blob implements signature.Source.
func (a attached) Blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	return a.Small(ctx, d, limit)
}

// pullError says what failed. The kubelet looks for ErrRefused in the first word.
func pullError(ref Ref, err error) error {
	if errors.Is(err, signature.ErrRefused) {
		return err
	}
	return fmt.Errorf("pull image %s: %w", ref, err)
}
