// Package check verifies signatures of images. It is all of the program
// berth-verify: sigstore's libraries would cost the daemon memory whether it
// verifies anything or not, and what they read is from a registry.
//
// Nothing here uses the network: whom to trust is in the request.
package check

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	sig "github.com/sigstore/sigstore/pkg/signature"

	"github.com/berth-dev/berth/imageservice/signature"
)

// statement is the type of a bundle's statement that says "signed". Others,
// such as a build's provenance or the result of a scan, say something about
// the image and do not approve of it.
const statement = "https://sigstore.dev/cosign/sign/v1"

// payloadType is what cosign's older form calls itself.
const payloadType = "cosign container image signature"

// maxReasons bounds what is reported.
const maxReasons = 8

// Decide verifies signatures until one is accepted.
func Decide(r signature.Request) signature.Verdict {
	who, err := newTrust(r.Trust)
	if err != nil {
		return signature.Verdict{Error: err.Error()}
	}
	var v signature.Verdict
	for _, s := range r.Signatures {
		by, err := who.signature(s)
		if err == nil {
			return signature.Verdict{Accepted: true, By: printable(by)}
		}
		if len(v.Reasons) < maxReasons {
			v.Reasons = append(v.Reasons, printable(err.Error()))
		}
	}
	return v
}

// printable makes one short line of a text that certificates and registries
// have a part in.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	return fmt.Sprintf("%.500s", s)
}

// trust verifies for one request.
type trust struct {
	keys []namedKey
	// nil without identities
	root     *verify.Verifier
	identity []verify.PolicyOption
}

type namedKey struct {
	name     string
	verifier sig.Verifier
}

func newTrust(t signature.Trust) (*trust, error) {
	w := &trust{}
	for _, k := range t.Keys {
		pub, err := x509.ParsePKIXPublicKey(k.DER)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		// Tools sign with SHA-256 whatever the key is, or with the key's own hash.
		plain, err := sig.LoadVerifier(pub, crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		own, err := sig.LoadDefaultVerifier(pub)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		name := "key SHA256:" + digest.FromBytes(k.DER).Encoded()[:16]
		w.keys = append(w.keys, namedKey{name, plain}, namedKey{name, own})
	}
	if len(t.Root) == 0 {
		return w, nil
	}
	tr, err := root.NewTrustedRootFromJSON(t.Root)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	if len(tr.FulcioCertificateAuthorities()) == 0 {
		return nil, errors.New("trusted root: it has no certificate authority")
	}
	if w.root, err = verify.NewVerifier(tr, witnesses(tr)...); err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	for _, id := range t.Identities {
		exact, pattern := id, ""
		if strings.Contains(id, "*") {
			exact, pattern = "", "^"+strings.ReplaceAll(regexp.QuoteMeta(id), `\*`, ".*")+"$"
		}
		ci, err := verify.NewShortCertificateIdentity(t.Issuer, "", exact, pattern)
		if err != nil {
			return nil, fmt.Errorf("identity %q: %w", id, err)
		}
		w.identity = append(w.identity, verify.WithCertificateIdentity(ci))
	}
	if len(w.identity) == 0 {
		return nil, errors.New("a trusted root without identities would accept anybody")
	}
	return w, nil
}

// witnesses asks for all that the trusted root knows: a certificate is valid
// for minutes, so somebody must say when it signed.
func witnesses(tr *root.TrustedRoot) []verify.VerifierOption {
	opts := []verify.VerifierOption{verify.WithObserverTimestamps(1)}
	if len(tr.RekorLogs()) > 0 {
		opts = append(opts, verify.WithTransparencyLog(1))
	}
	if len(tr.CTLogs()) > 0 {
		opts = append(opts, verify.WithSignedCertificateTimestamps(1))
	}
	return opts
}

// signature verifies one signature and says whose it is.
func (w *trust) signature(s signature.Signature) (string, error) {
	if s.Digest.Validate() != nil {
		return "", fmt.Errorf("digest %.100q is not one", string(s.Digest))
	}
	if s.Legacy != nil {
		return w.legacy(s.Digest, *s.Legacy)
	}
	raw, err := hex.DecodeString(s.Digest.Encoded())
	if err != nil {
		return "", err
	}
	return w.bundle(s.Bundle, verify.WithArtifactDigest(s.Digest.Algorithm().String(), raw))
}

// bundle verifies a bundle that must be about the artifact.
func (w *trust) bundle(raw []byte, artifact verify.ArtifactPolicyOption) (string, error) {
	var b bundle.Bundle
	if err := b.UnmarshalJSON(raw); err != nil {
		return "", fmt.Errorf("read bundle: %w", err)
	}
	content, err := b.VerificationContent()
	if err != nil {
		return "", fmt.Errorf("read bundle: %w", err)
	}
	if content.PublicKey() == nil {
		return w.byIdentity(&b, artifact)
	}
	err = errors.New("it was made by a key, and the rule has none")
	for _, k := range w.keys {
		// The bundle's hint of a key is not signed: each key is tried.
		material := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) {
			return root.NewExpiringKey(k.verifier, time.Time{}, time.Time{}), nil
		})
		v, verr := verify.NewVerifier(material, verify.WithNoObserverTimestamps())
		if verr != nil {
			return "", verr
		}
		var res *verify.VerificationResult
		if res, err = v.Verify(&b, verify.NewPolicy(artifact, verify.WithKey())); err == nil {
			return k.name, approves(res)
		}
	}
	return "", err
}

