package checkpoint

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/imageservice/registrytest"
)

const podDump = `{"metadata":{"name":"web","uid":"u1","namespace":"shop"},"hostname":"web","log_directory":"/var/log/pods/shop_web_u1","linux":{"cgroup_parent":"/kubepods/u1"}}`

// container is one that wants nothing of the node but what more says.
func container(name, more string) string {
	return `{"metadata":{"name":"` + name + `"},"linux":{"security_context":{"masked_paths":["/proc/kcore"],"readonly_paths":["/proc/sys"]}}` + more + "}"
}

// podDir makes the directory of a pod's checkpoint.
func podDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pod")
	err := os.Mkdir(dir, 0o700)
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func smallPod(t *testing.T) string {
	return podDir(t, map[string]string{"pod.dump": podDump, "pod.options": "{}", "app.tar": string(whole(t)),
		"containers.dump": "[" + container("app", `,"log_path":"app/0.log"`) + "," + container("side", "") + "]"})
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		b, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
		err = errors.Join(err, rerr)
		out[e.Name()] = string(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPushAndPull: what is pushed is an image as checkpointctl and CRI-O know
// them, and comes back as it was.
func TestPushAndPull(t *testing.T) {
	srv := registrytest.New(t, false)
	f := &fake{auth: filepath.Join(t.TempDir(), "auth.json")}
	f.serveFrom(t, srv.URL, "")
	srv.Inject(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if user, pass, _ := r.BasicAuth(); user == "joe" && pass == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if err := os.WriteFile(f.auth, fmt.Appendf(nil, `{"auths":{%q:{"username":"joe","password":"secret"}}}`, srv.Host()), 0o600); err != nil {
		t.Fatal(err)
	}
	a := f.app(t)
	file := filepath.Join(t.TempDir(), "c.tar")
	if err := os.WriteFile(file, whole(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to send
		out, err := run(t, a, "push", file, "r.test/saved/app:1")
		if err != nil || !strings.HasPrefix(out, "r.test/saved/app:1@sha256:") {
			t.Fatal(out, err)
		}
	}
	if n := srv.Count(http.MethodPut, "/"); n != 3 {
		t.Errorf("%d uploads", n)
	}
	m := manifest(t, srv, "saved/app", "1")
	want := map[string]string{
		"org.criu.checkpoint.engine.name": "Berth", "org.criu.checkpoint.container.name": "ma\x1b[31min",
		"io.kubernetes.cri-o.annotations.checkpoint.name": "ma\x1b[31min", "org.criu.checkpoint.pod.name": "web", "org.criu.checkpoint.pod.namespace": "shop",
		"org.criu.checkpoint.rootfsImageUserRequested": "x", "org.criu.checkpoint.rootfsImageName": "app:1",
		"org.criu.checkpoint.rootfsImageID": "r@sha256:1", "org.criu.checkpoint.runtime.name": "runc",
	}
	if d := cmp.Diff(want, m.Annotations); d != "" {
		t.Error(d)
	}
	config := ocispec.Image{}
	if err := json.Unmarshal(blob(t, srv, "saved/app", m.Config.Digest), &config); err != nil || config.Architecture != runtime.GOARCH || config.OS != "linux" {
		t.Error(config, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(blob(t, srv, "saved/app", m.Layers[0].Digest)))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := digest.FromReader(z); err != nil || d != digest.FromBytes(whole(t)) || d != config.RootFS.DiffIDs[0] {
		t.Error("the layer is not the archive", d, err)
	}
	back := filepath.Join(t.TempDir(), "back.tar")
	if out, err := run(t, a, "pull", "r.test/saved/app:1", back); err != nil || out != back+"\n" {
		t.Fatal(out, err)
	}
	if b, err := os.ReadFile(back); err != nil || !bytes.Equal(b, whole(t)) {
		t.Error("the archive is another one", err)
	}
	if _, err := run(t, a, "pull", "r.test/saved/app:1", back); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Error(err)
	}
	onlyLeft(t, filepath.Dir(back), "back.tar")
}

// TestPushAndPullPod: the files of a pod's directory come back, into an empty
// directory too.
func TestPushAndPullPod(t *testing.T) {
	srv := registrytest.New(t, false)
	f := &fake{}
	f.serveFrom(t, srv.URL, "")
	a := f.app(t)
	dir := smallPod(t)
	if out, err := run(t, a, "push", dir, "r.test/saved/web"); err != nil || !strings.HasPrefix(out, "r.test/saved/web:latest@sha256:") {
		t.Fatal(out, err)
	}
	want := map[string]string{"org.criu.checkpoint.engine.name": "Berth", "org.criu.checkpoint.pod.name": "web",
		"org.criu.checkpoint.pod.namespace": "shop", "org.criu.checkpoint.pod.uid": "u1"}
	if d := cmp.Diff(want, manifest(t, srv, "saved/web", "latest").Annotations); d != "" {
		t.Error(d)
	}
	parent := t.TempDir()
	to := filepath.Join(parent, "web")
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, a, "pull", "r.test/saved/web", to); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(files(t, dir), files(t, to)); d != "" {
		t.Error(d)
	}
	if st, err := os.Stat(to); err != nil || st.Mode().Perm() != 0o700 {
		t.Error(st.Mode(), err)
	}
	onlyLeft(t, parent, "web")
	if _, err := run(t, a, "pull", "r.test/saved/none", filepath.Join(parent, "none")); err == nil || !strings.Contains(err.Error(), "404") {
		t.Error(err)
	}
	onlyLeft(t, parent, "web")
}

func TestPushRefuses(t *testing.T) {
	a := (&fake{hosts: t.TempDir()}).app(t)
	linked := smallPod(t)
	if err := os.Symlink("/etc/passwd", filepath.Join(linked, "link")); err != nil {
		t.Fatal(err)
	}
	nested := smallPod(t)
	if err := os.Mkdir(filepath.Join(nested, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range [][3]string{
		{linked, "r.test/x", "too many levels"},
		{nested, "r.test/x", "regular"},
		{t.TempDir(), "r.test/x", "no such file"},
		{smallPod(t), "No Name", "reference"},
		{smallPod(t), "r.test/x@sha256:" + strings.Repeat("0", 64), "tag"},
		{filepath.Join(linked, "pod.dump"), "r.test/x", "no tar"},
	} {
		if _, err := run(t, a, "push", tc[0], tc[1]); err == nil || !strings.Contains(err.Error(), tc[2]) {
			t.Errorf("%v: %v", tc, err)
		}
	}
}

// TestPullHostile: images that were made to do harm leave nothing behind, inside
// or outside of the directory that was named.
func TestPullHostile(t *testing.T) {
	good := []registrytest.File{{Header: tar.Header{Name: "pod.dump"}, Body: podDump}, {Header: tar.Header{Name: "pod.options"}, Body: "{}"}}
	with := func(h tar.Header) []byte {
		return registrytest.Tar(t, append([]registrytest.File{{Header: h}}, good...)...)
	}
	for name, tc := range map[string]struct {
		layer []byte
		says  string
	}{
		"a link":            {with(tar.Header{Name: "app.tar", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}), "plain files"},
		"a hard link":       {with(tar.Header{Name: "app.tar", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}), "plain files"},
		"a device":          {with(tar.Header{Name: "app.tar", Typeflag: tar.TypeBlock}), "plain files"},
		"a directory":       {with(tar.Header{Name: "sub/", Typeflag: tar.TypeDir}), "plain files"},
		"a path":            {with(tar.Header{Name: "../app.tar"}), "no file name"},
		"an absolute path":  {with(tar.Header{Name: "/tmp/app.tar"}), "no file name"},
		"a path below":      {with(tar.Header{Name: "sub/app.tar"}), "no file name"},
		"the parent":        {with(tar.Header{Name: ".."}), "no file name"},
		"a hidden file":     {with(tar.Header{Name: ".app.tar"}), "no file name"},
		"a file twice":      {with(tar.Header{Name: "pod.dump"}), "exists"},
		"something else":    {registrytest.Tar(t, registrytest.File{Header: tar.Header{Name: "bin"}, Body: "x"}), "neither config.dump"},
		"a pod that is not": {registrytest.Tar(t, registrytest.File{Header: tar.Header{Name: "pod.dump"}, Body: "[]"}), "pod.dump"},
		"no tar":            {bytes.Repeat([]byte("x"), 3000), "no tar"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := registrytest.New(t, false)
			f := &fake{}
			f.serveFrom(t, srv.URL, "")
			srv.Push(t, "bad", "1", ocispec.ImageConfig{}, registrytest.Pack(t, tc.layer, "gzip"))
			parent := t.TempDir()
			if _, err := run(t, f.app(t), "pull", "r.test/bad:1", filepath.Join(parent, "to")); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
			onlyLeft(t, parent)
		})
	}
}

// TestPullBounded: neither a bomb nor a manifest that lies fills the disk, and
// wrong bytes are not taken.
func TestPullBounded(t *testing.T) {
	srv := registrytest.New(t, false)
	f := &fake{}
	f.serveFrom(t, srv.URL, "")
	a := f.app(t)
	parent := t.TempDir()
	srv.Push(t, "two", "1", ocispec.ImageConfig{}, registrytest.Pack(t, whole(t), ""), registrytest.Pack(t, whole(t), "gzip"))
	srv.Push(t, "big", "1", ocispec.ImageConfig{}, registrytest.Pack(t, whole(t), ""))
	m := manifest(t, srv, "big", "1")
	m.Layers[0].Size = 3 << 30
	srv.PushManifest(t, "big", "1", m.MediaType, m)
	for ref, says := range map[string]string{"two:1": "one layer", "big:1": "--limit"} {
		if _, err := run(t, a, "pull", "--limit", "1", "r.test/"+ref, filepath.Join(parent, "to")); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	srv.Push(t, "wrong", "1", ocispec.ImageConfig{}, registrytest.Pack(t, whole(t), ""))
	srv.Inject(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		rec, b := registrytest.Body(next, r)
		b[len(b)/2] ^= 1
		w.WriteHeader(rec.Code)
		_, _ = w.Write(b)
		return true
	})
	if _, err := run(t, a, "pull", "r.test/wrong:1", filepath.Join(parent, "to")); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Error(err)
	}
	onlyLeft(t, parent)
	// Unpacked: a plain layer, and a sparse file that is larger than its tar.
	for name, b := range map[string][]byte{
		"archive": archive(t, "config.dump", dump, "checkpoint/pages-1.img", strings.Repeat("x", 5000)),
		"pod":     archive(t, "pod.dump", podDump, "app.tar", strings.Repeat("x", 5000)),
	} {
		l := pulledLayer{open: func() io.Reader { return bytes.NewReader(registrytest.Pack(t, b, "zstd").Packed) }, limit: 4000}
		if _, err := l.place(parent, filepath.Join(parent, "to")); err == nil || !strings.Contains(err.Error(), "--limit") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func onlyLeft(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if d := cmp.Diff(append([]string{}, names...), got); d != "" {
		t.Errorf("%s: %s", dir, d)
	}
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Test-Push", "1") // past what is injected
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(url, resp.Status, err)
	}
	return b
}

func manifest(t *testing.T, srv *registrytest.Server, repo, tag string) (m ocispec.Manifest) {
	t.Helper()
	if err := json.Unmarshal(get(t, srv.URL+"/v2/"+repo+"/manifests/"+tag), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func blob(t *testing.T, srv *registrytest.Server, repo string, d digest.Digest) []byte {
	t.Helper()
	return get(t, srv.URL+"/v2/"+repo+"/blobs/"+d.String())
}

// FuzzUnpack: whatever a layer is, no more than the limit is written, into plain
// files of the directory.
func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, "pod.dump", podDump, "app.tar", "x"))
	f.Add(registrytest.Tar(f, registrytest.File{Header: tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "/etc"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir, err := os.MkdirTemp("/dev/shm", "unpack-") // files are synced
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		_ = unpack(bytes.NewReader(b), dir, 10_000)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var size int64
		for _, e := range entries {
			st, err := e.Info()
			if err != nil || !st.Mode().IsRegular() {
				t.Fatal(e, err)
			}
			size += st.Size()
		}
		if size > 10_000 {
			t.Fatal(size)
		}
	})
}
