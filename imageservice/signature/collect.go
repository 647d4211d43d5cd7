package signature

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source reads from the repository of an image. More than limit bytes are
// ResourceExhausted, what is not there NotFound.
type Source interface {
	// Referrers returns the index of what refers to the manifest. NotFound says
	// that there is nothing, or that the registry cannot tell.
	Referrers(ctx context.Context, d digest.Digest, limit int64) ([]byte, error)
	// Document returns a manifest or index by tag or digest, which is checked.
	Document(ctx context.Context, object string, limit int64) ([]byte, error)
	// Blob returns a blob, checked against its digest and size.
	Blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error)
}

// Bounds of what a registry can make us read. Real ones have a few kilobytes.
const (
	maxDocument   = 1 << 20
	maxSignatures = 16 // of each form, of one manifest
)

const (
	bundleType    = "application/vnd.dev.sigstore.bundle" // all versions begin so
	legacyType    = "application/vnd.dev.cosign.simplesigning.v1+json"
	noteSignature = "dev.cosignproject.cosign/signature"
	noteCert      = "dev.sigstore.cosign/certificate"
	noteLog       = "dev.sigstore.cosign/bundle"
)

// collect returns the signatures the registry has for the manifest, with both
// an error and signatures when some could not be read.
func collect(ctx context.Context, src Source, d digest.Digest) ([]Signature, error) {
	bundles, err := bundles(ctx, src, d)
	old, err2 := legacy(ctx, src, d)
	if err == nil {
		err = err2
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return append(bundles, old...), err
}

// tagOf is the tag under which tools keep what belongs to a manifest, where
// the registry cannot list referrers.
func tagOf(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// bundles finds sigstore bundles: artifacts that refer to the manifest.
func bundles(ctx context.Context, src Source, d digest.Digest) ([]Signature, error) {
	raw, err := src.Referrers(ctx, d, maxDocument)
	if errdefs.IsNotFound(err) {
		raw, err = src.Document(ctx, tagOf(d), maxDocument)
	}
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list of signatures: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("list of signatures: %w: %w", err, errdefs.ErrDataLoss)
	}
	var out []Signature
	tried := 0
	for _, m := range index.Manifests {
		if !strings.HasPrefix(m.ArtifactType, bundleType) {
			continue
		}
		if tried++; tried > maxSignatures {
			break
		}
		b, berr := bundle(ctx, src, m)
		if berr != nil {
			err = fmt.Errorf("signature %s: %w", m.Digest, berr)
			continue
		}
		for _, raw := range b {
			out = append(out, Signature{Digest: d, Bundle: raw})
		}
	}
	return out, err
}

func bundle(ctx context.Context, src Source, m ocispec.Descriptor) ([][]byte, error) {
	if err := m.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %.100q: %w: %w", string(m.Digest), err, errdefs.ErrDataLoss)
	}
	layers, err := layersOf(ctx, src, m.Digest.String())
	var out [][]byte
	for _, l := range layers {
		if !strings.HasPrefix(l.MediaType, bundleType) {
			continue
		}
		raw, err := src.Blob(ctx, l, maxDocument)
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, err
}

// layersOf reads the layers of a signature's manifest, no more than count.
func layersOf(ctx context.Context, src Source, object string) ([]ocispec.Descriptor, error) {
	raw, err := src.Document(ctx, object, maxDocument)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", err, errdefs.ErrDataLoss)
	}
	layers := m.Layers[:min(len(m.Layers), maxSignatures)]
	for _, l := range layers {
		if err := l.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("digest %.100q: %w: %w", string(l.Digest), err, errdefs.ErrDataLoss)
		}
	}
	return layers, nil
}

// legacy finds signatures of cosign's older form: the layers of an image under
// a tag that is made of the digest.
func legacy(ctx context.Context, src Source, d digest.Digest) ([]Signature, error) {
	layers, err := layersOf(ctx, src, tagOf(d)+".sig")
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	var out []Signature
	for _, l := range layers {
		if l.MediaType != legacyType || l.Annotations[noteSignature] == "" {
			continue
		}
		payload, perr := src.Blob(ctx, l, maxDocument)
		if perr != nil {
			err = fmt.Errorf("signature %s: %w", l.Digest, perr)
			continue
		}
		out = append(out, Signature{Digest: d, Legacy: &Legacy{
			Payload: payload, Signature: l.Annotations[noteSignature], Certificate: l.Annotations[noteCert], Log: l.Annotations[noteLog],
		}})
	}
	return out, err
}
