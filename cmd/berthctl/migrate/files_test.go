package migrate

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lay writes files below a new directory.
func lay(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// source finds one of the runtimes.
func theSource(t *testing.T, from string) source {
	t.Helper()
	s, err := options{from: from}.source()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// set is what Berth's keys are given by a report.
func set(r Report) map[string]any {
	out := map[string]any{}
	for _, row := range r.Settings {
		maps.Copy(out, row.ours)
	}
	return out
}

// TestContainerdFiles: containerd's files are of different versions, import each
// other, and say the same plugin's settings under different names.
func TestContainerdFiles(t *testing.T) {
	dir := lay(t, map[string]string{
		"config.toml": "version = 2\nimports = ['a.toml', 'conf.d/*.toml']\n[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/root'\nbin_dirs = ['/root']\n",
		"a.toml":      "version = 3\nimports = ['b.toml', 'config.toml']\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/a'\n",
		"b.toml":      "[plugins.'io.containerd.grpc.v1.cri']\nenable_selinux = true\n[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/b'\n",
		"conf.d/99-nvidia.toml": "version = 4\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]\nBinaryName = '/usr/bin/nvidia-container-runtime'\n" +
			"[plugins.'io.containerd.server.v1.metrics']\naddress = '127.0.0.1:1338'\n[plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_downloads = 9\n",
	})
	for range 20 { // no order of a map's keys shows
		r, err := load(theSource(t, "containerd"), filepath.Join(dir, "config.toml"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := berthFile(r); err != nil {
			t.Fatal(err)
		}
		got := set(r)
		for key, want := range map[string]any{
			"cni.conf_dir": "/b", "container.selinux": true, "metrics.address": "127.0.0.1:1338", "image.max_downloads": int64(9),
			"runtime.handlers.nvidia.path": "/usr/bin/nvidia-container-runtime",
		} {
			if got[key] != want {
				t.Fatalf("%s is %v, want %v", key, got[key], want)
			}
		}
		if !slices.Equal(r.Handlers, []string{"nvidia", "runc"}) {
			t.Fatalf("handlers %v: containerd has runc without being told", r.Handlers)
		}
	}
	for text, says := range map[string]string{
		"version = 9\n":                     "newer than this berthctl",
		"version = 1\n[plugins.cri]\n":      "containerd config migrate",
		"version = 2\nimports = ['none']\n": "none: no such file",
	} {
		dir := lay(t, map[string]string{"config.toml": "version = 2\nimports = ['a.toml']\n", "a.toml": text})
		if _, err := load(theSource(t, "containerd"), filepath.Join(dir, "config.toml")); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q imported: %v, want %q", text, err, says)
		}
	}
}

// TestCRIOFiles: CRI-O reads whatever lies in its directory, in order, and takes
// a handler from the last file that names it.
func TestCRIOFiles(t *testing.T) {
	dir := lay(t, map[string]string{
		"crio.conf":              "[crio.runtime]\nlog_level = 'debug'\n",
		"conf.d/10-crio":         "[crio.runtime]\ndefault_runtime = 'crun'\n[crio.runtime.runtimes.crun]\nruntime_path = '/usr/libexec/crio/crun'\nruntime_root = '/run/one'\n",
		"conf.d/20/a.conf":       "[crio.runtime.runtimes.crun]\nruntime_root = '/run/two'\n",
		"conf.d/30-site.conf":    "[crio.runtime]\nlog_level = 'warn'\n",
		"conf.d/20/b/c/sub.conf": "[crio.image]\nglobal_auth_file = '/auth'\n",
	})
	s := theSource(t, "crio")
	s.file, s.dropIns = filepath.Join(dir, "crio.conf"), filepath.Join(dir, "conf.d")
	r, err := load(s, "")
	if err != nil {
		t.Fatal(err)
	}
	got := set(r)
	for key, want := range map[string]any{"runtime.default": "crun", "log.level": "warn", "runtime.handlers.crun.root": "/run/two", "runtime.handlers.crun.path": nil} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	if got["image.auth_files"] == nil {
		t.Error("a directory below is not read")
	}
}

// TestDefaultHandlers: what a runtime has without being told is no reason to
// refuse its configuration.
func TestDefaultHandlers(t *testing.T) {
	for name, tt := range map[string]struct {
		text     string
		handlers []string
		lost     bool
	}{
		"default without a table": {"[crio.runtime]\ndefault_runtime = 'crun'\n", []string{"crun"}, false},
		"none named":              {"[crio.runtime.runtimes.crun]\nruntime_path = '/usr/bin/crun'\n", []string{"crun", "runc"}, true},
		"nothing":                 {"", []string{"runc"}, true},
	} {
		dir := lay(t, map[string]string{"crio.conf": tt.text})
		r, err := load(theSource(t, "crio"), filepath.Join(dir, "crio.conf"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := berthFile(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		lost := slices.ContainsFunc(r.Settings, func(r Row) bool { return r.Key == "crio.runtime.default_runtime" && r.Verdict == "lost" })
		if !slices.Equal(r.Handlers, tt.handlers) || lost != tt.lost {
			t.Errorf("%s: handlers %v, default lost: %v", name, r.Handlers, lost)
		}
	}
}

// TestSecretsStay: a report goes into tickets.
func TestSecretsStay(t *testing.T) {
	const registry = "plugins.'io.containerd.grpc.v1.cri'.registry"
	dir := lay(t, map[string]string{"config.toml": "version = 2\n[" + registry + ".configs.'r.test'.auth]\npassword = 'hunter2'\nidentitytoken = 'hunter2'\n" +
		"[" + registry + ".auths.'r.test']\nauth = 'hunter2'\n[" + registry + ".headers]\nAuthorization = ['hunter2']\n"})
	out, err := run(t, "check", "--from", "containerd", "--config", filepath.Join(dir, "config.toml"))
	if err != nil || strings.Contains(out, "hunter2") || strings.Count(out, "(hidden)") != 4 || strings.Contains(out, "unknown") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestImageRootElsewhere: CRI-O's images are where containers/storage has them.
func TestImageRootElsewhere(t *testing.T) {
	for name, tt := range map[string]struct{ crio, storage, root string }{
		"storage.conf":         {"", "[storage]\ngraphroot = '/data/graph'\n", "/data/graph"},
		"a store of images":    {"", "[storage]\ngraphroot = '/data/graph'\nimagestore = '/data/images'\n", "/data/images"},
		"CRI-O's own":          {"[crio]\nroot = '/data/own'\n", "[storage]\ngraphroot = '/data/graph'\n", "/data/own"},
		"CRI-O's own store":    {"[crio]\nroot = '/data/own'\nimagestore = '/data/images'\n", "", "/data/images"},
		"neither says a thing": {"", "", "/var/lib/containers/storage"},
	} {
		dir := lay(t, map[string]string{"crio.conf": tt.crio, "storage.conf": tt.storage})
		s := theSource(t, "crio")
		s.storage = []string{filepath.Join(dir, "none"), filepath.Join(dir, "storage.conf")}
		if root, err := s.imageRoot(filepath.Join(dir, "crio.conf")); err != nil || root != tt.root {
			t.Errorf("%s: %q, %v, want %q", name, root, err, tt.root)
		}
	}
}
