package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzHostsFile: a file that the check lets pass configures exactly the hosts
// it names, because the library would go on without one it stumbles over.
func FuzzHostsFile(f *testing.F) {
	for _, s := range []string{
		"", "server = \"https://r.test\"\n[host.\"https://m.test:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"/ca\"\n",
		"[host.\"http://m\"]\nclient = [[\"a\", \"b\"], [\"c\"]]\n[host.\"http://m\".header]\nx = [\"a\"]\n", "[host.\"\"]\n",
		"[host.\"m\"]\nauth-from = \"r.test\"\ndial_timeout = \"3s\"\noverride_path = true\nskip_verify = true\n",
		"host.\"a\".capabilities = [\"push\"]", "[host]\n\"https://a\" = {capabilities = [\"pull\"]}\n", "[host.a]\nca = 5\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		root := t.TempDir()
		dir := filepath.Join(root, "r.test")
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		extra, err := parseHostsFile([]byte(text))
		s, oerr := New(Config{Files: Files{HostsDirs: []string{root}}}).Open(context.Background(), Target{Domain: "r.test", Path: "app"})
		if err != nil {
			if oerr == nil {
				t.Fatalf("a session opened in spite of %v", err)
			}
			return
		}
		if oerr != nil {
			return // a certificate that does not exist, a host in an inline table
		}
		for _, h := range s.hosts {
			delete(extra, h.Host)
		}
		delete(extra, "") // no server: the registry itself
		if len(extra) > 0 {
			t.Fatalf("hosts %v of the file were passed by", extra)
		}
	})
}

// fleet is a registry with mirrors, and a Registry that knows them.
type fleet struct {
	*Registry
	dir string
}

func newFleet(t *testing.T, hosts string) *fleet {
	t.Helper()
	f := &fleet{dir: t.TempDir()}
	dir := filepath.Join(f.dir, "r.test")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o600)); err != nil {
		t.Fatal(err)
	}
	f.Registry = New(Config{Files: Files{HostsDirs: []string{f.dir}}, Retries: 2})
	return f
}

func (f *fleet) open(t *testing.T, creds Credentials) (*Session, func() []Attempt) {
	t.Helper()
	var mu sync.Mutex
	var all []Attempt
	s, err := f.Open(t.Context(), Target{Domain: "r.test", Path: "app", Creds: creds, Trace: func(a Attempt) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, a)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, func() []Attempt {
		mu.Lock()
		defer mu.Unlock()
		out := all
		all = nil
		return out
	}
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func host(srv *httptest.Server) string { return strings.TrimPrefix(srv.URL, "http://") }

// TestDeadMirror: a mirror that accepts and says nothing costs one time-out for
// many requests, all at once or one after the other, and is tried again by one
// request when its rest is over.
func TestDeadMirror(t *testing.T) {
	var dead, served atomic.Int32
	var alive atomic.Bool
	mirror := serve(t, func(w http.ResponseWriter, r *http.Request) {
		dead.Add(1)
		if !alive.Load() {
			<-r.Context().Done()
			return
		}
		fmt.Fprint(w, "{}")
	})
	upstream := serve(t, func(w http.ResponseWriter, _ *http.Request) { served.Add(1); fmt.Fprint(w, "{}") })
	f := newFleet(t, fmt.Sprintf("server = %q\n[host.%q]\n", upstream.URL, mirror.URL))
	// Long enough for those that live to answer on a busy machine.
	f.SetLimits(Limits{FirstByte: 2 * time.Second})
	s, trace := f.open(t, Credentials{})
	for range 10 {
		if _, err := s.Manifest(t.Context(), "v1", 100); err != nil {
			t.Fatal(err)
		}
	}
	if dead.Load() != 1 || served.Load() != 10 {
		t.Errorf("%d requests to the dead mirror, %d to the registry", dead.Load(), served.Load())
	}
	if all := trace(); len(all) != 11 || all[0].Host != host(mirror) || all[0].Err == nil || all[1].Err != nil {
		t.Errorf("trace: %+v", all)
	}
	// The rest is over: one of many tries it.
	f.breaker.mu.Lock()
	f.breaker.down[host(mirror)].until = time.Now()
	f.breaker.mu.Unlock()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { _, _ = s.Manifest(t.Context(), "v1", 100) })
	}
	wg.Wait()
	if dead.Load() != 2 {
		t.Errorf("%d requests tried the mirror again, want 1", dead.Load()-1)
	}
	alive.Store(true)
	f.breaker.mu.Lock()
	f.breaker.down[host(mirror)].until = time.Now()
	f.breaker.mu.Unlock()
	before := served.Load()
	for range 3 {
		_, _ = s.Manifest(t.Context(), "v1", 100)
	}
	if served.Load() != before {
		t.Error("the mirror lives again and is not used")
	}
}

