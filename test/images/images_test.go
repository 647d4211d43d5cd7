package images

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestCatalogIsServed(t *testing.T) {
	parts, err := LoadParts(t.Context())
	if errors.Is(err, ErrNoBusybox) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	imgs, err := Catalog(parts)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Serve(imgs, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for ref, want := range imgs {
		n, err := name.ParseReference(r.Addr(HostPlain) + "/" + ref)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := want.(v1.ImageIndex); ok {
			got, err := remote.Index(n)
			if err == nil {
				err = validate.Index(got)
			}
			if err != nil {
				t.Errorf("%s: %v", ref, err)
			}
			continue
		}
		got, err := remote.Image(n)
		// validate reads gzip layers only, and some are damaged on purpose.
		if err == nil && !strings.HasPrefix(ref, "bad-") && ref != "zstd:1" && ref != "plain:1" {
			err = validate.Image(got)
		}
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if r.Pulls() == 0 {
		t.Error("no blob was counted")
	}
}

func TestAuthAndTLS(t *testing.T) {
	img, err := Build(Spec{Layers: []Layer{note("x")}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Serve(map[string]any{"a:1": img, "bad-digest:1": img, "bad-length:1": img, "bad-cut:1": img}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	get := func(host, repo string, opts ...remote.Option) error {
		n, err := name.ParseReference(r.Addr(host) + "/" + repo)
		if err != nil {
			return err
		}
		got, err := remote.Image(n, opts...)
		if err != nil {
			return err
		}
		return validate.Image(got)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.ca)
	trusted := remote.WithTransport(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}})
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"plain", get(HostPlain, "a:1"), ""},
		{"no credentials", get(HostAuth, "a:1"), "UNAUTHORIZED"},
		{"wrong", get(HostAuth, "a:1", remote.WithAuth(&authn.Basic{Username: User, Password: "x"})), "UNAUTHORIZED"},
		{"right", get(HostAuth, "a:1", remote.WithAuth(&authn.Basic{Username: User, Password: Password})), ""},
		{"tls", get(HostTLS, "a:1", trusted), ""},
		{"dead", get(HostDead, "a:1"), "refused"},
		{"bad digest", get(HostPlain, "bad-digest:1"), "validating layers"},
		{"bad length", get(HostPlain, "bad-length:1"), "validating layers"},
		{"cut", get(HostPlain, "bad-cut:1"), "validating layers"},
	} {
		if c.want == "" && c.err != nil {
			t.Errorf("%s: %v", c.name, c.err)
		}
		if c.want != "" && (c.err == nil || !strings.Contains(c.err.Error(), c.want)) {
			t.Errorf("%s: got error %v, want one with %q", c.name, c.err, c.want)
		}
	}
}

func TestWriteHosts(t *testing.T) {
	r, err := Serve(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dir := t.TempDir()
	if err := r.WriteHosts(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, HostPlain, "hosts.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "http://"+r.Addr(HostPlain)) {
		t.Errorf("hosts.toml does not name the address:\n%s", b)
	}
}
