package migrate

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/test/golden"
)

// run runs `berthctl migrate` and returns what it prints.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := Command(&cli.App{Output: "table"})
	c.SetArgs(args)
	c.SetOut(&out)
	c.SilenceUsage, c.SilenceErrors = true, true
	err := c.Execute()
	return out.String(), err
}

// TestMigrate translates files as nodes have them.
func TestMigrate(t *testing.T) {
	for name, from := range map[string]string{"containerd-v2": "containerd", "containerd-v3": "containerd", "crio": "crio"} {
		file := "testdata/" + name + ".toml"
		report, err := run(t, "check", "--from", from, "--config", file)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden.File(t, "testdata/"+name+".report", report)
		text, err := run(t, "import", "--from", from, "--config", file, "--to", "-")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden.File(t, "testdata/"+name+".berth", text)
		if _, err := config.Parse(name, []byte(text)); err != nil {
			t.Errorf("%s: Berth refuses its own file: %v", name, err)
		}
	}
}

// TestRulesNameKeys: what the rules set are keys of Berth.
func TestRulesNameKeys(t *testing.T) {
	var keys []string
	for _, k := range config.Keys(config.Default()) {
		keys = append(keys, k.Path)
	}
	seen := map[string]bool{}
	for _, r := range slices.Concat(containerdRules, crioRules) {
		if seen[r.theirs] {
			t.Errorf("%s has two rules", r.theirs)
		}
		seen[r.theirs] = true
		if r.ours == "" && r.note == "" {
			t.Errorf("%s: nothing says what becomes of it", r.theirs)
		}
		ours := strings.Replace(strings.Replace(r.ours, "**", "runc", 1), "*", "runc", 1)
		if ours != "" && ours != nothing && !slices.Contains(keys, ours) {
			t.Errorf("%s: Berth has no key %s", r.theirs, ours)
		}
	}
}

func TestImports(t *testing.T) {
	dir := lay(t, map[string]string{
		"config.toml":     "version = 3\nimports = [\"conf.d/*.toml\"]\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = \"/one\"\n",
		"conf.d/a.toml":   "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = \"/two\"\n",
		"conf.d/not.conf": "not TOML",
	})
	out := filepath.Join(dir, "etc/berth/config.toml")
	args := []string{"import", "--from", "containerd", "--config", filepath.Join(dir, "config.toml"), "--to", out}
	if said, err := run(t, args...); err != nil || !strings.Contains(said, out) {
		t.Fatalf("%s, %v", said, err)
	}
	text, err := os.ReadFile(out)
	if err != nil || !strings.Contains(string(text), `conf_dir = '/two'`) {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := run(t, args...); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a file that exists is replaced: %v", err)
	}
	if _, err := run(t, append(args, "--force")...); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	for text, says := range map[string]string{
		"":                           "containerd config migrate",
		"version = 1\n[plugins.cri]": "containerd config migrate",
		"version = 9":                "newer than this berthctl",
		"version = \n":               "read " + dir,
		"version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = \"relative\"\n": "cni.conf_dir",
	} {
		file := filepath.Join(dir, fmt.Sprintf("%x.toml", text))
		if len(file) > 200 {
			file = filepath.Join(dir, "long.toml")
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := run(t, "check", "--from", "containerd", "--config", file); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	if _, err := run(t, "check", "--from", "containerd", "--config", filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "--config") {
		t.Errorf("no file: %v", err)
	}
	if _, err := run(t, "check", "--from", "docker"); err == nil || !strings.Contains(err.Error(), "containerd or crio") {
		t.Errorf("docker: %v", err)
	}
}
