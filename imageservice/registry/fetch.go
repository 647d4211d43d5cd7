package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/imageservice/content"
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
	err := s.each(ctx, "manifests/"+object, func(host docker.RegistryHost, last bool) error {
		resp, err := s.do(ctx, host, manifestRequest(http.MethodHead, object), last)
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
	err := s.each(ctx, "manifests/"+object, func(host docker.RegistryHost, last bool) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		resp, err := s.do(ctx, host, manifestRequest(http.MethodGet, object), last)
		if err != nil {
			return err
		}
		body := s.watch(resp.Body, cancel, host.Host)
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

	mu   sync.Mutex
	bad  map[string]bool // hosts that served wrong bytes
	used map[string]bool // hosts since the last Reject
}

// Blob returns a source for the blob.
func (s *Session) Blob(desc ocispec.Descriptor) *Source {
	return &Source{s: s, desc: desc, bad: map[string]bool{}, used: map[string]bool{}}
}

// Open asks for the bytes from offset from to offset to. Registries may ignore
// the range: the part says what it holds.
func (b *Source) Open(ctx context.Context, from, to int64) (part content.Part, err error) {
	object := "blobs/" + b.desc.Digest.String()
	whole := request{method: http.MethodGet, path: object, header: http.Header{"Accept": {"*/*"}}}
	r := request{method: whole.method, path: object, header: whole.header.Clone()}
	ranged := from > 0 || to < b.desc.Size
	if ranged {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	err = b.s.each(ctx, object, func(host docker.RegistryHost, last bool) error {
		if !b.use(host.Host) {
			return fmt.Errorf("host %s served wrong bytes: %w", host.Host, errdefs.ErrDataLoss)
		}
		ctx, cancel := context.WithCancel(ctx)
		resp, err := b.s.do(ctx, host, r, last)
		if err != nil && errdefs.IsOutOfRange(err) && ranged {
			// The registry cannot do ranges: take it from the start.
			resp, err = b.s.do(ctx, host, whole, last)
		}
		if err != nil {
			cancel()
			return err
		}
		part = content.Part{End: b.desc.Size}
		if resp.StatusCode == http.StatusPartialContent {
			if part.Start, part.End, err = byteRange(resp.Header.Get("Content-Range")); err != nil || part.Start > from {
				cancel()
				_ = resp.Body.Close()
				return fmt.Errorf("host %s: unusable Content-Range %.60q: %w", host.Host, resp.Header.Get("Content-Range"), errdefs.ErrUnavailable)
			}
		}
		part.Body = b.s.watch(resp.Body, cancel, host.Host)
		return nil
	})
	return part, err
}

// use notes that a host serves, unless it is known to serve wrong bytes.
func (b *Source) use(host string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.bad[host] {
		b.used[host] = true
	}
	return !b.bad[host]
}

// Reject says that wrong bytes came, and reports whether another host is left.
// When several had a part in them, the mirrors are the ones under suspicion.
func (b *Source) Reject() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.s.hosts[len(b.s.hosts)-1].Host
	for h := range b.used {
		b.bad[h] = h != own || len(b.used) == 1
	}
	clear(b.used)
	for _, h := range b.s.hosts {
		if h.Capabilities.Has(docker.HostCapabilityPull) && !b.bad[h.Host] {
			return true
		}
	}
	return false
}

// byteRange reads "bytes 5-9/10" as 5, 10.
func byteRange(v string) (from, to int64, err error) {
	v, ok := strings.CutPrefix(v, "bytes ")
	first, rest, dash := strings.Cut(v, "-")
	last, _, _ := strings.Cut(rest, "/")
	if !ok || !dash {
		return 0, 0, errors.New("no byte range")
	}
	if from, err = strconv.ParseInt(first, 10, 64); err != nil {
		return 0, 0, err
	}
	if to, err = strconv.ParseInt(last, 10, 64); err != nil {
		return 0, 0, err
	}
	if from < 0 || to < from || to == math.MaxInt64 {
		return 0, 0, errors.New("byte range out of range")
	}
	return from, to + 1, nil
}

// watch ends a body that delivers nothing for so long, or less than it should
// in that time. cancel ends the request the body belongs to.
func (s *Session) watch(rc io.ReadCloser, cancel context.CancelFunc, host string) io.ReadCloser {
	w := &watched{rc: rc, cancel: cancel, limits: s.limits}
	w.slow = func() { s.reg.breaker.fail(host, time.Now()) }
	w.timer = time.AfterFunc(time.Hour, func() {
		w.stalled.Store(true)
		cancel()
	})
	w.timer.Stop()
	return w
}

// watched counts only the time in which somebody waits for bytes: who reads
// slowly, because the node's own limits want it so, is not the host's fault.
type watched struct {
	rc      io.ReadCloser
	cancel  context.CancelFunc
	limits  Limits
	slow    func()
	timer   *time.Timer
	stalled atomic.Bool
	waited  time.Duration // since the count began
	got     int64         // in that time
}

// Read reads, for no longer than allowed.
func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limits.Stall)
	start := time.Now()
	n, err := w.rc.Read(p)
	w.timer.Stop()
	w.waited += time.Since(start)
	w.got += int64(n)
	if w.stalled.Load() {
		w.slow()
		return n, fmt.Errorf("the registry sent nothing for %s: %w", w.limits.Stall, errdefs.ErrUnavailable)
	}
	if w.waited < w.limits.Stall {
		return n, err
	}
	rate := float64(w.got) / w.waited.Seconds()
	w.waited, w.got = 0, 0
	if err == nil && rate < float64(w.limits.MinRate) {
		w.slow()
		return n, fmt.Errorf("the registry sent only %.0f bytes per second, the least is %d: %w", rate, w.limits.MinRate, errdefs.ErrUnavailable)
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
