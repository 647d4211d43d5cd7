// Package signaturetest signs images for tests, in the forms that cosign
// leaves in a registry, with keys and with identities of an authority of its own.
package signaturetest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"
)

// Signed is the type of the statement that cosign makes when it signs.
const Signed = "https://sigstore.dev/cosign/sign/v1"

// BundleType is the media type of the bundles made here.
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

const payloadType = "application/vnd.in-toto+json"

// Statement says something about a manifest.
func Statement(d digest.Digest, predicate string) []byte {
	raw, _ := json.Marshal(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": map[string]any{},
		"subject": []any{map[string]any{"digest": map[string]string{d.Algorithm().String(): d.Encoded()}}},
	})
	return raw
}

// Payload is the document that cosign's older form signs.
func Payload(d digest.Digest) []byte {
	raw, _ := json.Marshal(map[string]any{
		"critical": map[string]any{
			"identity": map[string]string{"docker-reference": "registry.example/app"},
			"image":    map[string]string{"docker-manifest-digest": d.String()},
			"type":     "cosign container image signature",
		},
		"optional": nil,
	})
	return raw
}

// Key signs with a key of its own.
type Key struct{ pair *sign.EphemeralKeypair }

// NewKey makes a key.
func NewKey(t testing.TB) Key {
	t.Helper()
	pair, err := sign.NewEphemeralKeypair(nil)
	must(t, err)
	return Key{pair}
}

// PEM is the public key.
func (k Key) PEM(t testing.TB) string {
	t.Helper()
	s, err := k.pair.GetPublicKeyPem()
	must(t, err)
	return s
}

// File writes the public key into a file of its own.
func (k Key) File(t testing.TB) string {
	t.Helper()
	return File(t, "key.pub", []byte(k.PEM(t)))
}

// Bundle signs a statement about d.
func (k Key) Bundle(t testing.TB, d digest.Digest, predicate string) []byte {
	t.Helper()
	b, err := sign.Bundle(&sign.DSSEData{Data: Statement(d, predicate), PayloadType: payloadType}, k.pair, sign.BundleOptions{})
	must(t, err)
	raw, err := protojson.Marshal(b)
	must(t, err)
	return raw
}

// Legacy signs a payload in cosign's older form.
func (k Key) Legacy(t testing.TB, payload []byte) Legacy {
	t.Helper()
	sig, _, err := k.pair.SignData(context.Background(), payload)
	must(t, err)
	return Legacy{Payload: payload, Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}}
}

// Legacy is a signature in cosign's older form.
type Legacy struct {
	Payload     []byte
	Annotations map[string]string
}

// Authority gives identities certificates and logs what they sign.
type Authority struct{ ca *ca.VirtualSigstore }

// NewAuthority makes an authority with a transparency log.
func NewAuthority(t testing.TB) Authority {
	t.Helper()
	v, err := ca.NewVirtualSigstore()
	must(t, err)
	return Authority{v}
}

// Root writes the authority's trusted root into a file. With certLog it says
// that certificates are logged, which those made here are not.
func (a Authority) Root(t testing.TB, certLog bool) string {
	t.Helper()
	logs := map[string]*root.TransparencyLog{}
	if certLog {
		logs = a.ca.CTLogs()
		for id, l := range logs {
			raw, err := hex.DecodeString(id)
			must(t, err)
			l.ID, l.SignatureHashFunc = raw, l.HashFunc
		}
	}
	rekor := a.ca.RekorLogs()
	for id, l := range rekor {
		raw, err := hex.DecodeString(id)
		must(t, err)
		l.ID, l.SignatureHashFunc = raw, l.HashFunc
	}
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, a.ca.FulcioCertificateAuthorities(), logs, a.ca.TimestampingAuthorities(), rekor)
	must(t, err)
	raw, err := tr.MarshalJSON()
	must(t, err)
	return File(t, "trusted_root.json", raw)
}

type object = map[string]any

// Bundle signs a statement about d as an identity that issuer knows.
func (a Authority) Bundle(t testing.TB, d digest.Digest, identity, issuer string) []byte {
	t.Helper()
	e, err := a.ca.AttestAtTime(identity, issuer, Statement(d, Signed), time.Now().Add(5*time.Minute), true)
	must(t, err)
	content, err := e.SignatureContent()
	must(t, err)
	env := content.EnvelopeContent().RawEnvelope()
	log, err := protojson.Marshal(a.entry(t, e))
	must(t, err)
	raw, err := json.Marshal(object{
		"mediaType": BundleType,
		"verificationMaterial": object{
			"certificate": object{"rawBytes": leaf(t, e)},
			"tlogEntries": []json.RawMessage{log},
		},
		"dsseEnvelope": object{
			"payload": env.Payload, "payloadType": env.PayloadType, "signatures": []object{{"sig": env.Signatures[0].Sig}},
		},
	})
	must(t, err)
	return raw
}

