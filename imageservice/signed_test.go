package imageservice

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/imageservice/signature"
	"github.com/berth-dev/berth/imageservice/signature/check"
	st "github.com/berth-dev/berth/imageservice/signature/signaturetest"
	"github.com/berth-dev/berth/store"
)

// TestMain lets the test's own program be berth-verify.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "berth-verify" {
		os.Exit(check.Main())
	}
	os.Exit(m.Run())
}

func verifier(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "berth-verify")
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// enforce puts a policy in force: rules by prefix, the rest refused or not.
func (n *node) enforce(t *testing.T, c signature.Config) {
	t.Helper()
	c.Program = verifier(t)
	p, err := signature.Load(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Try(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.SetSignatures(p)
}

func (n *node) resolve(name string) (store.Image, error) {
	return n.Resolve(context.Background(), &runtimeapi.ImageSpec{Image: name})
}

// refused fails unless both verbs with which a container gets an image refuse it.
func (n *node) refused(t *testing.T, name, why string) {
	t.Helper()
	img, err := n.resolve(name)
	if !errors.Is(err, signature.ErrRefused) || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), why) {
		t.Errorf("create from %s: %v, want it refused because %q", name, err, why)
	}
	dir := t.TempDir()
	if err := n.Mount(context.Background(), "c1", img, dir, store.RootView{}); !errors.Is(err, signature.ErrRefused) {
		t.Errorf("mount %s: %v", name, err)
	}
	if err := n.Lend(context.Background(), "c1", img, dir, store.RootView{}); !errors.Is(err, signature.ErrRefused) {
		t.Errorf("mount %s as a volume: %v", name, err)
	}
}

func small(t *testing.T, reg *rt.Server, repo, tag, body string) rt.Image {
	t.Helper()
	return reg.Push(t, repo, tag, ocispec.ImageConfig{}, rt.Pack(t, rt.Tar(t, file("f", body)), "gzip"))
}

func TestIntegrationSignedPull(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	key, wrong := st.NewKey(t), st.NewKey(t)
	auth := st.NewAuthority(t)
	const issuer, id = "https://issuer.example", "https://ci.example/app@v1"
	host := reg.Host()
	n := newNode(t, nil)
	n.enforce(t, signature.Config{Rules: map[string]signature.Rule{
		host + "/key":  {Keys: []string{wrong.File(t), key.File(t)}},
		host + "/team": {TrustedRoot: auth.Root(t, false), Issuer: issuer, Identities: []string{"https://ci.example/*"}},
		host + "/free": {Unsigned: true},
	}, Reject: true})
	sign := func(repo string, img rt.Image, how func(d digest.Digest) st.Legacy) {
		st.AttachLegacy(t, reg, repo, img.Manifest.Digest, how(img.Manifest.Digest))
	}
	bundle := func(repo string, img rt.Image, raw []byte) {
		st.AttachIndex(t, reg, repo, img.Manifest.Digest, st.AttachBundle(t, reg, repo, img.Manifest, raw))
	}
	byKey := func(k st.Key) func(digest.Digest) st.Legacy {
		return func(d digest.Digest) st.Legacy { return k.Legacy(t, st.Payload(d)) }
	}
	good := small(t, reg, "key/old", "v1", "old")
	sign("key/old", good, byKey(key))
	img := small(t, reg, "key/bundle", "v1", "bundle")
	bundle("key/bundle", img, key.Bundle(t, img.Manifest.Digest, st.Signed))
	img = small(t, reg, "team/bundle", "v1", "team")
	bundle("team/bundle", img, auth.Bundle(t, img.Manifest.Digest, id, issuer))
	img = small(t, reg, "team/old", "v1", "team old")
	sign("team/old", img, func(d digest.Digest) st.Legacy { return auth.Legacy(t, st.Payload(d), id, issuer) })
	small(t, reg, "free/app", "v1", "free")
	for _, name := range []string{"key/old:v1", "key/bundle:v1", "team/bundle:v1", "team/old:v1", "free/app:v1", "key/old@" + good.Manifest.Digest.String()} {
		id := n.mustPull(t, host+"/"+name)
		if _, err := n.resolve(id); err != nil {
			t.Errorf("create from %s: %v", name, err)
		}
	}

	stranger := small(t, reg, "key/wrong", "v1", "wrong key")
	sign("key/wrong", stranger, byKey(st.NewKey(t)))
	replay := small(t, reg, "key/replay", "v1", "replay")
	st.AttachLegacy(t, reg, "key/replay", replay.Manifest.Digest, key.Legacy(t, st.Payload(good.Manifest.Digest)))
	small(t, reg, "key/none", "v1", "unsigned")
	img = small(t, reg, "key/note", "v1", "provenance")
	bundle("key/note", img, key.Bundle(t, img.Manifest.Digest, "https://slsa.dev/provenance/v1"))
	img = small(t, reg, "team/other", "v1", "other identity")
	bundle("team/other", img, auth.Bundle(t, img.Manifest.Digest, "https://evil.example/x", issuer))
	img = small(t, reg, "team/key", "v1", "a key where an identity is wanted")
	sign("team/key", img, byKey(key))
	small(t, reg, "elsewhere", "v1", "no rule")
	small(t, reg, "keys/app", "v1", "no rule either")
	for name, why := range map[string]string{
		"key/wrong:v1": "no key of the rule", "key/replay:v1": "another manifest", "key/none:v1": "has no signature", "key/note:v1": "no signature of the image",
		"team/other:v1": "identity", "team/key:v1": "the rule has none", "elsewhere:v1": "no signature rule", "keys/app:v1": "no signature rule",
	} {
		_, err := n.tryPull(host+"/"+name, nil)
		if !errors.Is(err, signature.ErrRefused) || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), why) {
			t.Errorf("pull %s: %v, want it refused because %q", name, err, why)
		}
		if n.image(t, host+"/"+name) != nil {
			t.Errorf("%s is on the node", name)
		}
	}
}

