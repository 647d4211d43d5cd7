package imageservice

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
)

// onBlob makes a fault of the layer blob with the digest.
func onBlob(d digest.Digest, f func(w http.ResponseWriter, r *http.Request, body []byte)) rt.Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+d.String()) {
			return false
		}
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		_, body := rt.Body(next, plain)
		f(w, r, body)
		return true
	}
}

// TestIntegrationFaults: each fault is a clear error of the right kind, leaves
// nothing behind, and the same pull succeeds once the fault is gone.
func TestIntegrationFaults(t *testing.T) {
	needRoot(t)
	status := func(code int) func(rt.Image) rt.Fault {
		return func(rt.Image) rt.Fault {
			return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool { w.WriteHeader(code); return true }
		}
	}
	blob := func(f func(w http.ResponseWriter, r *http.Request, body []byte)) func(rt.Image) rt.Fault {
		return func(i rt.Image) rt.Fault { return onBlob(i.Layers[0].Digest, f) }
	}
	tests := map[string]struct {
		fault func(rt.Image) rt.Fault
		is    func(error) bool
	}{
		"401": {status(401), errdefs.IsUnauthorized},
		"403": {status(403), errdefs.IsPermissionDenied},
		"404": {status(404), errdefs.IsNotFound},
		"429": {status(429), errdefs.IsUnavailable},
		"500": {status(500), errdefs.IsUnavailable},
		"wrong bytes": {blob(func(w http.ResponseWriter, _ *http.Request, b []byte) {
			b = append([]byte(nil), b...)
			b[len(b)-1] ^= 1
			_, _ = w.Write(b)
		}), errdefs.IsDataLoss},
		"truncated": {blob(func(w http.ResponseWriter, _ *http.Request, b []byte) { _, _ = w.Write(b[:len(b)/2]) }), errdefs.IsUnavailable},
		"endless": {blob(func(w http.ResponseWriter, r *http.Request, b []byte) {
			for r.Context().Err() == nil {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}), errdefs.IsDataLoss},
		"stalled": {blob(func(w http.ResponseWriter, r *http.Request, b []byte) {
			_, _ = w.Write(b[:10])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), errdefs.IsUnavailable},
		"redirect loop": {func(rt.Image) rt.Fault {
			return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
				http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
				return true
			}
		}, errdefs.IsFailedPrecondition},
		"huge manifest": {func(rt.Image) rt.Fault {
			return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				for r.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 1<<16)); err != nil {
						break
					}
				}
				return true
			}
		}, errdefs.IsResourceExhausted},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reg := rt.New(t, false)
			img := threeLayers(t, reg, "app", "v1")
			n := newNode(t, func(c *Config) {
				if name == "stalled" { // what else waits so long is a busy machine
					c.Pull.Host.Stall = 300 * time.Millisecond
				}
			})
			reg.Inject(tt.fault(img))
			_, err := n.tryPull(reg.Host()+"/app:v1", nil)
			if !tt.is(err) {
				t.Errorf("got %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "app:v1") {
				t.Errorf("error does not name the image: %v", err)
			}
			if n.image(t, reg.Host()+"/app:v1") != nil {
				t.Error("image is there after a failed pull")
			}
			reg.Inject(nil)
			n.mustPull(t, reg.Host()+"/app:v1")
			n.clean(t, 3)
		})
	}
}

