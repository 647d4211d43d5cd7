package signature

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	st "github.com/berth-dev/berth/imageservice/signature/signaturetest"
)

func TestLongestPrefixOfWholeParts(t *testing.T) {
	p, err := Load(Config{Rules: map[string]Rule{
		"docker.io/library": {Unsigned: true}, "registry.test": {Unsigned: true}, "registry.test/a/b": {Unsigned: true}, "registry.test:5000/a": {Unsigned: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"docker.io/library/busybox": "docker.io/library", "docker.io/other/x": "", "index.docker.io/library/x": "docker.io/library",
		"registry.test/a": "registry.test", "registry.test/a/b": "registry.test/a/b", "registry.test/a/b/c": "registry.test/a/b",
		"registry.test/a/bc": "registry.test", "registry.testing/a": "", "Registry.TEST/a/b/c": "registry.test/a/b",
		"registry.test:443/a/b": "registry.test/a/b", "registry.test:5000/a/b": "registry.test:5000/a", "registry.test:5000/b": "",
	} {
		r := p.For(name)
		if got := ""; r != nil && r.Prefix != want || r == nil && want != got {
			t.Errorf("%s: %+v, want %q", name, r, want)
		}
	}
}

func TestPolicyIsOff(t *testing.T) {
	p, err := Load(Config{Program: "/nonexistent"})
	if p != nil || err != nil {
		t.Fatalf("no rules: %v, %v", p, err)
	}
	if err := p.Permit(nil, nil); err != nil {
		t.Error(err)
	}
}

func TestPermit(t *testing.T) {
	key := st.NewKey(t)
	rules := map[string]Rule{"a.test": {Keys: []string{key.File(t)}}, "free.test": {Unsigned: true}}
	accept, err := Load(Config{Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	reject, err := Load(Config{Rules: rules, Reject: true})
	if err != nil {
		t.Fatal(err)
	}
	want := accept.For("a.test/x").Digest
	none := func(digest.Digest) bool { return false }
	has := func(d digest.Digest) bool { return d == want }
	for _, c := range []struct {
		policy   *Policy
		names    string
		verified func(digest.Digest) bool
		ok       bool
	}{
		{accept, "a.test/x", none, false},
		{accept, "a.test/x", has, true},
		{accept, "b.test/x", none, true},
		{accept, "b.test/x a.test/x", none, false},
		{accept, "free.test/x a.test/x", has, true},
		{accept, "", has, false},
		{reject, "a.test/x", has, true},
		{reject, "b.test/x", has, false},
		{reject, "free.test/x", none, true},
		{reject, "free.test/x b.test/x", none, false},
	} {
		err := c.policy.Permit(strings.Fields(c.names), c.verified)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("reject %v, %q: %v", c.policy.reject, c.names, err)
		}
	}
}

func TestDigestCoversFiles(t *testing.T) {
	one, two := st.NewKey(t), st.NewKey(t)
	path := one.File(t)
	load := func(r Rule) digest.Digest {
		t.Helper()
		p, err := Load(Config{Rules: map[string]Rule{"a.test": r}})
		if err != nil {
			t.Fatal(err)
		}
		return p.For("a.test/x").Digest
	}
	before := load(Rule{Keys: []string{path}})
	if again := load(Rule{Keys: []string{one.File(t)}}); again != before {
		t.Error("the same key in another file is another requirement")
	}
	if err := os.WriteFile(path, []byte(two.PEM(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	if load(Rule{Keys: []string{path}}) == before {
		t.Error("another key in the same file is the same requirement")
	}
	root := st.File(t, "root.json", []byte(`{"a": 1}`))
	a := load(Rule{TrustedRoot: root, Issuer: "i", Identities: []string{"x"}})
	if b := load(Rule{TrustedRoot: root, Issuer: "i", Identities: []string{"y"}}); a == b {
		t.Error("another identity is the same requirement")
	}
	if b := load(Rule{TrustedRoot: st.File(t, "r", []byte(`{"a":2}`)), Issuer: "i", Identities: []string{"x"}}); a == b {
		t.Error("another root is the same requirement")
	}
}

func TestLoadRefuses(t *testing.T) {
	key, text := st.NewKey(t).File(t), st.File(t, "x", []byte("x"))
	for name, r := range map[string]Rule{
		"":                            {},
		"no such file":                {Keys: []string{filepath.Join(t.TempDir(), "none")}},
		"not one public key":          {Keys: []string{text}},
		"belong together":             {Keys: []string{key}, Issuer: "i"},
		"invalid character":           {TrustedRoot: text, Issuer: "i", Identities: []string{"x"}},
		"whoever the issuer knows":    {TrustedRoot: text, Issuer: "i", Identities: []string{"*"}},
		"would decide nothing":        {Keys: []string{key}, Unsigned: true},
		"no image could be accepted":  {},
		"is not one public key in PE": {Keys: []string{st.File(t, "two", []byte(st.NewKey(t).PEM(t)+st.NewKey(t).PEM(t)))}},
	} {
		_, err := Load(Config{Rules: map[string]Rule{"a.test": r}})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