// A signature of the index counts for the manifests it lists, found by the
// registry's own list of referrers.
func TestIntegrationSignedIndex(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	key := st.NewKey(t)
	img := small(t, reg, "app", "arch", "index")
	d := img.Manifest
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	top := reg.PushManifest(t, "app", "v1", ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d},
	})
	b := st.AttachBundle(t, reg, "app", top, key.Bundle(t, top.Digest, st.Signed))
	st.AttachIndex(t, reg, "app", top.Digest, b)
	list, raw := "/referrers/"+top.Digest.String(), []byte(nil)
	reg.Inject(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if !strings.Contains(r.URL.Path, list) {
			return false
		}
		plain := r.Clone(r.Context())
		plain.URL.Path = strings.Replace(r.URL.Path, list, "/manifests/"+strings.Replace(top.Digest.String(), ":", "-", 1), 1)
		_, raw = rt.Body(next, plain)
		_, _ = w.Write(raw)
		return true
	})
	n := newNode(t, nil)
	n.enforce(t, signature.Config{Rules: map[string]signature.Rule{reg.Host(): {Keys: []string{key.File(t)}}}})
	id := n.mustPull(t, reg.Host()+"/app:v1")
	if raw == nil {
		t.Error("the registry's list of referrers was not asked for")
	}
	rec, _ := n.db.Image(id)
	if len(rec.Verified) != 1 || rec.Verified[0].Manifest != img.Manifest.Digest.String() || !strings.HasPrefix(rec.Verified[0].By, "key ") {
		t.Errorf("facts: %+v", rec.Verified)
	}
	// The fact survives in the record; nobody is asked again.
	gets := reg.Count("GET", "")
	if _, err := n.resolve(id); err != nil || reg.Count("GET", "") != gets {
		t.Errorf("create: %v, %d requests", err, reg.Count("GET", "")-gets)
	}
	// The same manifest by its own digest was verified, too.
	n.mustPull(t, reg.Host()+"/app@"+img.Manifest.Digest.String())
}

