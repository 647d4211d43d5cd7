package check

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/imageservice/signature"
	st "github.com/berth-dev/berth/imageservice/signature/signaturetest"
)

const (
	issuer   = "https://issuer.example"
	identity = "https://ci.example/team/app/release@refs/tags/v1"
)

func keyTrust(t *testing.T, keys ...st.Key) (out signature.Trust) {
	t.Helper()
	for _, k := range keys {
		block, _ := pem.Decode([]byte(k.PEM(t)))
		out.Keys = append(out.Keys, signature.Key{DER: block.Bytes})
	}
	return out
}

func rootTrust(t *testing.T, path, issuer string, ids ...string) signature.Trust {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return signature.Trust{Root: raw, Issuer: issuer, Identities: ids}
}

func aBundle(d digest.Digest, raw []byte) signature.Signature {
	return signature.Signature{Digest: d, Bundle: raw}
}

func legacy(d digest.Digest, l st.Legacy) signature.Signature {
	return signature.Signature{Digest: d, Legacy: &signature.Legacy{
		Payload: l.Payload, Signature: l.Annotations["dev.cosignproject.cosign/signature"],
		Certificate: l.Annotations["dev.sigstore.cosign/certificate"], Log: l.Annotations["dev.sigstore.cosign/bundle"],
	}}
}

func TestDecide(t *testing.T) {
	image, other := digest.FromString("image"), digest.FromString("other")
	key, wrong := st.NewKey(t), st.NewKey(t)
	auth, stranger := st.NewAuthority(t), st.NewAuthority(t)
	root := auth.Root(t, false)
	ids := rootTrust(t, root, issuer, identity)
	keyless := auth.Bundle(t, image, identity, issuer)
	oldKeyless := auth.Legacy(t, st.Payload(image), identity, issuer)
	forged := oldKeyless
	forged.Payload = bytes.Replace(forged.Payload, []byte(image.Encoded()), []byte(other.Encoded()), 1)
	note := bytes.Replace(st.Payload(image), []byte("cosign container image signature"), []byte("cosign container image attestation"), 1)
	stripped := oldKeyless
	stripped.Annotations = map[string]string{"dev.cosignproject.cosign/signature": oldKeyless.Annotations["dev.cosignproject.cosign/signature"]}

	for name, c := range map[string]struct {
		trust signature.Trust
		sig   signature.Signature
		want  string // part of the reason; "" accepts
	}{
		"key, bundle":             {keyTrust(t, key), aBundle(image, key.Bundle(t, image, st.Signed)), ""},
		"second key, bundle":      {keyTrust(t, wrong, key), aBundle(image, key.Bundle(t, image, st.Signed)), ""},
		"wrong key, bundle":       {keyTrust(t, wrong), aBundle(image, key.Bundle(t, image, st.Signed)), "signature"},
		"another image's bundle":  {keyTrust(t, key), aBundle(image, key.Bundle(t, other, st.Signed)), "digest"},
		"a build's provenance":    {keyTrust(t, key), aBundle(image, key.Bundle(t, image, "https://slsa.dev/provenance/v1")), "no signature of the image"},
		"key, old":                {keyTrust(t, key), legacy(image, key.Legacy(t, st.Payload(image))), ""},
		"second key, old":         {keyTrust(t, wrong, key), legacy(image, key.Legacy(t, st.Payload(image))), ""},
		"wrong key, old":          {keyTrust(t, wrong), legacy(image, key.Legacy(t, st.Payload(image))), "no key of the rule"},
		"another image's, old":    {keyTrust(t, key), legacy(image, key.Legacy(t, st.Payload(other))), "another manifest"},
		"an attestation, old":     {keyTrust(t, key), legacy(image, key.Legacy(t, note)), "not a signature"},
		"identity, bundle":        {ids, aBundle(image, keyless), ""},
		"identity by pattern":     {rootTrust(t, root, issuer, "https://ci.example/team/*@refs/tags/*"), aBundle(image, keyless), ""},
		"wrong pattern":           {rootTrust(t, root, issuer, "https://ci.example/team/*@refs/heads/*"), aBundle(image, keyless), "identity"},
		"pattern is anchored":     {rootTrust(t, root, issuer, "*/team"), aBundle(image, keyless), "identity"},
		"dot is no wildcard":      {rootTrust(t, root, issuer, "https://ci.exampl./team/*"), aBundle(image, keyless), "identity"},
		"wrong identity":          {rootTrust(t, root, issuer, "https://ci.example/other"), aBundle(image, keyless), "identity"},
		"wrong issuer":            {rootTrust(t, root, "https://other.example", identity), aBundle(image, keyless), "identity"},
		"another authority":       {ids, aBundle(image, stranger.Bundle(t, image, identity, issuer)), ""},
		"certificates are logged": {rootTrust(t, auth.Root(t, true), issuer, identity), aBundle(image, keyless), "timestamp"},
		"replayed identity":       {ids, aBundle(other, keyless), "digest"},
		"identity, old":           {ids, legacy(image, oldKeyless), ""},
		"wrong identity, old":     {rootTrust(t, root, issuer, "x"), legacy(image, oldKeyless), "identity"},
		"forged document":         {ids, legacy(other, forged), "verif"},
		"certificate taken away":  {ids, legacy(image, stripped), "rule has none"},
		"identity without a root": {keyTrust(t, key), aBundle(image, keyless), "rule has none"},
		"key without keys":        {ids, aBundle(image, key.Bundle(t, image, st.Signed)), "rule has none"},
		"no JSON":                 {keyTrust(t, key), aBundle(image, []byte("{")), "read bundle"},
		"empty":                   {keyTrust(t, key), aBundle(image, nil), "read bundle"},
		"no trust":                {signature.Trust{}, aBundle(image, keyless), "rule has none"},
	} {
		t.Run(name, func(t *testing.T) {
			v := Decide(signature.Request{Trust: c.trust, Signatures: []signature.Signature{c.sig}})
			if name == "another authority" {
				if v.Accepted || len(v.Reasons) != 1 {
					t.Errorf("a stranger's certificate: %+v", v)
				}
				return
			}
			if v.Error != "" || v.Accepted != (c.want == "") || v.Accepted == (v.By == "") {
				t.Fatalf("%+v", v)
			}
			if !v.Accepted && !strings.Contains(strings.Join(v.Reasons, ""), c.want) {
				t.Errorf("reason %q does not say %q", v.Reasons, c.want)
			}
		})
	}
}

