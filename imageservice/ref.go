package imageservice

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/store"
)

// Ref is a parsed image reference.
type Ref struct {
	Domain string        // "docker.io"
	Path   string        // "library/busybox"
	Tag    string        // "" when only a digest was given
	Digest digest.Digest // "" when only a tag was given; wins over Tag
	// Platform is what a list of manifests is to be read for, "linux/arm64"; "" for
	// the node's. It is no part of the written form.
	Platform string
}

// ParseRef reads a reference the way docker and containerd do: the default
// registry is docker.io, the default tag "latest". InvalidArgument when it is none.
func ParseRef(s string) (Ref, error) {
	if d := digest.Digest(s); d.Validate() == nil {
		return Ref{}, fmt.Errorf("%s is an image ID, not a reference: a registry cannot look it up: %w", s, errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Ref{}, fmt.Errorf("parse image reference %.300q: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	r := Ref{Domain: reference.Domain(named), Path: reference.Path(named)}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
		return r, nil
	}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	return r, nil
}

// Name is the repository: "docker.io/library/busybox".
func (r Ref) Name() string { return r.Domain + "/" + r.Path }

// Object is what to ask the registry for: the digest, or else the tag.
func (r Ref) Object() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// String is the normalized reference, as RepoTags and RepoDigests have it.
func (r Ref) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest.String()
	}
	return r.Name() + ":" + r.Tag
}

// pinnedNames reads patterns of names. Without a "*" a pattern is a name in any
// of its forms, with one it is matched against whole names.
func pinnedNames(patterns []string) []*regexp.Regexp {
	var out []*regexp.Regexp
	for _, p := range patterns {
		if ref, err := ParseRef(p); err == nil {
			p = ref.String()
		}
		out = append(out, regexp.MustCompile("^"+strings.ReplaceAll(regexp.QuoteMeta(p), `\*`, ".*")+"$"))
	}
	return out
}

// isPinned reports whether the node's administrator wants the image to stay.
func (s *Service) isPinned(img store.Image) bool {
	list := s.pinned.Load()
	if list == nil {
		return false
	}
	tags, digests := img.Names()
	for _, p := range *list {
		if slices.ContainsFunc(append(tags, digests...), p.MatchString) {
			return true
		}
	}
	return false
}

// key is how the store finds the name, or another of the same repository.
func (r Ref) key(name string) string {
	if r.Platform != "" {
		return r.Platform + " " + name
	}
	return name
}

// looksLikeID matches image IDs, full or shortened, with or without algorithm.
// A bare short hex string may be a repository name as well: callers try both.
var looksLikeID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{3,64}$`)

// wholeID matches what can be nothing but an ID: no repository may be named so.
var wholeID = regexp.MustCompile(`^(sha256:[0-9a-f]+|[0-9a-f]{64})$`)
