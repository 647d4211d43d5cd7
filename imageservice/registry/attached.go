package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers returns the index of what refers to the manifest, from the first
// host that knows of anything; NotFound when none does, or none can tell. What
// the index says is not covered by a digest. More than limit bytes are
// ResourceExhausted.
func (s *Session) Referrers(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	var raw []byte
	object := "referrers/" + d.String()
	err := s.each(ctx, object, func(host docker.RegistryHost, last bool) error {
		var err error
		r := request{method: http.MethodGet, path: object, header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}}}
		if raw, err = s.document(ctx, host, r, limit, last); err != nil {
			if errdefs.IsFailedPrecondition(err) {
				err = fmt.Errorf("%w: it does not list referrers: %w", err, errdefs.ErrNotFound)
			}
			return err
		}
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return fmt.Errorf("host %s: list of referrers: %w: %w", host.Host, err, errdefs.ErrDataLoss)
		}
		if len(index.Manifests) == 0 {
			return fmt.Errorf("host %s knows no referrers of %s: %w", host.Host, d, errdefs.ErrNotFound)
		}
		return nil
	})
	return raw, err
}

// Small reads a blob of at most limit bytes into memory. Bytes that do not
// match digest and size are DataLoss.
func (s *Session) Small(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, the limit is %d: %w", desc.Digest, desc.Size, limit, errdefs.ErrResourceExhausted)
	}
	var raw []byte
	object := "blobs/" + desc.Digest.String()
	err := s.each(ctx, object, func(host docker.RegistryHost, last bool) error {
		var err error
		r := request{method: http.MethodGet, path: object, header: http.Header{"Accept": {"*/*"}}}
		if raw, err = s.document(ctx, host, r, limit, last); err != nil {
			return err
		}
		if int64(len(raw)) != desc.Size || desc.Digest.Algorithm().FromBytes(raw) != desc.Digest {
			return fmt.Errorf("host %s served wrong bytes for blob %s: %w", host.Host, desc.Digest, errdefs.ErrDataLoss)
		}
		return nil
	})
	return raw, err
}

// document reads an answer whole.
func (s *Session) document(ctx context.Context, host docker.RegistryHost, r request, limit int64, last bool) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := s.do(ctx, host, r, last)
	if err != nil {
		return nil, err
	}
	body := s.watch(resp.Body, cancel, host.Host)
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("host %s: read %s: %w: %w", host.Host, r.path, err, errdefs.ErrUnavailable)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("host %s: %s is larger than %d bytes: %w", host.Host, r.path, limit, errdefs.ErrResourceExhausted)
	}
	return raw, nil
}
