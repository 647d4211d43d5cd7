// Package signature decides which images may be used by who signed them.
//
// A policy has rules by name: the longest prefix that fits an image's name
// says what its signatures must be. Signatures are looked for in the registry
// the image is pulled from, and verified by the program berth-verify, without
// rights and without network (package check); what was verified is a fact of
// the image's record, so that a container's creation asks nobody.
package signature

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// ErrRefused marks an image whose signatures are not what its rule wants. The
// kubelet knows the word, when a message begins with it.
var ErrRefused = errors.New("SignatureValidationFailed")

// Rule says what the signatures of some images must be: one that one of the
// keys or one of the identities made.
type Rule struct {
	Keys        []string // files of public keys in PEM
	TrustedRoot string   // file, sigstore's trusted_root.json: who vouches for identities
	Issuer      string   // of the identities, as the certificates name it
	Identities  []string // subjects of the certificates; "*" stands for any text
	Unsigned    bool     // images need no signature
}

// Config is a policy as it is configured.
type Config struct {
	Rules   map[string]Rule // by prefix of the name: "registry.example:5000/team"
	Reject  bool            // refuse images that no rule fits
	Program string          // berth-verify
	Timeout time.Duration   // for the signatures of one image; default a minute
}

// Policy is a configured policy with the files it names. Nil allows everything.
type Policy struct {
	program string
	timeout time.Duration
	reject  bool
	rules   map[string]*Requirement
}

// Requirement is what signatures must be, with the content of all files.
type Requirement struct {
	Prefix string
	Digest digest.Digest // of everything that a verdict depends on; "" needs no signature
	trust  Trust
}

// wireVersion is part of each requirement's digest: raise it when images that
// were accepted must be verified again.
const wireVersion = 1

// Load reads the files of a policy; nil without rules that could refuse an
// image. Errors are InvalidArgument and name rule and file.
func Load(c Config) (*Policy, error) {
	if len(c.Rules) == 0 && !c.Reject {
		return nil, nil
	}
	p := &Policy{program: c.Program, timeout: c.Timeout, reject: c.Reject, rules: map[string]*Requirement{}}
	if p.timeout <= 0 {
		p.timeout = time.Minute
	}
	var errs []error
	for prefix, rule := range c.Rules {
		r, err := load(prefix, rule)
		if err != nil {
			errs = append(errs, fmt.Errorf("signature rule %q: %w: %w", prefix, err, errdefs.ErrInvalidArgument))
			continue
		}
		p.rules[fold(prefix)] = r
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

func load(prefix string, rule Rule) (*Requirement, error) {
	r := &Requirement{Prefix: prefix}
	if err := rule.Check(); err != nil || rule.Unsigned {
		return r, err
	}
	for _, path := range rule.Keys {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		block, rest := pem.Decode(raw)
		if block == nil || len(bytes.TrimSpace(rest)) > 0 {
			return nil, fmt.Errorf("%s is not one public key in PEM", path)
		}
		if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return nil, fmt.Errorf("%s is not a public key: %w", path, err)
		}
		r.trust.Keys = append(r.trust.Keys, Key{Name: filepath.Base(path), DER: block.Bytes})
	}
	if rule.TrustedRoot != "" {
		raw, err := os.ReadFile(rule.TrustedRoot)
		if err != nil {
			return nil, err
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, raw); err != nil {
			return nil, fmt.Errorf("%s: %w", rule.TrustedRoot, err)
		}
		r.trust.Root, r.trust.Issuer, r.trust.Identities = compact.Bytes(), rule.Issuer, rule.Identities
	}
	raw, err := json.Marshal(struct {
		Version int
		Trust   Trust
	}{wireVersion, r.trust})
	r.Digest = digest.FromBytes(raw)
	return r, err
}

// Check reports what is wrong with a rule, apart from its files.
func (r Rule) Check() error {
	keyless := r.TrustedRoot != "" || r.Issuer != "" || len(r.Identities) > 0
	switch {
	case r.Unsigned && (keyless || len(r.Keys) > 0):
		return errors.New("unsigned images are accepted, so keys and identities would decide nothing; remove one of them")
	case r.Unsigned:
		return nil
	case keyless && (r.TrustedRoot == "" || r.Issuer == "" || len(r.Identities) == 0):
		return errors.New("trusted_root, issuer and identities belong together")
	case slices.ContainsFunc(r.Identities, func(s string) bool { return strings.Trim(s, "*") == "" }):
		return errors.New("an identity that is empty or only \"*\" would accept whoever the issuer knows")
	case !keyless && len(r.Keys) == 0:
		return errors.New("neither keys nor identities: no image could be accepted")
	}
	return nil
}

// For returns what images of the name, "registry.example/team/app", need; nil
// when no rule fits. The longest prefix wins.
func (p *Policy) For(name string) *Requirement {
	for at := fold(name); at != ""; {
		if r, ok := p.rules[at]; ok {
			return r
		}
		cut := strings.LastIndexByte(at, '/')
		if cut < 0 {
			return nil
		}
		at = at[:cut]
	}
	return nil
}

// fold gives one form to the names by which one registry can be called. Only
// the host may have capitals.
func fold(name string) string {
	host, path, found := strings.Cut(strings.ToLower(name), "/")
	host = strings.TrimSuffix(host, ":443")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if !found {
		return host
	}
	return host + "/" + path
}

// Permit reports whether an image with these names may be used. All of its
// names must permit it, so that another name is no way around a rule. verified
// says which requirements its signatures were found to meet. The error is an
// ErrRefused that says what to do.
func (p *Policy) Permit(names []string, verified func(digest.Digest) bool) error {
	if p == nil {
		return nil
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: the image has no name by which a signature rule could be found; tag it or pull it again", ErrRefused)
	}
	for _, name := range names {
		r, err := p.wants(name)
		if err != nil {
			return err
		}
		if r.Digest != "" && !verified(r.Digest) {
			return fmt.Errorf("%w: %s was not verified under the signature rule %q that is in force; pull it again", ErrRefused, name, r.Prefix)
		}
	}
	return nil
}

// wants is For, with the default for images that no rule fits.
func (p *Policy) wants(name string) (*Requirement, error) {
	r := p.For(name)
	switch {
	case r != nil:
		return r, nil
	case p.reject:
		return nil, fmt.Errorf("%w: no signature rule is for %s, and images without one are refused (image.signatures.default)", ErrRefused, name)
	}
	return &Requirement{}, nil
}