func (w *trust) byIdentity(b *bundle.Bundle, artifact verify.ArtifactPolicyOption) (string, error) {
	if w.root == nil {
		return "", errors.New("it was made by an identity, and the rule has none")
	}
	res, err := w.root.Verify(b, verify.NewPolicy(artifact, w.identity...))
	if err != nil {
		return "", err
	}
	c := res.Signature.Certificate
	return c.SubjectAlternativeName + " of " + c.Issuer, approves(res)
}

// approves refuses statements that say something else than "signed".
func approves(r *verify.VerificationResult) error {
	if r.Statement != nil && r.Statement.GetPredicateType() != statement {
		return fmt.Errorf("the statement is a %.200q, which is no signature of the image", r.Statement.GetPredicateType())
	}
	return nil
}

// legacy verifies a signature of cosign's older form: over a document that
// names the digest.
func (w *trust) legacy(want digest.Digest, l signature.Legacy) (string, error) {
	raw, err := base64.StdEncoding.DecodeString(l.Signature)
	if err != nil {
		return "", fmt.Errorf("signature: %w", err)
	}
	by := ""
	if l.Certificate != "" {
		by, err = w.legacyIdentity(l, raw)
	} else {
		by, err = w.legacyKey(l, raw)
	}
	if err != nil {
		return "", err
	}
	var doc struct {
		Critical struct {
			Type  string `json:"type"`
			Image struct {
				Digest digest.Digest `json:"docker-manifest-digest"`
			} `json:"image"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(l.Payload, &doc); err != nil {
		return "", fmt.Errorf("signed document: %w", err)
	}
	if doc.Critical.Type != payloadType {
		return "", fmt.Errorf("the signed document is a %.100q, not a signature of an image", doc.Critical.Type)
	}
	if doc.Critical.Image.Digest != want {
		return "", fmt.Errorf("the signature is of another manifest, %.100q", string(doc.Critical.Image.Digest))
	}
	return by, nil
}

func (w *trust) legacyKey(l signature.Legacy, raw []byte) (string, error) {
	err := errors.New("it was made by a key, and the rule has none")
	for _, k := range w.keys {
		if err = k.verifier.VerifySignature(strings.NewReader(string(raw)), strings.NewReader(string(l.Payload))); err == nil {
			return k.name, nil
		}
	}
	return "", fmt.Errorf("no key of the rule made it: %w", err)
}
