package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

const patience = 2 * time.Minute

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scene is a node of Berth's, a registry, and the directory of the other runtime.
type scene struct {
	node  *harness.Node
	reg   *images.Registry
	have  map[string]any // what the registry has
	root  string         // of the other runtime's store
	peers string         // its programs
	bin   string         // Berth's programs
}

func open(t *testing.T) *scene {
	t.Helper()
	programs, err := harness.Find("")
	must(t, err)
	if m := programs.Missing(true); len(m) > 0 {
		t.Skipf("this machine lacks: %s", strings.Join(m, "; "))
	}
	s := &scene{bin: programs.Bin, peers: filepath.Join(programs.Bin, "peers")}
	if _, err := os.Stat(filepath.Join(s.peers, "packages")); err != nil {
		t.Skip("Debian's containerd and skopeo are not there: run `hack/setup peers`")
	}
	s.node, err = harness.New(harness.Config{Programs: programs})
	must(t, err)
	t.Cleanup(func() { must(t, s.node.Close()) })
	s.root = s.node.Dir("peer")
	must(t, os.MkdirAll(s.root, 0o755))
	s.have = catalog(t)
	s.reg, err = images.Serve(s.have, harness.ListenIn(s.node.Space().NetNS()))
	must(t, err)
	t.Cleanup(func() { _ = s.reg.Close() })
	return s
}

// name is an image's whole name.
func (s *scene) name(image string) string { return s.reg.Addr(images.HostPlain) + "/" + image }

// id is the image's ID, and top the digest that its name stands for.
func (s *scene) id(t *testing.T, image string) (id, top string) {
	t.Helper()
	switch i := s.have[image].(type) {
	case v1.ImageIndex:
		d, err := i.Digest()
		must(t, err)
		m, err := i.IndexManifest()
		must(t, err)
		one, err := i.Image(m.Manifests[1].Digest) // between two decoys
		must(t, err)
		h, err := one.ConfigName()
		must(t, err)
		return h.String(), d.String()
	case v1.Image:
		d, err := i.Digest()
		must(t, err)
		h, err := i.ConfigName()
		must(t, err)
		return h.String(), d.String()
	}
	t.Fatalf("no image %s", image)
	return "", ""
}

// run runs a program in the node's namespaces and returns what it prints.
func (s *scene) run(t *testing.T, program string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := s.node.Space().Command(ctx, program, args...)
	libs, _ := filepath.Glob(filepath.Join(s.peers, "usr/lib/*-linux-gnu*"))
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"), "HOME="+s.root)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, stderr.Bytes())
	}
	return out.Bytes(), nil
}

func (s *scene) peer(t *testing.T, program string, args ...string) {
	t.Helper()
	_, err := s.run(t, filepath.Join(s.peers, "usr/bin", program), args...)
	must(t, err)
}

// report is what `berthctl migrate ... --images -o json` says.
type report struct {
	Images []struct {
		Verdict, ID, Note string
		Names             []string
		Bytes             int64
	}
}

// verdict is what the report says of an image by a name.
func (r report) verdict(name string) (verdict, note string, bytes int64) {
	for _, i := range r.Images {
		if slices.Contains(i.Names, name) {
			return i.Verdict, i.Note, i.Bytes
		}
	}
	return "", "", 0
}

func (s *scene) migrate(t *testing.T, verb, from string) (report, error) {
	t.Helper()
	out, err := s.run(t, filepath.Join(s.bin, "berthctl"), "--address", s.node.Dir("run", "berth.sock"),
		"--admin-address", s.node.Dir("run", "admin.sock"), "-o", "json", "migrate", verb, "--images", "--from", from, "--root", s.root)
	var r report
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	return r, err
}

// files are the store's: names, sizes and times.
func (s *scene) files(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, st.Size(), st.Mode(), st.ModTime().UnixNano())
		}
		return err
	}))
	return b.String()
}

