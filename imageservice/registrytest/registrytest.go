// Package registrytest serves images from memory and misbehaves on demand.
package registrytest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fault handles a request in place of the registry and reports whether it did.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler) bool

// Server is a registry on loopback that counts requests.
type Server struct {
	*httptest.Server
	next http.Handler

	mu     sync.Mutex
	fault  Fault
	counts map[string]int // "GET /v2/..." -> served
}

// New starts a registry that ends with the test; secure serves TLS.
func New(t testing.TB, secure bool) *Server {
	s := &Server{next: registry.New(registry.Logger(log.New(io.Discard, "", 0))), counts: map[string]int{}}
	if secure {
		s.Server = httptest.NewTLSServer(s)
	} else {
		s.Server = httptest.NewServer(s)
	}
	t.Cleanup(s.Close)
	return s
}

// Host is "127.0.0.1:port".
func (s *Server) Host() string {
	_, h, _ := strings.Cut(s.URL, "://")
	return h
}

// Inject sets the fault; nil takes it away.
func (s *Server) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Count returns how many requests with the method had part in their path.
func (s *Server) Count(method, part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for k, c := range s.counts {
		if strings.HasPrefix(k, method+" ") && strings.Contains(k, part) {
			n += c
		}
	}
	return n
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	f := s.fault
	s.counts[r.Method+" "+r.URL.Path]++
	s.mu.Unlock()
	if f == nil || r.Header.Get("X-Test-Push") != "" || !f(w, r, s.next) {
		s.next.ServeHTTP(w, r)
	}
}

// File is one tar entry.
type File struct {
	tar.Header
	Body string
}

// Tar packs entries; a missing mode becomes 0644, or 0755 for directories.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(f.Body))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.Body); err != nil && h.Size > 0 {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Layer is a packed layer.
type Layer struct {
	MediaType string
	Packed    []byte
	DiffID    digest.Digest
}

// Pack packs a tar as "gzip", "zstd" or "" (plain).
func Pack(t testing.TB, plain []byte, how string) Layer {
	t.Helper()
	var b bytes.Buffer
	l := Layer{MediaType: ocispec.MediaTypeImageLayer, DiffID: digest.FromBytes(plain)}
	var w io.WriteCloser
	switch how {
	case "gzip":
		w, l.MediaType = gzip.NewWriter(&b), ocispec.MediaTypeImageLayerGzip
	case "zstd":
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w, l.MediaType = z, ocispec.MediaTypeImageLayerZstd
	default:
		l.Packed = plain
		return l
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l.Packed = b.Bytes()
	return l
}

// Image is what Push made.
type Image struct {
	ID       digest.Digest
	Manifest ocispec.Descriptor
	Layers   []ocispec.Descriptor
}

// Push stores an image under repo:tag.
func (s *Server) Push(t testing.TB, repo, tag string, cfg ocispec.ImageConfig, layers ...Layer) Image {
	t.Helper()
	c := ocispec.Image{Config: cfg, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	c.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.DiffID)
		m.Layers = append(m.Layers, s.PushBlob(t, repo, l.MediaType, l.Packed))
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = s.PushBlob(t, repo, ocispec.MediaTypeImageConfig, raw)
	return Image{ID: m.Config.Digest, Manifest: s.PushManifest(t, repo, tag, m.MediaType, m), Layers: m.Layers}
}

// PushBlob stores a blob.
func (s *Server) PushBlob(t testing.TB, repo, mediaType string, raw []byte) ocispec.Descriptor {
	t.Helper()
	d := digest.FromBytes(raw)
	s.send(t, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repo, d), "application/octet-stream", raw)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}
}

// PushManifest stores a manifest or index under a tag.
func (s *Server) PushManifest(t testing.TB, repo, tag, mediaType string, m any) ocispec.Descriptor {
	t.Helper()
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	s.send(t, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, tag), mediaType, raw)
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}

func (s *Server) send(t testing.TB, method, path, mediaType string, raw []byte) {
	t.Helper()
	req, err := http.NewRequest(method, s.URL+path, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("X-Test-Push", "1")
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("push %s: %s: %s", path, resp.Status, body)
	}
}

// Body runs next and returns what it would have answered.
func Body(next http.Handler, r *http.Request) (*httptest.ResponseRecorder, []byte) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	return rec, rec.Body.Bytes()
}