func TestBreakerRestGrows(t *testing.T) {
	b := breaker{trial: time.Minute, down: map[string]*outage{}}
	now := time.Unix(1000, 0)
	for _, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 4 * time.Minute} {
		b.fail("m", now)
		if got := b.down["m"].until.Sub(now); got != want {
			t.Errorf("rests %s, want %s", got, want)
		}
	}
	hosts := []docker.RegistryHost{{Host: "m"}, {Host: "r"}}
	if up, resting := b.order(hosts, now); len(up) != 1 || len(resting) != 1 {
		t.Errorf("%v %v", up, resting)
	}
	later := now.Add(5 * time.Minute)
	if up, _ := b.order(hosts, later); len(up) != 2 {
		t.Error("not tried after its rest")
	}
	if up, _ := b.order(hosts, later); len(up) != 1 {
		t.Error("tried by two at once")
	}
	b.ok("m")
	if up, _ := b.order(hosts, now); len(up) != 2 {
		t.Error("not used although it answered")
	}
}

// TestRegistryDecides: what the registry itself says is the error's kind, in
// whatever order hosts were tried; a mirror's "not found" is not.
func TestRegistryDecides(t *testing.T) {
	codes := map[string]int{"mirror": 404, "registry": 500}
	var mu sync.Mutex
	answer := func(who string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			w.WriteHeader(codes[who])
		}
	}
	mirror, upstream := serve(t, answer("mirror")), serve(t, answer("registry"))
	f := newFleet(t, fmt.Sprintf("server = %q\n[host.%q]\n", upstream.URL, mirror.URL))
	s, _ := f.open(t, Credentials{})
	try := func(want func(error) bool) {
		t.Helper()
		_, err := s.Manifest(t.Context(), "v1", 100)
		if !want(err) || !strings.Contains(err.Error(), host(mirror)) && errdefs.IsUnavailable(err) {
			t.Errorf("%v: got %v", codes, err)
		}
	}
	try(errdefs.IsUnavailable)
	try(errdefs.IsUnavailable) // the registry rests now, and is asked all the same
	mu.Lock()
	codes["mirror"], codes["registry"] = 503, 404
	mu.Unlock()
	try(errdefs.IsNotFound)
	try(errdefs.IsNotFound)
}

// TestTokenRunsOut: a token that stops working in the middle is fetched anew,
// though the challenge does not say why, and so is one that a token server
// failed to give at first.
func TestTokenRunsOut(t *testing.T) {
	var tokens, broken atomic.Int32
	broken.Store(1)
	var srv *httptest.Server
	valid := func() string { return fmt.Sprintf("Bearer t%d", tokens.Load()) }
	srv = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if broken.Add(-1) >= 0 {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			fmt.Fprintf(w, `{"token":"t%d"}`, tokens.Add(1))
			return
		}
		if tokens.Load() == 0 || r.Header.Get("Authorization") != valid() {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s"`, srv.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, "{}")
	})
	f := newFleet(t, fmt.Sprintf("server = %q\n", srv.URL))
	s, _ := f.open(t, Credentials{})
	for i := range 3 {
		if _, err := s.Manifest(t.Context(), "v1", 100); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		tokens.Add(1) // the one in use is no longer good
	}
}

// TestSlowHosts: silence and dripping end with an error that names the host.
func TestSlowHosts(t *testing.T) {
	body := strings.Repeat("x", 1000)
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		for i := 0; r.Context().Err() == nil && i < len(body); i++ {
			fmt.Fprint(w, body[i:i+1])
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	})
	f := newFleet(t, fmt.Sprintf("server = %q\n", srv.URL))
	f.SetLimits(Limits{Stall: 3 * time.Second, MinRate: 1000})
	s, _ := f.open(t, Credentials{})
	p, err := s.Blob(ocispec.Descriptor{Digest: digest.FromString(body), Size: 1000}).Open(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Body.Close()
	buf := make([]byte, 100)
	for err == nil {
		_, err = p.Body.Read(buf)
	}
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "bytes per second") {
		t.Errorf("got %v", err)
	}
}

func TestByteRange(t *testing.T) {
	for in, want := range map[string][2]int64{"bytes 5-9/10": {5, 10}, "bytes 0-0/*": {0, 1}} {
		if from, to, err := byteRange(in); err != nil || from != want[0] || to != want[1] {
			t.Errorf("%q: %d %d %v", in, from, to, err)
		}
	}
	for _, in := range []string{"", "bytes", "bytes 9-5/10", "bytes -5-9/10", "bytes 1-9223372036854775807/5", "items 1-2/3"} {
		if _, _, err := byteRange(in); err == nil {
			t.Errorf("%q passes", in)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"": 0, "x": 0, "-5": 0, "7": 7 * time.Second, "86400": 30 * time.Second,
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat):  30 * time.Second,
		time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): 0,
	} {
		got := retryAfter(&http.Response{Header: http.Header{"Retry-After": {in}}})
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
