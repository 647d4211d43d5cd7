package signature

import (
	"encoding/json"

	"github.com/opencontainers/go-digest"
)

// Request is what berth-verify reads from its standard input, as JSON.
type Request struct {
	Trust      Trust
	Signatures []Signature // none: only the trust is checked
}

// Trust says whose signatures count.
type Trust struct {
	Keys       []Key
	Root       json.RawMessage `json:",omitempty"` // sigstore's trusted root; for identities
	Issuer     string
	Identities []string // "*" stands for any text
}

// Key is a public key.
type Key struct {
	Name string `json:"-"` // for users
	DER  []byte // PKIX
}

// Signature is one signature that was found for a manifest: a sigstore bundle,
// or one of cosign's older form.
type Signature struct {
	Digest digest.Digest // of the manifest it must be for
	Bundle []byte        // sigstore bundle, JSON
	Legacy *Legacy
}

// Legacy is a signature as cosign attached it before there were bundles. All
// of it is what the registry served.
type Legacy struct {
	Payload     []byte // JSON that names the manifest's digest; this is signed
	Signature   string // base64
	Certificate string // PEM; "" when a key signed
	Log         string // JSON: entry and promise of the transparency log
}

// Verdict is what berth-verify answers, as JSON.
type Verdict struct {
	Accepted bool
	By       string   // "key SHA256..." or the certificate's identity
	Reasons  []string // why signatures were not accepted
	Error    string   // the request cannot be decided: the trust is unusable
}
