package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/store"
)

// boot knows whether the machine went down cleanly, and which layers must be
// looked at before they are used because it did not.
type boot struct {
	id        string        // of this boot
	recovered chan struct{} // closed when Recover has passed once

	mu       sync.Mutex
	doubt    []string            // boots with layers in doubt, as in bootFile
	suspects map[string]*suspect // by chain ID; nil: not known yet
	noted    bool                // the boot file is of this boot
}

// suspect is a layer to verify before use.
type suspect struct {
	done chan struct{} // closed when the layer has been found whole or put into quarantine, or err is set
	err  error
}

// bootFile says, in the state directory, which boot wrote to it last, and
// whether all it wrote was synced by an orderly stop.
type bootFile struct {
	BootID string
	Clean  bool
	// Doubt are earlier boots that ended otherwise and whose layers have not
	// all been verified; anyBoot stands for all of them.
	Doubt []string `json:",omitempty"`
}

const (
	fileBoot = "image-boot.json"
	anyBoot  = "*"
)

func readBootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// doubtAfter returns the boots in doubt at a start in boot now. raw is the boot
// file, nil when there is none; one that cannot be read puts all in doubt. Pure.
func doubtAfter(raw []byte, now string) []string {
	if raw == nil {
		return nil // a new store, or one of before this file
	}
	var f bootFile
	if err := json.Unmarshal(raw, &f); err != nil || f.BootID == "" {
		return []string{anyBoot}
	}
	if f.Clean || f.BootID == now {
		return f.Doubt
	}
	return append(f.Doubt, f.BootID)
}

// inDoubt lists the layers to verify. Pure.
func inDoubt(layers []store.Layer, doubt []string, now string) []string {
	var out []string
	for _, l := range layers {
		if l.BootID != now && slices.Contains(doubt, anyBoot) || slices.Contains(doubt, l.BootID) {
			out = append(out, l.ChainID)
		}
	}
	return out
}

// begin notes that this boot writes to the store, and returns the layers in
// doubt, the first time. It is repeated while it fails.
func (b *boot) begin(dir string, layers []store.Layer) (suspects []string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.suspects == nil {
		path := filepath.Join(dir, fileBoot)
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		b.doubt = doubtAfter(raw, b.id)
		suspects = inDoubt(layers, b.doubt, b.id)
		if len(suspects) == 0 {
			b.doubt = nil
		}
		b.suspects = map[string]*suspect{}
		for _, l := range suspects {
			b.suspects[l] = &suspect{done: make(chan struct{})}
		}
	}
	if b.noted {
		return nil, nil
	}
	err = writeBoot(dir, bootFile{BootID: b.id, Doubt: b.doubt})
	b.noted = err == nil
	return suspects, err
}

// pass lets begin what has to wait for the first recovery.
func (b *boot) pass() {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.recovered:
	default:
		close(b.recovered)
	}
}

// settle says what became of a layer in doubt.
func (b *boot) settle(chain string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.suspects[chain]
	s.err = err
	close(s.done)
	if err == nil {
		delete(b.suspects, chain)
	}
}

// again returns those of the layers that could not be verified, and puts them in
// doubt anew: the caller is to verify them.
func (b *boot) again(chains []string) (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range chains {
		if s := b.suspects[c]; s != nil && s.err != nil {
			b.suspects[c] = &suspect{done: make(chan struct{})}
			out = append(out, c)
		}
	}
	return out
}

// wait returns when none of the layers is in doubt any more.
func (b *boot) wait(ctx context.Context, chains []string) error {
	for _, c := range chains {
		b.mu.Lock()
		s := b.suspects[c]
		b.mu.Unlock()
		if s == nil {
			continue
		}
		select {
		case <-s.done:
			if s.err != nil {
				return fmt.Errorf("layer %s was written before the power was cut and cannot be verified: %w: %w", c, errdefs.ErrFailedPrecondition, s.err)
			}
		case <-ctx.Done():
			return fmt.Errorf("layer %s is still being verified after an unclean boot: %w", c, context.Cause(ctx))
		}
	}
	return nil
}

// trust returns when none of the layers is in doubt any more. Those that could not
// be verified, or not be put into quarantine, are tried again.
func (s *Service) trust(ctx context.Context, chains []string) error {
	if failed := s.boot.again(chains); len(failed) > 0 {
		go s.verifyLayers(context.WithoutCancel(ctx), failed)
	}
	return s.boot.wait(ctx, chains)
}

// writeBoot replaces the boot file, durably.
func writeBoot(dir string, f bootFile) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, fileBoot)
	tmp, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("note the boot: %w", diskError(err))
	}
	_, err = tmp.Write(raw)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("note the boot: %w", diskError(err))
	}
	return nil
}

// Close syncs the store and notes that this boot left it whole. Nothing may be
// pulled afterwards.
func (s *Service) Close() error {
	s.boot.mu.Lock()
	began := s.boot.suspects != nil
	s.boot.mu.Unlock()
	if !began {
		return nil // never recovered, nothing written: the boot file is another's
	}
	if err := syncFS(s.cfg.StateDir); err != nil {
		return fmt.Errorf("sync the image store: %w", err)
	}
	s.boot.mu.Lock()
	defer s.boot.mu.Unlock()
	return writeBoot(s.cfg.StateDir, bootFile{BootID: s.boot.id, Clean: true, Doubt: s.boot.doubt})
}

// verifySuspects looks at the layers that an unclean boot had written.
func (s *Service) verifySuspects(ctx context.Context, chains []string) {
	s.cfg.Logger.Warn("the machine went down without an orderly stop; verifying the layers it had written", "layers", len(chains))
	damaged, failed := s.verifyLayers(ctx, chains)
	s.cfg.Logger.Info("layers in doubt are verified", "damaged", damaged, "not verified", failed)
}

// verifyLayers looks at layers in doubt, and puts damaged ones into quarantine.
func (s *Service) verifyLayers(ctx context.Context, chains []string) (damaged, failed int) {
	for _, c := range chains {
		problem, err := s.checkLayer(ctx, c, true)
		if problem != "" {
			damaged++
			err = s.quarantine(ctx, c, problem)
		}
		if err != nil {
			failed++
			s.cfg.Logger.Error("layer in doubt cannot be verified; whoever needs it next has it tried again", "layer", c, "error", err)
		}
		s.boot.settle(c, err)
	}
	s.boot.mu.Lock()
	defer s.boot.mu.Unlock()
	if len(s.boot.suspects) > 0 {
		return damaged, failed
	}
	s.boot.doubt = nil
	if err := writeBoot(s.cfg.StateDir, bootFile{BootID: s.boot.id}); err != nil {
		s.cfg.Logger.Warn("verified layers will be verified again", "error", err)
	}
	return damaged, failed
}
