package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/store/op"
)

// Names in the directory of a pod's checkpoint, beside an archive for each
// container, NAME.tar.
const (
	podFile     = "pod.dump"
	configsFile = "containers.dump"
	optionsFile = "pod.options"
	shmFile     = "devshm-checkpoint.tar"
)

// Pod is what goes into the checkpoint of a pod.
type Pod struct {
	ID         string
	Config     []byte // of the sandbox, as JSON
	Configs    []byte // of the containers, a list as JSON
	Shm        string // directory that its containers share as /dev/shm; "": the node's
	Containers []*Container
}

// options is pod.options, in checkpointctl's words.
type options struct {
	Version    int               `json:"version"`
	Containers map[string]string `json:"containers"` // name -> file
}

// Pod writes a checkpoint of running containers of a pod, as they all are at one
// moment, into a directory that is empty. They go on in any case. The caller keeps
// others from changing them.
func (m *Maker) Pod(ctx context.Context, p Pod, dir string) error {
	if err := clean(dir); err != nil {
		return err
	}
	if err := directory(dir); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return errors.Join(err, fmt.Errorf("%s is not empty: %w", dir, errdefs.ErrFailedPrecondition))
	}
	s := newState(p.ID, dir, p.Containers...)
	s.pod = &p
	seen := map[string]bool{}
	for _, c := range p.Containers {
		name := c.Config.Name
		if seen[name] || strings.ContainsAny(name, "/\x00") || len(name) > 200 {
			return fmt.Errorf("container %s: no file can have its name %q, or another of the containers has it: %w", c.ID, name, errdefs.ErrInvalidArgument)
		}
		seen[name] = true
		s.Files = append(s.Files, name+".tar")
	}
	s.Files = append(s.Files, shmFile, optionsFile, configsFile, podFile)
	s.Temp = tempIn(dir, p.ID)
	return m.run(ctx, m.verb(PodKind, m.podArchivesStep()), s)
}

func (m *Maker) podArchivesStep() op.Step[*state] {
	return op.Step[*state]{
		Name: "archives",
		Do: func(ctx context.Context, s *state) error {
			if err := m.podArchives(ctx, s); err != nil {
				return fmt.Errorf("write checkpoint to %s: %w", s.Location, diskError(err))
			}
			return nil
		},
		Undo: func(_ context.Context, s *state) error {
			var paths []string
			for _, name := range s.Files {
				paths = append(paths, filepath.Join(s.Location, name))
			}
			return m.removeFiles(s, paths...)
		},
	}
}

// podArchives fills the directory; pod.dump comes last.
func (m *Maker) podArchives(ctx context.Context, s *state) error {
	put := func(name string, write func(f *os.File) error) error {
		return m.place(s, filepath.Join(s.Location, name), write)
	}
	opts := options{Version: 1, Containers: map[string]string{}}
	for i, c := range s.parts {
		if err := put(s.Files[i], func(f *os.File) error { return fill(ctx, f, m.part(s.ID, c.ID), c) }); err != nil {
			return err
		}
		opts.Containers[c.Config.Name] = s.Files[i]
	}
	if s.pod.Shm != "" {
		from, err := os.Open(filepath.Join(m.work(s.ID), shmFile))
		if err != nil {
			return err
		}
		err = put(shmFile, func(f *os.File) error { return copyAll(ctx, f, from) })
		if err := errors.Join(err, from.Close()); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(opts, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		b    []byte
	}{{optionsFile, b}, {configsFile, s.pod.Configs}, {podFile, s.pod.Config}} {
		if err := put(f.name, func(to *os.File) error { _, err := to.Write(f.b); return err }); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
