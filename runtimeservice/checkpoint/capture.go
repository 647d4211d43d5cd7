package checkpoint

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/berth-dev/berth/store/op"
)

// What the directory of a checkpoint under way holds, beside the files that the
// archive has under the same name.
const (
	imagesDir = "images"
	logsDir   = "logs"
)

// thawTime bounds the thaw at the end of a capture, which no deadline cuts short.
const thawTime = 30 * time.Second

func (m *Maker) captureStep() op.Step[*state] {
	return op.Step[*state]{
		Name: "capture",
		Do:   m.capture,
		// CRIU may still be writing for a call whose time is over. Nothing is
		// removed before it is through and the containers go on.
		Undo: func(ctx context.Context, s *state) error {
			var err error
			for _, id := range s.Containers {
				err = errors.Join(err, m.shims.Thawed(ctx, id))
			}
			return err
		},
	}
}

var errEnded = fmt.Errorf("the container has ended: %w", errdefs.ErrFailedPrecondition)

// capture freezes the containers, all before anything is taken of one, takes what
// changes while they run, and thaws them.
func (m *Maker) capture(ctx context.Context, s *state) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, c := range s.parts {
		go func() {
			select {
			case <-c.Ended:
				cancel(errEnded)
			case <-ctx.Done():
			}
		}()
	}
	stills, err := m.freeze(ctx, s)
	for i := 0; err == nil && i < len(s.parts); i++ {
		err = m.take(ctx, m.part(s.ID, s.parts[i].ID), s.parts[i], stills[i])
	}
	if err == nil && s.pod != nil && s.pod.Shm != "" {
		_, err = writeDiff(ctx, filepath.Join(m.work(s.ID), shmFile), s.pod.Shm, nil)
	}
	return errors.Join(because(ctx, err), thaw(ctx, stills))
}

// freeze stops all containers, at the same time because each may have commands to
// wait for. What stands still is returned in any case.
func (m *Maker) freeze(ctx context.Context, s *state) ([]Still, error) {
	stills := make([]Still, len(s.parts))
	var g errgroup.Group
	for i, c := range s.parts {
		g.Go(func() error {
			still, err := m.shims.Freeze(ctx, c.ID)
			if err == nil {
				stills[i] = still
			}
			return err
		})
	}
	return stills, g.Wait()
}

// thaw lets all go on that stand still, whether or not ctx has ended.
func thaw(ctx context.Context, stills []Still) (err error) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), thawTime)
	defer done()
	for _, s := range stills {
		if s != nil {
			err = errors.Join(err, s.Thaw(ctx))
		}
	}
	return err
}

// because prefers the reason why a context ended to the error it led to.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errEnded) {
		return cause
	}
	return err
}

// take writes everything that must fit together, while the container stands still.
func (m *Maker) take(ctx context.Context, dir string, c *Container, still Still) error {
	c.Config.CheckpointedAt = time.Now().UTC()
	images, logs := filepath.Join(dir, imagesDir), filepath.Join(dir, logsDir)
	if err := still.Dump(ctx, images, logs); err != nil {
		return Explain(err, filepath.Join(logs, dumpLog))
	}
	deleted, err := writeDiff(ctx, filepath.Join(dir, diffFile), c.Upper, c.Lower)
	if err != nil {
		return fmt.Errorf("save what the container has written: %w", err)
	}
	if c.LogPath != "" {
		c.Status.LogPath = c.LogPath
		if st, err := os.Stat(c.LogPath); err == nil {
			c.Status.LogBytes = st.Size()
		}
	}
	if deleted == nil {
		deleted = []string{}
	}
	for _, f := range []struct {
		name string
		v    any
	}{{deletedFile, deleted}, {configFile, c.Config}, {statusFile, c.Status}} {
		b, err := json.MarshalIndent(f.v, "", "  ")
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f.name), b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	return nil
}

// Explain adds what CRIU says in its log to an error of the runtime, which names
// no reason.
func Explain(err error, log string) error {
	if !errors.Is(err, errdefs.ErrUnknown) {
		return err
	}
	said := criuErrors(log)
	var kind error = errdefs.ErrFailedPrecondition
	if strings.Contains(said, "No space left") {
		kind = errdefs.ErrResourceExhausted
	}
	if strings.Contains(said, "Unsupported proto 262") {
		said += "; that is an MPTCP socket, as Go programs listen by: set GODEBUG=multipathtcp=0 in the container or the sysctl net.mptcp.enabled=0 in the pod"
	}
	return fmt.Errorf("%s: CRIU says: %s: %w", strings.TrimSuffix(err.Error(), ": "+errdefs.ErrUnknown.Error()), said, kind)
}

// criuErrors returns the first errors of a log, which are the causes of the others.
func criuErrors(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "nothing, it left no log"
	}
	defer f.Close()
	var out []string
	for in := bufio.NewScanner(f); in.Scan() && len(out) < 3; {
		if _, text, ok := strings.Cut(in.Text(), "Error ("); ok {
			if _, after, ok := strings.Cut(text, "): "); ok {
				text = after
			}
			out = append(out, strings.ToValidUTF8(text[:min(len(text), 300)], "?"))
		}
	}
	if len(out) == 0 {
		return "no error"
	}
	return strings.Join(out, "; ")
}
