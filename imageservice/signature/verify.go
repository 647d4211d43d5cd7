package signature

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Verified is a requirement that an image's signatures meet. The digest is ""
// when there was nothing to verify.
type Verified struct {
	Requirement digest.Digest
	By          string
}

// Verify finds out whether an image may be pulled under the name. digests are
// those of its manifest and of the index that led there: a signature of either
// counts. have says which requirements were verified before. ErrRefused says
// that the image must not be used; other errors that it could not be decided,
// which lets it be used no more.
func (p *Policy) Verify(ctx context.Context, name string, digests []digest.Digest, src Source, have func(digest.Digest) bool) (Verified, error) {
	if p == nil {
		return Verified{}, nil
	}
	r, err := p.wants(name)
	if err != nil || r.Digest == "" || have(r.Digest) {
		return Verified{}, err
	}
	limit := fmt.Errorf("the registry took longer than %s to serve the signatures: %w", p.timeout, errdefs.ErrUnavailable)
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, limit)
	defer cancel()
	var reasons []string
	var failed []error
	for _, d := range digests {
		found, err := collect(ctx, src, d)
		if err != nil {
			failed = append(failed, err)
		}
		if len(found) == 0 {
			continue
		}
		v, err := p.run(ctx, Request{Trust: r.trust, Signatures: found})
		if err != nil {
			return Verified{}, err
		}
		if v.Accepted {
			return Verified{Requirement: r.Digest, By: v.By}, nil
		}
		reasons = append(reasons, v.Reasons...)
	}
	if len(failed) > 0 {
		return Verified{}, fmt.Errorf("find the signatures of %s: %w", name, errors.Join(failed...))
	}
	if len(reasons) == 0 {
		return Verified{}, fmt.Errorf("%w: %s has no signature, and the signature rule %q wants one", ErrRefused, name, r.Prefix)
	}
	return Verified{}, fmt.Errorf("%w: %s has no signature that the signature rule %q accepts: %s", ErrRefused, name, r.Prefix, strings.Join(reasons, "; "))
}

// Try asks the program whether it can use what each rule trusts.
func (p *Policy) Try(ctx context.Context) error {
	if p == nil {
		return nil
	}
	var errs []error
	for _, r := range p.rules {
		if r.Digest == "" {
			continue
		}
		if _, err := p.run(ctx, Request{Trust: r.trust}); err != nil {
			errs = append(errs, fmt.Errorf("signature rule %q: %w", r.Prefix, err))
		}
	}
	return errors.Join(errs...)
}

// maxVerdict bounds what the program may say.
const maxVerdict = 64 << 10

// run lets the program decide. It has no network, and gives its rights up
// before it reads: its input is what a registry sent.
func (p *Policy) run(ctx context.Context, r Request) (Verdict, error) {
	in, err := json.Marshal(r)
	if err != nil {
		return Verdict{}, err
	}
	var out, problem bounded
	cmd := exec.CommandContext(ctx, p.program)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &problem
	cmd.Dir, cmd.Env, cmd.WaitDelay = "/", []string{"GOMAXPROCS=1", "GOMEMLIMIT=256MiB"}, 10*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
	}
	err = cmd.Run()
	if ctx.Err() != nil {
		return Verdict{}, context.Cause(ctx)
	}
	if err != nil {
		return Verdict{}, fmt.Errorf("run %s, which verifies signatures: %w: %.300s: %w", p.program, err, problem.b.String(), errdefs.ErrFailedPrecondition)
	}
	var v Verdict
	if err := json.Unmarshal(out.b.Bytes(), &v); err != nil {
		return Verdict{}, fmt.Errorf("%s, which verifies signatures, gave no verdict: %w: %w", p.program, err, errdefs.ErrInternal)
	}
	if v.Error != "" {
		return Verdict{}, fmt.Errorf("signatures cannot be verified: %s: %w", v.Error, errdefs.ErrFailedPrecondition)
	}
	return v, nil
}

// bounded keeps the first bytes of what is written and refuses more.
type bounded struct{ b bytes.Buffer }

// Write implements io.Writer.
func (w *bounded) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > maxVerdict {
		return 0, errors.New("too much output")
	}
	return w.b.Write(p)
}