// Legacy signs a payload as an identity, in cosign's older form.
func (a Authority) Legacy(t testing.TB, payload []byte, identity, issuer string) Legacy {
	t.Helper()
	e, err := a.ca.Sign(identity, issuer, payload)
	must(t, err)
	content, err := e.SignatureContent()
	must(t, err)
	tle := a.entry(t, e)
	log, err := json.Marshal(object{
		"SignedEntryTimestamp": tle.GetInclusionPromise().GetSignedEntryTimestamp(),
		"Payload": object{
			"body": tle.GetCanonicalizedBody(), "integratedTime": tle.GetIntegratedTime(), "logIndex": tle.GetLogIndex(),
			"logID": hex.EncodeToString(tle.GetLogId().GetKeyId()),
		},
	})
	must(t, err)
	return Legacy{Payload: payload, Annotations: map[string]string{
		"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(content.Signature()),
		"dev.sigstore.cosign/certificate":    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf(t, e)})),
		"dev.sigstore.cosign/bundle":         string(log),
	}}
}

func leaf(t testing.TB, e *ca.TestEntity) []byte {
	t.Helper()
	c, err := e.VerificationContent()
	must(t, err)
	return c.Certificate().Raw
}

// entry is the log's entry of what was signed, with the log's promise.
func (a Authority) entry(t testing.TB, e *ca.TestEntity) *rekor.TransparencyLogEntry {
	t.Helper()
	entries, err := e.TlogEntries()
	must(t, err)
	tle := entries[0].TransparencyLogEntry()
	promise, err := a.ca.RekorSignPayload(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(tle.GetCanonicalizedBody()), IntegratedTime: tle.GetIntegratedTime(),
		LogIndex: tle.GetLogIndex(), LogID: hex.EncodeToString(tle.GetLogId().GetKeyId()),
	})
	must(t, err)
	var body struct{ Kind, APIVersion string }
	must(t, json.Unmarshal(tle.GetCanonicalizedBody(), &body))
	tle.KindVersion = &rekor.KindVersion{Kind: body.Kind, Version: body.APIVersion}
	tle.InclusionPromise = &rekor.InclusionPromise{SignedEntryTimestamp: promise}
	return tle
}

// Registry takes what is attached to images.
type Registry interface {
	PushBlob(t testing.TB, repo, mediaType string, raw []byte) ocispec.Descriptor
	PushManifest(t testing.TB, repo, tag, mediaType string, m any) ocispec.Descriptor
}

// AttachLegacy puts signatures of the older form into a registry.
func AttachLegacy(t testing.TB, reg Registry, repo string, to digest.Digest, all ...Legacy) {
	t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = reg.PushBlob(t, repo, ocispec.MediaTypeImageConfig, []byte("{}"))
	for _, l := range all {
		d := reg.PushBlob(t, repo, "application/vnd.dev.cosign.simplesigning.v1+json", l.Payload)
		d.Annotations = l.Annotations
		m.Layers = append(m.Layers, d)
	}
	reg.PushManifest(t, repo, tag(to)+".sig", m.MediaType, m)
}

// AttachBundle puts a bundle into a registry that lists referrers.
func AttachBundle(t testing.TB, reg Registry, repo string, to ocispec.Descriptor, bundle []byte) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: BundleType, Subject: &to,
		Config: reg.PushBlob(t, repo, ocispec.MediaTypeEmptyJSON, []byte("{}")),
		Layers: []ocispec.Descriptor{reg.PushBlob(t, repo, BundleType, bundle)},
	}
	name := fmt.Sprintf("bundle-%s", digest.FromBytes(bundle).Encoded()[:12])
	d := reg.PushManifest(t, repo, name, m.MediaType, m)
	d.ArtifactType = BundleType
	return d
}

// AttachIndex lists bundles under the tag that stands in for a list of
// referrers where the registry has none.
func AttachIndex(t testing.TB, reg Registry, repo string, to digest.Digest, bundles ...ocispec.Descriptor) {
	t.Helper()
	reg.PushManifest(t, repo, tag(to), ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: bundles,
	})
}

func tag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) }

// File writes a file into a directory of its own.
func File(t testing.TB, name string, raw []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, raw, 0o644))
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
