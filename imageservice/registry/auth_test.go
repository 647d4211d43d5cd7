package registry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestWhoGetsCredentials follows containerd, so that a node can move with its
// hosts.toml: a server address binds, no server address trusts every host the
// administrator lists.
func TestWhoGetsCredentials(t *testing.T) {
	const domain, mirror = "registry.test", "mirror.test:5000"
	for _, tt := range []struct {
		name, server, host string
		answer, volunteer  bool
	}{
		{"upstream", "", domain, true, true},
		{"mirror", "", mirror, true, false},
		{"for the upstream, asked by it", "https://registry.test", domain, true, true},
		{"for the upstream, asked by the mirror", "https://registry.test", mirror, false, false},
		{"for the mirror, asked by it", "http://mirror.test:5000", mirror, true, true},
		{"for the mirror, asked by the upstream", "http://mirror.test:5000", domain, false, false},
		{"for another port", "https://registry.test:8443", domain, false, false},
		{"for Docker Hub under another name", "https://index.docker.io/v1/", "registry-1.docker.io", true, true},
	} {
		c := Credentials{Username: "joe", Password: "p:w", ServerAddress: tt.server}
		if got := c.mayVolunteer(domain, tt.host); got != tt.volunteer {
			t.Errorf("%s: volunteered: %v, want %v", tt.name, got, tt.volunteer)
		}
		reg := New(Config{})
		sess := &Session{reg: reg, domain: domain, path: "app", creds: c}
		got, _, err := sess.credentials(t.Context(), tt.host)
		user, pass := got.Username, got.Password
		if err != nil || (user == "joe" && pass == "p:w") != tt.answer || (user+pass != "") != tt.answer {
			t.Errorf("%s: lookup gave %q %q %v, want credentials: %v", tt.name, user, pass, err, tt.answer)
		}
	}
}

// TestMirrorAsksForCredentials pulls through a mirror that wants a password
// with a colon in it.
func TestMirrorAsksForCredentials(t *testing.T) {
	var shown []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			shown = append(shown, a)
		}
		if user, pass, _ := r.BasicAuth(); user != "joe" || pass != "p:w" {
			w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte("{}"))
	}))
	defer srv.Close()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "registry.test"), 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = %q\n[host.%q]\n", srv.URL, srv.URL)
	if err := os.WriteFile(filepath.Join(dir, "registry.test", "hosts.toml"), []byte(hosts), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		auth  *runtimeapi.AuthConfig
		ok    bool
		shown int
	}{
		{nil, false, 0},
		{&runtimeapi.AuthConfig{Username: "joe", Password: "p:w"}, true, 1},
		{&runtimeapi.AuthConfig{Auth: "am9lOnA6dw=="}, true, 1},
		{&runtimeapi.AuthConfig{Username: "joe", Password: "p:w", ServerAddress: srv.URL}, true, 1},
		{&runtimeapi.AuthConfig{Username: "joe", Password: "p:w", ServerAddress: "https://registry.test"}, false, 0},
		{&runtimeapi.AuthConfig{RegistryToken: "bearer"}, false, 0},
	} {
		shown = nil
		creds, err := FromCRI(tt.auth)
		if err != nil {
			t.Fatal(err)
		}
		sess, err := New(Config{Files: Files{HostsDirs: []string{dir}}}).Open(t.Context(), Target{Domain: "registry.test", Path: "app", Creds: creds})
		if err != nil {
			t.Fatal(err)
		}
		_, err = sess.Manifest(t.Context(), "latest", 1<<20)
		sess.Close()
		if tt.ok != (err == nil) || (err != nil && !errdefs.IsUnauthorized(err)) {
			t.Errorf("%v: got error %v, want success: %v", tt.auth, err, tt.ok)
		}
		if len(shown) < tt.shown || (tt.shown == 0 && len(shown) > 0) {
			t.Errorf("%v: the mirror saw %s", tt.auth, strings.Join(shown, ", "))
		}
	}
}

// TestTokenServerFails: what the token server answered decides, not the digits
// in its address: a passing failure is repeated, a refusal is not.
func TestTokenServerFails(t *testing.T) {
	for status, is := range map[int]func(error) bool{
		http.StatusBadRequest: errdefs.IsUnauthorized, http.StatusUnauthorized: errdefs.IsUnauthorized, http.StatusForbidden: errdefs.IsUnauthorized,
		http.StatusBadGateway: errdefs.IsUnavailable,
	} {
		asked := 0
		var srv *httptest.Server
		srv = serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token/400/401/403" {
				asked++
				w.WriteHeader(status)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token/400/401/403",service="s"`, srv.URL))
			w.WriteHeader(http.StatusUnauthorized)
		})
		s, _ := newFleet(t, fmt.Sprintf("server = %q\n", srv.URL)).open(t, Credentials{})
		if _, err := s.Manifest(t.Context(), "v1", 100); !is(err) || (asked > 1) != errdefs.IsUnavailable(err) {
			t.Errorf("a token server that answers %d, asked %d times: %v", status, asked, err)
		}
	}
}

// TestRedirectKeepsSecrets: what is meant for the registry goes to no other host
// and not from TLS to plain text, but to the registry's own TLS.
func TestRedirectKeepsSecrets(t *testing.T) {
	s := &Session{}
	for _, tt := range []struct {
		from, to string
		kept     bool
	}{
		{"https://registry.test/v2/a", "https://registry.test/v2/b", true},
		{"http://registry.test/v2/a", "https://registry.test/v2/a", true},
		{"https://registry.test/v2/a", "https://storage.test/a", false},
		{"https://registry.test/v2/a", "https://registry.test:8443/v2/a", false},
		{"https://registry.test/v2/a", "http://registry.test/v2/a", false},
	} {
		first, next := httptest.NewRequest(http.MethodGet, tt.from, nil), httptest.NewRequest(http.MethodGet, tt.to, nil)
		next.Header.Set("Authorization", "Bearer secret")
		next.Header.Set("X-Key", "secret")
		c := s.client(docker.RegistryHost{Client: &http.Client{}, Header: http.Header{"X-Key": {"secret"}}})
		if err := c.CheckRedirect(next, []*http.Request{first}); err != nil {
			t.Fatal(err)
		}
		if auth, key := next.Header.Get("Authorization") != "", next.Header.Get("X-Key") != ""; auth != tt.kept || key != tt.kept {
			t.Errorf("%s to %s: Authorization kept: %v, the host's header: %v, want %v", tt.from, tt.to, auth, key, tt.kept)
		}
	}
}
