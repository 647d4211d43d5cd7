package check

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/berth-dev/berth/imageservice/signature"
)

// logEntry is an entry of the transparency log and its promise, as cosign's
// older form has them in an annotation.
type logEntry struct {
	SignedEntryTimestamp []byte
	Payload              struct {
		Body           []byte `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogIndex       int64  `json:"logIndex"`
		LogID          string `json:"logID"` // hexadecimal
	}
}

// legacyIdentity verifies a signature with a certificate: as a bundle, which
// holds the same under other names.
func (w *trust) legacyIdentity(l signature.Legacy, sig []byte) (string, error) {
	block, _ := pem.Decode([]byte(l.Certificate))
	if block == nil {
		return "", errors.New("the certificate is not PEM")
	}
	var entry logEntry
	if err := json.Unmarshal([]byte(l.Log), &entry); err != nil {
		return "", fmt.Errorf("entry of the transparency log: %w", err)
	}
	id, err := hex.DecodeString(entry.Payload.LogID)
	if err != nil {
		return "", fmt.Errorf("identifier of the transparency log: %w", err)
	}
	var kind struct {
		Kind    string `json:"kind"`
		Version string `json:"apiVersion"`
	}
	if err := json.Unmarshal(entry.Payload.Body, &kind); err != nil {
		return "", fmt.Errorf("entry of the transparency log: %w", err)
	}
	sum, err := hex.DecodeString(digest.FromBytes(l.Payload).Encoded())
	if err != nil {
		return "", err
	}
	type object = map[string]any
	raw, err := json.Marshal(object{
		"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1",
		"verificationMaterial": object{
			"x509CertificateChain": object{"certificates": []object{{"rawBytes": block.Bytes}}},
			"tlogEntries": []object{{
				"logIndex":          strconv.FormatInt(entry.Payload.LogIndex, 10),
				"logId":             object{"keyId": id},
				"kindVersion":       object{"kind": kind.Kind, "version": kind.Version},
				"integratedTime":    strconv.FormatInt(entry.Payload.IntegratedTime, 10),
				"inclusionPromise":  object{"signedEntryTimestamp": entry.SignedEntryTimestamp},
				"canonicalizedBody": entry.Payload.Body,
			}},
		},
		"messageSignature": object{"messageDigest": object{"algorithm": "SHA2_256", "digest": sum}, "signature": sig},
	})
	if err != nil {
		return "", err
	}
	return w.bundle(raw, verify.WithArtifact(bytes.NewReader(l.Payload)))
}
