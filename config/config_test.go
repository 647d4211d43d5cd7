package config

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestDefaultFile(t *testing.T) {
	text := DefaultFile()
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	commented, err := Parse("default", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	active := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(text, "$1")
	if strings.Count(active, " = ") < 20 {
		t.Fatalf("too few keys:\n%s", active)
	}
	spelled, err := Parse("default", []byte(active))
	if err != nil {
		t.Fatal(err)
	}
	dumped, err := Parse("dump", []byte(Dump(Default())))
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]Config{"commented": commented, "spelled": spelled, "dumped": dumped} {
		if d := cmp.Diff(Default(), got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s file is not the default (-want +got):\n%s", name, d)
		}
	}
}

// The file that is installed is the generated one.
func TestDeployFile(t *testing.T) {
	const path = "../deploy/config.toml"
	if os.Getenv("BERTH_REWRITE") != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(DefaultFile()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(DefaultFile(), string(b)); d != "" {
		t.Errorf("deploy/config.toml is stale; run BERTH_REWRITE=1 go test ./config (-want +got):\n%s", d)
	}
}

func TestEveryKeyIsDocumented(t *testing.T) {
	for _, tb := range tables(Default()) {
		if tb.doc == "" {
			t.Errorf("table %s has no doc", tb.path)
		}
		for _, k := range tb.keys {
			if k.Doc == "" {
				t.Errorf("key %s has no doc", k.Path)
			}
		}
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"slip in a key", "[log]\n\nlevle = \"info\"\n", `f:3: unknown key "log.levle"; did you mean "log.level"?`},
		{"slip in a table", "[loging]\nlevel = \"info\"\n", `did you mean "log"?`},
		{"key in the wrong table", "[cgroup]\npath = \"x\"\n", `did you mean "runtime.handlers.NAME.path"?`},
		{"key in a handler", "[runtime.handlers.runc]\nseccomp_defualt = true\n", `f:2: unknown key "runtime.handlers.runc.seccomp_defualt"; did you mean "runtime.handlers.runc.seccomp_default"?`},
		{"nothing near", "[paths]\nzzzzzz = 1\n", "`berthctl config default` lists all keys"},
		{"all at once", "[log]\nlevle = 1\n[cni]\nconfdir = 2\n", `did you mean "cni.conf_dir"?`},
		{"wrong type", "[log]\nlevel = 3\n", "f:2"},
		{"syntax", "[log\n", "f:1"},
		{"bad size", "[image]\nmax_layer_size = \"12 parsecs\"\n", "16MiB"},
		{"bad duration", "[streaming]\nidle_timeout = \"soon\"\n", "90s"},
		{"bad level", "[log]\nlevel = \"loud\"\n", `log.level: "loud" is not one of debug, info, warn, error`},
		{"relative path", "[paths]\nroot = \"x\"\n", `paths.root: "x" must be an absolute path`},
		{"same directory", "[paths]\nroot = \"/a\"\nrun = \"/a/\"\n", "same directory"},
		{"no such default", "[runtime]\ndefault = \"kata\"\n", "[runtime.handlers.kata]"},
		{"pids limit", "[runtime.handlers.runc]\npids_limit = -2\n", "runtime.handlers.runc.pids_limit: -2 is out of range"},
		{"annotation pattern", "[runtime.handlers.runc]\npod_annotations = [\"a[\"]\n", `runtime.handlers.runc.pod_annotations: "a[" is not a pattern`},
		{"half of tls", "[streaming]\ntls_cert = \"/a\"\n", "belong together"},
		{"address", "[streaming]\naddress = \"localhost\"\n", "not an IP address"},
		{"no plugins", "[cni]\nbin_dirs = []\n", "cni.bin_dirs"},
		{"signature rule without a signer", "[image.signatures.rules.\"r.test/a\"]\n", "image.signatures.rules.\"r.test/a\": needs either keys"},
		{"signature rule with half an identity", "[image.signatures.rules.localhost]\nissuer = \"https://i.test\"\n", "belong together"},
		{"signature rule without a registry", "[image.signatures.rules.\"library/busybox\"]\nunsigned = true\n", "is not the beginning of an image's name"},
		{"signature rule for tag v1", "[image.signatures.rules.\"r.test/a:v1\"]\nunsigned = true\n", "is not the beginning of an image's name"},
		{"signature rule for a tag", "[image.signatures.rules.\"r.test/a@sha256:1\"]\nunsigned = true\n", "is not the beginning of an image's name"},
		{"signature rule's key", "[image.signatures.rules.localhost]\nkeyz = []\n", "did you mean \"image.signatures.rules.localhost.keys\"?"},
		{"signature default", "[image.signatures]\ndefault = \"no\"\n", "image.signatures.default: \"no\" is not one of accept, reject"},
		{"signature rule for everybody", "[image.signatures.rules.localhost]\ntrusted_root = \"/r\"\nissuer = \"i\"\nidentities = [\"*\"]\n", "would accept whoever the issuer knows"},
		{"default sysctl of the node", "[container]\ndefault_sysctls = [\"kernel.panic=1\"]\n", "container.default_sysctls"},
		{"default sysctl without a value", "[container]\ndefault_sysctls = [\"net.ipv4.ip_forward\"]\n", "container.default_sysctls"},
		{"exec limit", "[container]\nexec_output_limit = \"1GiB\"\n", "out of range"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.text))
			if err == nil {
				t.Fatal("accepted")
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%v is not InvalidArgument", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestParseKeepsAndReplaces(t *testing.T) {
	c, err := Parse("f", []byte(`
[cni]
bin_dirs = ["/x"]
[image]
max_layer_size = "2GiB"
[runtime]
default = "crun"
[runtime.handlers.crun]
path = "/usr/bin/crun"
seccomp_default = true
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.CNI.BinDirs = []string{"/x"}
	want.Image.MaxLayerSize = 2 << 30
	want.Runtime = Runtime{Default: "crun", Handlers: map[string]Handler{"crun": {HandlerFiles: HandlerFiles{Path: "/usr/bin/crun"}, SeccompDefault: true}}}
	if d := cmp.Diff(want, c); d != "" {
		t.Error(d)
	}
	if got := c.RuntimeRoot("crun"); got != "/run/berth/runc-crun" {
		t.Errorf("root of crun is %s", got)
	}
}

func TestDiff(t *testing.T) {
	a, b := Default(), Default()
	b.Log.Level = "debug"
	b.CNI.ConfDir = "/x"
	b.Runtime.Handlers = map[string]Handler{"crun": {}}
	got := map[string]Difference{}
	for _, d := range Diff(a, b) {
		got[d.Path] = d
	}
	if d := got["log.level"]; !d.Hot || d.Old != `"info"` || d.New != `"debug"` {
		t.Errorf("log.level: %+v", d)
	}
	if d := got["cni.conf_dir"]; d.Hot || d.New != `"/x"` {
		t.Errorf("cni.conf_dir: %+v", d)
	}
	if d := got["runtime.handlers.runc.path"]; d.New != "" || d.Old != `""` {
		t.Errorf("gone handler: %+v", d)
	}
	if _, ok := got["runtime.handlers.crun.path"]; !ok {
		t.Error("new handler is missing")
	}
	if n := len(Diff(a, a)); n != 0 {
		t.Errorf("%d differences to itself", n)
	}
}

func TestLoad(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.toml")
	if _, src, err := Load(missing, true); err != nil || src != "built-in defaults" {
		t.Errorf("may miss: %q, %v", src, err)
	}
	if _, _, err := Load(missing, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("named and missing: %v", err)
	}
}

func TestSizeAndDuration(t *testing.T) {
	for in, want := range map[string]string{"16MiB": "16MiB", "16384": "16KiB", "0": "0", "1025B": "1025B", "3TiB": "3TiB"} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err != nil || s.String() != want {
			t.Errorf("size %q: %v, %v", in, s, err)
		}
	}
	for _, in := range []string{"", "-1", "1.5MiB", "MiB", "9999999999TiB"} {
		if err := new(Size).UnmarshalText([]byte(in)); err == nil {
			t.Errorf("size %q accepted", in)
		}
	}
	for in, want := range map[string]string{"4h": "4h", "90s": "1m30s", "60s": "1m", "1h0m5s": "1h0m5s", "10m": "10m"} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err != nil || d.String() != want {
			t.Errorf("duration %q: %v, %v", in, d, err)
		}
	}
}

// FuzzParse checks that no text crashes the parser, and that what it accepts
// survives a dump.
func FuzzParse(f *testing.F) {
	f.Add(DefaultFile())
	f.Add(Dump(Default()))
	f.Add("[runtime.handlers.\"a b\"]\npath='/x'\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("f", []byte(text))
		if err != nil {
			return
		}
		again, err := Parse("dump", []byte(Dump(c)))
		if err != nil {
			t.Fatalf("dump does not parse: %v\n%s", err, Dump(c))
		}
		if len(Diff(c, again)) != 0 {
			t.Fatalf("dump changes it: %v", Diff(c, again))
		}
	})
}