func TestIntegrationResumeByRange(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	l := rt.Pack(t, rt.Tar(t, file("big", noise(1<<20))), "")
	img := reg.Push(t, "app", "v1", ocispec.ImageConfig{}, l)
	var sent, ranged atomic.Int64
	reg.Inject(onBlob(img.Layers[0].Digest, func(w http.ResponseWriter, r *http.Request, b []byte) {
		from := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			ranged.Add(1)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
			w.Header().Set("Content-Length", fmt.Sprint(len(b)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		}
		part := b[from:min(from+300_000, len(b))]
		sent.Add(int64(len(part)))
		_, _ = w.Write(part)
		w.(http.Flusher).Flush()    // what is not sent yet would be lost
		panic(http.ErrAbortHandler) // cuts the connection
	}))
	n := newNode(t, nil)
	n.mustPull(t, reg.Host()+"/app:v1")
	if ranged.Load() == 0 || sent.Load() != int64(len(l.Packed)) {
		t.Errorf("%d ranged requests, %d bytes sent for a blob of %d", ranged.Load(), sent.Load(), len(l.Packed))
	}
}

func TestIntegrationCancelledPullServesTheNext(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	img := threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	reg.Inject(onBlob(img.Layers[2].Digest, func(w http.ResponseWriter, r *http.Request, b []byte) {
		_, _ = w.Write(b[:1000])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
	}))
	req := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: reg.Host() + "/app:v1"}}
	if _, err := n.PullImage(ctx, req); err == nil || ctx.Err() == nil {
		t.Fatalf("cancelled pull: %v", err)
	}
	reg.Inject(nil)
	n.mustPull(t, reg.Host()+"/app:v1")
	n.clean(t, 3)
}

func TestIntegrationTokenFlow(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	reg.Inject(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.URL.Path == "/token" {
			user, pass, ok := r.BasicAuth()
			_ = r.ParseForm()
			if ok && user == "joe" && pass == "s3cret" || r.Form.Get("password") == "s3cret" || r.Form.Get("refresh_token") == "identity" {
				_, _ = w.Write([]byte(`{"token":"T","access_token":"T"}`))
			} else {
				w.WriteHeader(http.StatusUnauthorized)
			}
			return true
		}
		if r.Header.Get("Authorization") == "Bearer T" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, reg.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	n := newNode(t, nil)
	for name, tt := range map[string]struct {
		auth *runtimeapi.AuthConfig
		ok   bool
	}{
		"anonymous":       {nil, false},
		"wrong":           {&runtimeapi.AuthConfig{Username: "joe", Password: "oops-oops"}, false},
		"other server":    {&runtimeapi.AuthConfig{Username: "joe", Password: "s3cret", ServerAddress: "https://elsewhere.test"}, false},
		"password":        {&runtimeapi.AuthConfig{Username: "joe", Password: "s3cret", ServerAddress: reg.URL}, true},
		"auth":            {&runtimeapi.AuthConfig{Auth: "am9lOnMzY3JldA=="}, true},
		"identity token":  {&runtimeapi.AuthConfig{IdentityToken: "identity"}, true},
		"registry token":  {&runtimeapi.AuthConfig{RegistryToken: "T"}, true},
		"refused bearer":  {&runtimeapi.AuthConfig{RegistryToken: "oops-oops"}, false},
		"password, again": {&runtimeapi.AuthConfig{Username: "joe", Password: "s3cret"}, true},
	} {
		_, err := n.tryPull(reg.Host()+"/app:v1", tt.auth)
		if tt.ok && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !tt.ok && !errdefs.IsUnauthorized(err) {
			t.Errorf("%s: got %v, want Unauthenticated", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "oops-oops")) {
			t.Errorf("%s: the error shows a secret: %v", name, err)
		}
	}
}

func TestIntegrationUnreachable(t *testing.T) {
	n := newNode(t, nil)
	_, err := n.tryPull("127.0.0.1:1/app:v1", nil)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v", err)
	}
	if _, err := n.tryPull("UPPER/..:x", nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestIntegrationDiskFull(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	reg.Push(t, "app", "v1", ocispec.ImageConfig{},
		rt.Pack(t, rt.Tar(t, file("small", "x")), "gzip"), rt.Pack(t, rt.Tar(t, file("big", strings.Repeat("a", 12<<20))), "gzip"))
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	n := newNode(t, nil)
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	n.dir = small
	var err error
	if n.Service, err = New(Config{StateDir: small, Platform: "linux/amd64"}, n.db); err != nil {
		t.Fatal(err)
	}
	_, err = n.tryPull(reg.Host()+"/app:v1", nil)
	if !errdefs.IsResourceExhausted(err) {
		t.Fatalf("got %v, want ResourceExhausted", err)
	}
	if left, _ := os.ReadDir(small + "/staging"); len(left) != 0 {
		t.Errorf("staging holds %v", left)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	n.mustPull(t, reg.Host()+"/app:v1")
}
