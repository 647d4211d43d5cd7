package registry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeFiles makes a config.json and helpers in a directory that is put first
// in PATH. A helper knows one registry.
func writeFiles(t *testing.T, config string, helpers map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	err := os.WriteFile(file, []byte(config), 0o600)
	for name, script := range helpers {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return file
}

func TestAuthFile(t *testing.T) {
	basic := base64.StdEncoding.EncodeToString([]byte("joe:p:w"))
	file := writeFiles(t, fmt.Sprintf(`{"auths": {
		"r.test": {"auth": %q}, "https://r.test:5000/v2/": {"username": "u", "password": "p"}, "r.test/team": {"identitytoken": "id"},
		"https://index.docker.io/v1/": {"registrytoken": "reg"}, "empty.test": {}, "bad.test": {"auth": "!SECRET!"}},
		"credsStore": "all", "credHelpers": {"h.test": "one", "t.test": "token", "x.test": "broken", "y.test": "chatty", "z.test": "../one"}}`, basic),
		map[string]string{
			"one":    `read s; [ "$1 $s" = "get h.test" ] && echo '{"Username":"hu","Secret":"hs"}'`,
			"token":  `echo '{"Username":"<token>","Secret":"idt"}'`,
			"broken": `echo SECRET; exit 3`, "chatty": `echo SECRET`,
			"all": `read s; [ "$s" = "store.test" ] && { echo '{"Username":"su","Secret":"ss"}'; exit; }; echo "credentials not found in native keychain"; exit 1`,
		})
	for _, tt := range []struct {
		host, path string
		want       Credentials
		source     string
		fails      bool
	}{
		{"r.test", "app", Credentials{Username: "joe", Password: "p:w"}, file, false},
		{"r.test:5000", "app", Credentials{Username: "u", Password: "p"}, file, false},
		{"r.test", "team/app", Credentials{IdentityToken: "id"}, file, false},
		{"r.test", "teammate/app", Credentials{Username: "joe", Password: "p:w"}, file, false},
		{"registry-1.docker.io", "library/x", Credentials{RegistryToken: "reg"}, file, false},
		{"h.test", "app", Credentials{Username: "hu", Password: "hs"}, "helper one", false},
		{"t.test", "app", Credentials{IdentityToken: "idt"}, "helper token", false},
		{"store.test", "app", Credentials{Username: "su", Password: "ss"}, "helper all", false},
		{"empty.test", "app", Credentials{}, "", false},
		{"unknown.test", "app", Credentials{}, "", false},
		{"bad.test", "app", Credentials{}, "", true},
		{"x.test", "app", Credentials{}, "helper broken", true},
		{"y.test", "app", Credentials{}, "helper chatty", true},
		{"z.test", "app", Credentials{}, "", true},
	} {
		c, source, err := fromFile(t.Context(), file, tt.host, tt.path)
		if c != tt.want || (err != nil) != tt.fails || !tt.fails && !strings.HasPrefix(source, tt.source) {
			t.Errorf("%s/%s: %q from %q, %v", tt.host, tt.path, [4]string{c.Username, c.Password, c.IdentityToken, c.RegistryToken}, source, err)
		}
		if err != nil && strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error shows a secret: %v", tt.host, err)
		}
	}
	if c, _, err := fromFile(t.Context(), file+"x", "r.test", "app"); err != nil || !c.empty() {
		t.Errorf("missing file: %v", err)
	}
	for _, text := range []string{`{"auths": "SECRET"}`, strings.Repeat(" ", 2<<20)} {
		if _, _, err := fromFile(t.Context(), writeFiles(t, text, nil), "r.test", "app"); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("bad file: %v", err)
		}
	}
}

// TestAuthFrom: a mirror gets the credentials of the registry that the
// administrator names, from the request or the node's files, and no others.
func TestAuthFrom(t *testing.T) {
	var shown []string
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if user, pass, ok := r.BasicAuth(); ok {
			shown = append(shown, user+"/"+pass)
			fmt.Fprint(w, "{}")
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="m"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	file := writeFiles(t, fmt.Sprintf(`{"auths": {"r.test": {"username": "fileuser", "password": "fp"}, "other.test": {"username": "other", "password": "op"}, %q: {"username": "mirror", "password": "mp"}}}`, host(srv)), nil)
	request := Credentials{Username: "req", Password: "rp"}
	bound := Credentials{Username: "req", Password: "rp", ServerAddress: "https://r.test"}
	for _, tt := range []struct {
		name, from string
		creds      Credentials
		shown      string
		source     string
	}{
		{"the mirror's own", "", Credentials{}, "mirror/mp", file},
		{"the registry's, from a file", "r.test", Credentials{}, "fileuser/fp", file + ", auth-from r.test"},
		{"another registry's", "https://other.test", Credentials{}, "other/op", file + ", auth-from https://other.test"},
		{"the request's for any host", "", request, "req/rp", sourceRequest},
		{"the request's for the registry", "r.test", bound, "req/rp", sourceRequest + ", auth-from r.test"},
		{"the request's are not another registry's", "other.test", request, "other/op", file + ", auth-from other.test"},
		{"the request's bound ones are not the mirror's", "", bound, "mirror/mp", file},
	} {
		shown = nil
		hosts := fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.%q]\n", srv.URL)
		if tt.from != "" {
			hosts += fmt.Sprintf("auth-from = %q\n", tt.from)
		}
		f := newFleet(t, hosts)
		f.SetFiles(Files{HostsDirs: []string{f.dir}, AuthFiles: []string{file}})
		s, trace := f.open(t, tt.creds)
		if _, err := s.Manifest(t.Context(), "v1", 100); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		all := trace()
		if strings.Join(shown, " ") != tt.shown || len(all) != 1 || all[0].Credentials != tt.source {
			t.Errorf("%s: mirror saw %v, trace %+v", tt.name, shown, all)
		}
	}
}