// adopt takes over the store twice and holds the result against what is wanted:
// the verdict on each image.
func (s *scene) adopt(t *testing.T, from string, want map[string]string) report {
	t.Helper()
	before, pulls := s.files(t), s.reg.Pulls()
	must(t, s.node.Start(t.Context()))
	first, err := s.migrate(t, "import", from)
	must(t, err)
	again, err := s.migrate(t, "import", from)
	must(t, err)
	for image, verdict := range want {
		if got, note, _ := first.verdict(s.name(image)); got != verdict {
			t.Errorf("%s is %s, want %s: %s", image, got, verdict, note)
		}
		if verdict == "adopted" {
			verdict = "present"
		}
		if got, note, bytes := again.verdict(s.name(image)); got != verdict || bytes > 0 {
			t.Errorf("the second time %s is %s with %d bytes, want %s: %s", image, got, bytes, verdict, note)
		}
	}
	if after := s.files(t); after != before {
		t.Errorf("the store was written to:\n%s\nis now\n%s", before, after)
	}
	if n := s.reg.Pulls() - pulls; n != 0 {
		t.Errorf("the registry was asked for %d blobs", n)
	}
	conn, err := s.node.Conn()
	must(t, err)
	for image, verdict := range want {
		r, err := runtimeapi.NewImageServiceClient(conn).ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: s.name(image)}})
		must(t, err)
		if verdict == "left" {
			if r.GetImage() != nil {
				t.Errorf("%s was left, and is there: %v", image, r.GetImage())
			}
			continue
		}
		id, top := s.id(t, image)
		repo, _, _ := strings.Cut(image, ":")
		if got := r.GetImage(); got.GetId() != id || !slices.Contains(got.GetRepoDigests(), s.name(repo)+"@"+top) || !slices.Contains(got.GetRepoTags(), s.name(image)) {
			t.Errorf("%s is %v, want the ID %s and the digest %s", image, got, id, top)
		}
	}
	out, err := s.run(t, filepath.Join(s.bin, "berthctl"), "--address", s.node.Dir("run", "berth.sock"), "--admin-address", s.node.Dir("run", "admin.sock"), "images", "check", "--deep")
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return first
}

