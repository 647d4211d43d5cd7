package registry

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/imageservice/registrytest"
)

func described(mediaType string, raw []byte) (ocispec.Descriptor, func(io.Writer) error) {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		func(w io.Writer) error { _, err := w.Write(raw); return err }
}

// withPassword asks for joe's password.
func withPassword(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
	if user, pass, _ := r.BasicAuth(); user == "joe" && pass == "p:w" {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// TestPush: what is pushed can be read again, is not sent twice, and goes past
// mirrors that only serve pulls.
func TestPush(t *testing.T) {
	mirror, srv := registrytest.New(t, false), registrytest.New(t, false)
	srv.Inject(withPassword)
	f := newFleet(t, fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", srv.URL, mirror.URL))
	s, _ := f.open(t, Credentials{Username: "joe", Password: "p:w"})
	big, writeBig := described(ocispec.MediaTypeImageLayer, bytes.Repeat([]byte("berth"), 1<<20))
	config, writeConfig := described(ocispec.MediaTypeImageConfig, []byte("{}"))
	raw := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageManifest, config.MediaType, config.Digest, big.MediaType, big.Digest, big.Size)
	manifest, writeManifest := described(ocispec.MediaTypeImageManifest, raw)
	for range 2 {
		for _, p := range []struct {
			desc  ocispec.Descriptor
			tag   string
			write func(io.Writer) error
		}{{big, "", writeBig}, {config, "", writeConfig}, {manifest, "v1", writeManifest}} {
			if err := s.Push(t.Context(), p.desc, p.tag, p.write); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := srv.Count(http.MethodPut, "/"); n != 3 {
		t.Errorf("%d uploads", n)
	}
	if n := mirror.Count(http.MethodPost, "/") + mirror.Count(http.MethodPut, "/"); n != 0 {
		t.Errorf("%d requests to the mirror", n)
	}
	if m, err := s.Manifest(t.Context(), "v1", 1<<20); err != nil || !bytes.Equal(m.Raw, raw) {
		t.Error(m, err)
	}
	if b, err := s.Small(t.Context(), big, big.Size); err != nil || int64(len(b)) != big.Size {
		t.Error(len(b), err)
	}
}

func TestPushRefused(t *testing.T) {
	srv := registrytest.New(t, false)
	only := func(capability string) *Session {
		f := newFleet(t, fmt.Sprintf("server = %q\ncapabilities = [%q]\n", srv.URL, capability))
		s, _ := f.open(t, Credentials{})
		return s
	}
	desc, write := described(ocispec.MediaTypeImageLayer, []byte("layer"))
	if err := only("pull").Push(t.Context(), desc, "", write); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "hosts.toml") {
		t.Error(err)
	}
	s := only("push")
	srv.Inject(withPassword)
	if err := s.Push(t.Context(), desc, "", write); !errdefs.IsUnauthorized(err) {
		t.Error(err)
	}
	srv.Inject(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method == http.MethodHead {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"errors":[{"code":"DENIED","message":"read only"}]}`))
		return true
	})
	if err := s.Push(t.Context(), desc, "", write); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "read only") {
		t.Error(err)
	}
	srv.Inject(nil)
	wrong := desc
	wrong.Digest = digest.FromString("another")
	if err := s.Push(t.Context(), wrong, "", write); err == nil {
		t.Error("content that is not what its digest says was taken")
	}
}
