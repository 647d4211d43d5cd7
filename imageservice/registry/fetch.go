package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// accept lists the manifest types Berth can read.
const accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*"

// Manifest is a manifest or an index as a registry served it.
type Manifest struct {
	Digest    digest.Digest // computed from Raw
	MediaType string        // as the registry said; may be empty
	Raw       []byte
}

// Head returns the digest a tag stands for, or "" when no host says one.
func (s *Session) Head(ctx context.Context, object string) (digest.Digest, error) {
	var found digest.Digest
	err := s.each(ctx, object, func(host docker.RegistryHost) error {
		resp, err := s.do(ctx, host, manifestRequest(http.MethodHead, object))
		if err != nil {
			return err
		}
		drain(resp)
		d := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if d.Validate() == nil {
			found = d
		}
		return nil
	})
	return found, err
}

// Manifest reads a manifest by tag or digest; more than limit bytes are
// ResourceExhausted. A body that does not match the digest asked for, or the
// one the registry announced, is DataLoss.
func (s *Session) Manifest(ctx context.Context, object string, limit int64) (Manifest, error) {
	var m Manifest
	err := s.each(ctx, object, func(host docker.RegistryHost) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		resp, err := s.do(ctx, host, manifestRequest(http.MethodGet, object))
		if err != nil {
			return err
		}
		body := s.watch(resp.Body, cancel)
		defer body.Close()
		raw, err := io.ReadAll(io.LimitReader(body, limit+1))
		if err != nil {
			return fmt.Errorf("host %s: read manifest: %w: %w", host.Host, err, errdefs.ErrUnavailable)
		}
		if int64(len(raw)) > limit {
			return fmt.Errorf("host %s: manifest is larger than %d bytes: %w", host.Host, limit, errdefs.ErrResourceExhausted)
		}
		m = Manifest{Digest: digest.FromBytes(raw), Raw: raw, MediaType: mediaType(resp)}
		return checkManifest(host.Host, object, resp, m)
	})
	return m, err
}

func checkManifest(host, object string, resp *http.Response, m Manifest) error {
	want := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	if d := digest.Digest(object); d.Validate() == nil {
		want = d
	}
	if want.Validate() != nil {
		return nil // the registry announced none: the tag is what it served
	}
	if got := want.Algorithm().FromBytes(m.Raw); got != want {
		return fmt.Errorf("host %s: manifest has digest %s, expected %s: %w", host, got, want, errdefs.ErrDataLoss)
	}
	return nil
}

func manifestRequest(method, object string) request {
	return request{method: method, path: "manifests/" + object, header: http.Header{"Accept": {accept}}}
}

func mediaType(resp *http.Response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

// Source reads one blob, from any host that serves it.
type Source struct {
	s    *Session
	desc ocispec.Descriptor
	bad  map[string]bool // hosts that served wrong bytes
	last string          // host of the last Open
}

// Blob returns a source for the blob.
func (s *Session) Blob(desc ocispec.Descriptor) *Source {
	return &Source{s: s, desc: desc, bad: map[string]bool{}}
}

// Open starts reading at offset. Registries may ignore the range: start is
// where the returned bytes really begin.
func (b *Source) Open(ctx context.Context, offset int64) (rc io.ReadCloser, start int64, err error) {
	r := request{method: http.MethodGet, path: "blobs/" + b.desc.Digest.String(), header: http.Header{"Accept": {"*/*"}}}
	if offset > 0 {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, b.desc.Size-1))
	}
	err = b.s.each(ctx, b.desc.Digest.String(), func(host docker.RegistryHost) error {
		if b.bad[host.Host] {
			return fmt.Errorf("host %s served wrong bytes: %w", host.Host, errdefs.ErrDataLoss)
		}
		b.last = host.Host
		ctx, cancel := context.WithCancel(ctx)
		resp, err := b.s.do(ctx, host, r)
		if err != nil && errdefs.IsOutOfRange(err) && offset > 0 {
			// The registry cannot do ranges: take it from the start.
			resp, err = b.s.do(ctx, host, request{method: r.method, path: r.path, header: http.Header{"Accept": {"*/*"}}})
		}
		if err != nil {
			cancel()
			return err
		}
		start = 0
		if resp.StatusCode == http.StatusPartialContent {
			if start, err = rangeStart(resp.Header.Get("Content-Range")); err != nil || start > offset {
				cancel()
				return fmt.Errorf("host %s: unusable Content-Range %.60q: %w", host.Host, resp.Header.Get("Content-Range"), errdefs.ErrUnavailable)
			}
		}
		rc = b.s.watch(resp.Body, cancel)
		return nil
	})
	return rc, start, err
}

// Reject marks the host of the last Open as one that serves wrong bytes for
// this blob, and reports whether another host is left.
func (b *Source) Reject() bool {
	b.bad[b.last] = true
	for _, h := range b.s.hosts {
		if h.Capabilities.Has(docker.HostCapabilityPull) && !b.bad[h.Host] {
			return true
		}
	}
	return false
}

// rangeStart reads "bytes 5-9/10".
func rangeStart(v string) (int64, error) {
	v, ok := strings.CutPrefix(v, "bytes ")
	if !ok {
		return 0, errors.New("no byte range")
	}
	from, _, _ := strings.Cut(v, "-")
	return strconv.ParseInt(from, 10, 64)
}

// each calls try for every host that may serve object until one succeeds. The
// errors of all hosts are joined; the last host (the registry itself) decides
// the kind, except that a mirror's failure never hides it.
func (s *Session) each(ctx context.Context, object string, try func(docker.RegistryHost) error) error {
	caps := docker.HostCapabilityPull
	if digest.Digest(object).Validate() != nil {
		caps |= docker.HostCapabilityResolve
	}
	hosts, err := s.hostsFor(caps)
	if err != nil {
		return err
	}
	var others []string
	for i, h := range hosts {
		err = try(h)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if i < len(hosts)-1 {
			others = append(others, err.Error())
			s.reg.cfg.Logger.Warn("registry host failed, trying the next", "host", h.Host, "error", err)
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("%w (tried before: %s)", err, strings.Join(others, "; "))
	}
	return err
}

// watch ends a body that delivers nothing for StallTimeout. cancel ends the
// request the body belongs to.
func (s *Session) watch(rc io.ReadCloser, cancel context.CancelFunc) io.ReadCloser {
	w := &watched{rc: rc, cancel: cancel, limit: s.reg.cfg.StallTimeout}
	w.timer = time.AfterFunc(w.limit, func() {
		w.stalled.Store(true)
		cancel()
	})
	return w
}

type watched struct {
	rc      io.ReadCloser
	cancel  context.CancelFunc
	limit   time.Duration
	timer   *time.Timer
	stalled atomic.Bool
}

// Read reads and pushes the deadline back.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.rc.Read(p)
	if w.stalled.Load() {
		return n, fmt.Errorf("the registry sent nothing for %s: %w", w.limit, errdefs.ErrUnavailable)
	}
	if n > 0 {
		w.timer.Reset(w.limit)
	}
	return n, err
}

// Close stops the clock and ends the request.
func (w *watched) Close() error {
	w.timer.Stop()
	err := w.rc.Close()
	w.cancel()
	return err
}