func TestIntegrationContainerd(t *testing.T) {
	s := open(t)
	sock := filepath.Join(s.root, "containerd.sock")
	config := filepath.Join(s.root, "config.toml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		s.root, filepath.Join(s.root, "state"), sock), 0o600))
	daemon := s.node.Space().Command(context.Background(), filepath.Join(s.peers, "usr/bin/containerd"), "--config", config)
	proc, err := harness.Launch("containerd", daemon)
	must(t, err)
	stop := func() { must(t, proc.End(syscall.SIGTERM)) }
	defer func() { _ = proc.End(syscall.SIGKILL) }()
	ctr := func(args ...string) { s.peer(t, "ctr", append([]string{"-a", sock, "-n", "k8s.io"}, args...)...) }
	for limit := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if _, err := s.run(t, filepath.Join(s.peers, "usr/bin/ctr"), "-a", sock, "version"); err == nil {
			break
		} else if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	want := verdicts()
	for image := range want {
		ctr("images", "pull", "--plain-http", s.name(image))
	}
	id, top := s.id(t, "docker:1")
	ctr("images", "tag", s.name("docker:1"), id) // as the CRI plugin does
	ctr("images", "tag", s.name("docker:1"), s.name("docker@"+top))
	ctr("images", "label", s.name("multi:1"), "io.cri-containerd.pinned=pinned")
	if _, err := s.migrate(t, "check", "containerd"); err == nil || !strings.Contains(err.Error(), "Stop it") {
		t.Errorf("while containerd runs: %v", err)
	}
	stop()

	// What discard_unpacked_layers takes away, and what a bad disk does.
	must(t, os.Remove(s.blob(t, "gone:1")))
	raw, err := os.ReadFile(s.blob(t, "bad:1"))
	must(t, err)
	raw[len(raw)/2] ^= 1
	must(t, os.WriteFile(s.blob(t, "bad:1"), raw, 0o600))

	r, err := s.migrate(t, "check", "containerd")
	must(t, err)
	if v, note, _ := r.verdict(s.name("gone:1")); v != "left" || !strings.Contains(note, "discard_unpacked_layers") {
		t.Errorf("a discarded layer: %s, %s", v, note)
	}
	if v, note, bytes := r.verdict(s.name("multi:1")); v != "possible" || !strings.Contains(note, "image.pinned") || bytes == 0 {
		t.Errorf("a pinned image: %s, %s, %d bytes", v, note, bytes)
	}
	r = s.adopt(t, "containerd", want)
	if v, _, _ := r.verdict(s.name("docker@" + top)); v != "adopted" {
		t.Errorf("the name by digest is %s", v)
	}
	if _, note, _ := r.verdict(s.name("bad:1")); !strings.Contains(note, "other bytes") {
		t.Errorf("a damaged layer: %s", note)
	}
}

// blob is the file of the image's topmost layer in containerd's store.
func (s *scene) blob(t *testing.T, image string) string {
	t.Helper()
	layers, err := s.have[image].(v1.Image).Layers()
	must(t, err)
	d, err := layers[len(layers)-1].Digest()
	must(t, err)
	return filepath.Join(s.root, "io.containerd.content.v1.content/blobs/sha256", d.Hex)
}

func TestIntegrationCRIO(t *testing.T) {
	s := open(t)
	want := verdicts()
	// skopeo keeps a cache there, wherever its store is.
	if out, err := s.run(t, "mount", "-t", "tmpfs", "tmpfs", "/var/lib"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pull := func(name string) {
		s.peer(t, "skopeo", "--insecure-policy", "--tmpdir", s.root, "copy", "--src-tls-verify=false", "docker://"+name,
			"containers-storage:[overlay@"+s.root+"+"+filepath.Join(s.root, "run")+"]"+name)
	}
	for image := range want {
		pull(s.name(image))
	}
	_, index := s.id(t, "multi:1")
	m, err := s.have["multi:1"].(v1.ImageIndex).IndexManifest()
	must(t, err)
	byDigest := []string{s.name("multi@" + index), s.name("multi@" + m.Manifests[1].Digest.String())}
	for _, name := range byDigest {
		pull(name)
	}
	// A file that is gone, and one that a bad disk changed.
	must(t, os.Remove(filepath.Join(s.diff(t, "gone:1"), "note")))
	must(t, os.WriteFile(filepath.Join(s.diff(t, "bad:1"), "marker"), []byte("imag3\n"), 0o644))
	r, err := s.migrate(t, "check", "crio")
	must(t, err)
	if v, _, bytes := r.verdict(s.name("multi:1")); v != "possible" || bytes == 0 {
		t.Errorf("an image that can be taken over is %s, %d bytes", v, bytes)
	}
	r = s.adopt(t, "crio", want)
	for _, name := range byDigest {
		if v, note, _ := r.verdict(name); v != "adopted" {
			t.Errorf("%s is %s: %s", name, v, note)
		}
	}
	for image, says := range map[string]string{"gone:1": "no such file", "bad:1": "other bytes"} {
		if _, note, _ := r.verdict(s.name(image)); !strings.Contains(note, says) {
			t.Errorf("%s: %q, want %q", image, note, says)
		}
	}
}

// diff is the directory of the image's topmost layer in CRI-O's store.
func (s *scene) diff(t *testing.T, image string) string {
	t.Helper()
	layers, err := s.have[image].(v1.Image).Layers()
	must(t, err)
	want, err := layers[len(layers)-1].DiffID()
	must(t, err)
	raw, err := os.ReadFile(filepath.Join(s.root, "overlay-layers/layers.json"))
	must(t, err)
	var all []map[string]any
	must(t, json.Unmarshal(raw, &all))
	for _, l := range all {
		if l["diff-digest"] == want.String() {
			return filepath.Join(s.root, "overlay", l["id"].(string), "diff")
		}
	}
	t.Fatalf("no layer %s", want)
	return ""
}
