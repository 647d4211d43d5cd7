package crash

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

// stalling is a registry of one image with one layer, big:1, that stops in the
// middle of the layer while it is told to hold.
type stalling struct {
	manifest, config, layer []byte
	digest                  map[string]v1.Hash // by name of the field
	mediaType               string
	hold                    atomic.Bool
	stalled                 chan struct{} // gets one for each answer that stops
	resumed                 atomic.Bool   // somebody asked for the rest of the layer
}

func newStalling(t *testing.T, size int64) *stalling {
	t.Helper()
	img, err := random.Image(size, 1)
	must(t, err)
	s := &stalling{digest: map[string]v1.Hash{}, stalled: make(chan struct{}, 16)}
	s.manifest, err = img.RawManifest()
	must(t, err)
	s.config, err = img.RawConfigFile()
	must(t, err)
	m, err := img.Manifest()
	must(t, err)
	s.mediaType = string(m.MediaType)
	layers, err := img.Layers()
	must(t, err)
	packed, err := layers[0].Compressed()
	must(t, err)
	s.layer, err = io.ReadAll(packed)
	must(t, err)
	s.digest["config"], s.digest["layer"] = m.Config.Digest, m.Layers[0].Digest
	s.digest["manifest"], err = img.Digest()
	must(t, err)
	return s
}

// ServeHTTP implements http.Handler.
func (s *stalling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	serve := func(body []byte, kind string) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Docker-Content-Digest", s.digest["manifest"].String())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}
	switch path := r.URL.Path; {
	case path == "/v2/" || path == "/v2":
	case strings.Contains(path, "/manifests/"):
		serve(s.manifest, s.mediaType)
	case strings.HasSuffix(path, s.digest["config"].String()):
		serve(s.config, "application/octet-stream")
	case strings.HasSuffix(path, s.digest["layer"].String()):
		if from := r.Header.Get("Range"); from != "" && !strings.HasPrefix(from, "bytes=0-") {
			s.resumed.Store(true)
		}
		if s.hold.Load() && r.Method == http.MethodGet {
			w = &half{ResponseWriter: w, s: s, r: r, left: len(s.layer) / 2}
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.layer))
	default:
		http.NotFound(w, r)
	}
}

// half writes so many bytes and then nothing until the client has gone.
type half struct {
	http.ResponseWriter
	s    *stalling
	r    *http.Request
	left int
}

func (h *half) Write(b []byte) (int, error) {
	if len(b) <= h.left {
		h.left -= len(b)
		return h.ResponseWriter.Write(b)
	}
	n, _ := h.ResponseWriter.Write(b[:h.left])
	h.ResponseWriter.(http.Flusher).Flush()
	h.s.stalled <- struct{}{}
	<-h.r.Context().Done()
	return n, context.Cause(h.r.Context())
}

// TestIntegrationKilledInADownload kills the daemon in the middle of a layer. The
// next one fetches the rest, the image is whole, and nothing is left once it goes.
func TestIntegrationKilledInADownload(t *testing.T) {
	n := open(t)
	reg := newStalling(t, 3<<20)
	l, err := harness.ListenIn(n.h.Space().NetNS())()
	must(t, err)
	server := &http.Server{Handler: reg, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	const host = "big.berth.test"
	must(t, os.Mkdir(n.h.HostsDir()+"/"+host, 0o755))
	must(t, os.WriteFile(n.h.HostsDir()+"/"+host+"/hosts.toml", fmt.Appendf(nil, "server = \"http://%s\"\n", l.Addr()), 0o644))
	image := &runtimeapi.ImageSpec{Image: host + "/big:1"}

	reg.hold.Store(true)
	ended := make(chan error, 1)
	go func() {
		_, err := n.im.PullImage(context.Background(), &runtimeapi.PullImageRequest{Image: image})
		ended <- err
	}()
	select {
	case <-reg.stalled:
	case err := <-ended:
		t.Fatalf("the pull ended before it was half done: %v", err)
	}
	n.eventually("the first half is on disk", func() bool { return diskUse(t, n.h.Dir("state", "content")) >= len(reg.layer)/4 })
	must(t, n.h.Kill())
	if err := <-ended; err == nil {
		t.Error("a pull that was cut short is reported as a success")
	}
	reg.hold.Store(false)
	n.restart()
	n.must("pull again", func(ctx context.Context) error {
		_, err := n.im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image})
		return err
	})
	if !reg.resumed.Load() {
		t.Error("the layer was fetched from its beginning")
	}
	if bad := n.check(false); len(bad) > 0 {
		t.Errorf("the image: %v", bad)
	}
	n.must("remove image", func(ctx context.Context) error {
		_, err := n.im.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: image})
		return err
	})
	n.eventually("no layer is left", func() bool { return len(n.layers()) == 0 })
	files(t, n.h.Dir("state", "staging"))
	n.noImages()
}

// diskUse is the sum of the sizes of the files below a directory.
func diskUse(t *testing.T, dir string) (sum int) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return nil // it went meanwhile
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			sum += int(info.Size())
		}
		return nil
	})
	return sum
}