func TestIntegrationSignaturePolicyChanges(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	key, next := st.NewKey(t), st.NewKey(t)
	signed, plain := small(t, reg, "app", "v1", "signed"), small(t, reg, "app", "v2", "plain")
	st.AttachLegacy(t, reg, "app", signed.Manifest.Digest, key.Legacy(t, st.Payload(signed.Manifest.Digest)))
	n := newNode(t, nil)
	host := reg.Host()
	app := func(k st.Key) signature.Config {
		return signature.Config{Rules: map[string]signature.Rule{host + "/app": {Keys: []string{k.File(t)}}}}
	}
	// What was here before the policy is refused until it is pulled again.
	id, other := n.mustPull(t, host+"/app:v1"), n.mustPull(t, host+"/app:v2")
	if _, err := n.resolve(id); err != nil {
		t.Fatal(err)
	}
	n.enforce(t, app(key))
	n.refused(t, id, "pull it again")
	n.refused(t, host+"/app:v1", "pull it again")
	n.refused(t, other, "pull it again")
	if n.image(t, id).GetId() != id {
		t.Error("the refused image's status cannot be asked for")
	}
	if got := n.mustPull(t, host+"/app:v1"); got != id {
		t.Errorf("pulled again: %s", got)
	}
	if _, err := n.resolve(id); err != nil {
		t.Errorf("create from what was pulled again: %v", err)
	}
	if _, err := n.tryPull(host+"/app:v2", nil); !errors.Is(err, signature.ErrRefused) {
		t.Errorf("pull of the unsigned one: %v", err)
	}
	// Another name is no way around, nor is an archive.
	if _, err := n.Tag(context.Background(), plain.ID.String(), "free.example/app:v2"); err != nil {
		t.Fatal(err)
	}
	n.refused(t, "free.example/app:v2", "pull it again")
	var tar bytes.Buffer
	if err := n.Export(context.Background(), []string{host + "/app:v2"}, &tar); err != nil {
		t.Fatal(err)
	}
	n.remove(t, other)
	if _, err := n.Import(context.Background(), &tar, ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	n.refused(t, other, "pull it again")
	// A tag that moves takes no verdict along.
	reg.PushManifest(t, "app", "v1", plain.Manifest.MediaType, manifestOf(t, reg, "app", "v2"))
	if _, err := n.tryPull(host+"/app:v1", nil); !errors.Is(err, signature.ErrRefused) {
		t.Errorf("pull of the moved tag: %v", err)
	}
	if got := n.image(t, host+"/app:v1").GetId(); got != id {
		t.Errorf("the tag moved on the node, to %s", got)
	}
	// Another key is another requirement; the old one again needs no registry.
	n.enforce(t, app(next))
	n.refused(t, id, "pull it again")
	n.enforce(t, app(key))
	if _, err := n.resolve(id); err != nil {
		t.Errorf("under the first policy again: %v", err)
	}
	n.SetSignatures(nil)
	if _, err := n.resolve(other); err != nil {
		t.Errorf("without a policy: %v", err)
	}
}

func manifestOf(t *testing.T, reg *rt.Server, repo, tag string) any {
	t.Helper()
	resp, err := reg.Client().Get(reg.URL + "/v2/" + repo + "/manifests/" + tag)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return rawJSON(b.Bytes())
}

type rawJSON []byte

// MarshalJSON implements json.Marshaler.
func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

// A registry that lies about signatures, or keeps them back, gets no image in.
func TestIntegrationSignatureFaults(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	key := st.NewKey(t)
	img := small(t, reg, "app", "v1", "x")
	st.AttachLegacy(t, reg, "app", img.Manifest.Digest, key.Legacy(t, st.Payload(img.Manifest.Digest)))
	n := newNode(t, nil)
	ref := reg.Host() + "/app:v1"
	rules := map[string]signature.Rule{reg.Host(): {Keys: []string{key.File(t)}}}
	n.enforce(t, signature.Config{Rules: rules})
	payload := digest.FromBytes(st.Payload(img.Manifest.Digest))
	var sent atomic.Int64
	for name, c := range map[string]struct {
		fault rt.Fault
		is    func(error) bool
	}{
		"stripped":         {rt.On(".sig", rt.Status(404, "")), func(err error) bool { return errors.Is(err, signature.ErrRefused) }},
		"errors":           {rt.On(".sig", rt.Status(500, "")), errdefs.IsUnavailable},
		"endless manifest": {rt.On(".sig", rt.Endless(64<<20, &sent)), errdefs.IsResourceExhausted},
		"wrong bytes":      {rt.OnBlob(payload, rt.Change(rt.FlipLast)), errdefs.IsDataLoss},
		"longer":           {rt.OnBlob(payload, rt.Endless(64<<20, &sent)), errdefs.IsResourceExhausted},
		"no JSON":          {rt.On("/referrers/", rt.Change(func([]byte) []byte { return []byte("{") })), nil},
	} {
		reg.Inject(c.fault)
		_, err := n.tryPull(ref, nil)
		switch {
		case c.is == nil && err != nil:
			t.Errorf("%s: %v, although the other form serves", name, err)
		case c.is == nil:
			n.remove(t, ref)
		case !c.is(err):
			t.Errorf("%s: %v", name, err)
		}
	}
	if sent.Load() > 32<<20 {
		t.Errorf("%d bytes were taken of endless answers", sent.Load())
	}
	reg.Inject(rt.On(".sig", rt.Hang()))
	n.enforce(t, signature.Config{Rules: rules, Timeout: 200 * time.Millisecond})
	if _, err := n.tryPull(ref, nil); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "200ms") {
		t.Errorf("a registry that hangs: %v", err)
	}
	reg.Inject(nil)
	broken, err := signature.Load(signature.Config{Rules: rules, Program: "/bin/false"})
	if err != nil {
		t.Fatal(err)
	}
	n.SetSignatures(broken)
	if _, err := n.tryPull(ref, nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/bin/false") {
		t.Errorf("a verifier that fails: %v", err)
	}
	n.clean(t, 0)
	n.enforce(t, signature.Config{Rules: rules})
	n.mustPull(t, ref)
}