func TestDecideTakesTheFirstGood(t *testing.T) {
	image := digest.FromString("image")
	key, wrong := st.NewKey(t), st.NewKey(t)
	var all []signature.Signature
	for range 12 {
		all = append(all, legacy(image, wrong.Legacy(t, st.Payload(image))))
	}
	v := Decide(signature.Request{Trust: keyTrust(t, key), Signatures: all})
	if v.Accepted || len(v.Reasons) != maxReasons {
		t.Errorf("twelve wrong ones: %+v", v)
	}
	v = Decide(signature.Request{Trust: keyTrust(t, key), Signatures: append(all, legacy(image, key.Legacy(t, st.Payload(image))))})
	if !v.Accepted || !strings.HasPrefix(v.By, "key SHA256:") {
		t.Errorf("and a good one: %+v", v)
	}
}

func TestUnusableTrust(t *testing.T) {
	auth := st.NewAuthority(t)
	for name, trust := range map[string]signature.Trust{
		"key":          {Keys: []signature.Key{{DER: []byte("x")}}},
		"root":         {Root: json.RawMessage(`{}`), Issuer: issuer, Identities: []string{identity}},
		"no authority": {Root: json.RawMessage(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`), Issuer: issuer, Identities: []string{identity}},
		"no issuer":    rootTrust(t, auth.Root(t, false), "", identity),
		"nobody":       rootTrust(t, auth.Root(t, false), issuer),
	} {
		if v := Decide(signature.Request{Trust: trust}); v.Error == "" {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestProgram(t *testing.T) {
	var out bytes.Buffer
	if err := decide(strings.NewReader("nonsense"), &out); err == nil || out.Len() > 0 {
		t.Errorf("nonsense: %v, %q", err, out.String())
	}
	if err := decide(strings.NewReader(`{"Signatures":[]}`), &out); err != nil || !strings.Contains(out.String(), `"Accepted":false`) {
		t.Errorf("nothing to decide: %v, %q", err, out.String())
	}
}

func FuzzDecide(f *testing.F) {
	image := digest.FromString("image")
	key := st.NewKey(f)
	block, _ := pem.Decode([]byte(key.PEM(f)))
	trust := signature.Trust{Keys: []signature.Key{{DER: block.Bytes}}}
	old := key.Legacy(f, st.Payload(image))
	f.Add(key.Bundle(f, image, st.Signed), old.Payload, old.Annotations["dev.cosignproject.cosign/signature"], "", "")
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`), []byte("{}"), "AA==", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "{}")
	other := digest.FromString("other")
	f.Fuzz(func(t *testing.T, b, payload []byte, sig, cert, log string) {
		l := signature.Legacy{Payload: payload, Signature: sig, Certificate: cert, Log: log}
		v := Decide(signature.Request{Trust: trust, Signatures: []signature.Signature{{Digest: other, Bundle: b}, {Digest: other, Legacy: &l}}})
		if v.Accepted {
			t.Fatalf("accepted for a manifest nobody signed: %+v", v)
		}
	})
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[31m\nb" + strings.Repeat("c", 1000)); strings.ContainsAny(got, "\x1b\n") || len(got) != 500 {
		t.Errorf("%q", got)
	}
}
