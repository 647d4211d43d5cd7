// Package checkpoint writes checkpoints of running containers and whole pods:
// CRIU's image of the processes, what the container has written, and what it was
// made from, as the archive that Kubernetes' forensic checkpoints are.
//
// A container stands still while its processes and its writable layer are
// captured, those of a pod all at the same time, and goes on before archives are
// written. It stands still for a
// connection to its shim, so it goes on when this daemon dies; what lies half
// done on the disk is in the journal, and removed.
package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/store/op"
)

// The journal's names for checkpoints of containers and pods.
const (
	Kind    = "container.checkpoint"
	PodKind = "sandbox.checkpoint"
)

// Shims freeze containers.
type Shims interface {
	// Freeze returns when all processes of the container stand still.
	Freeze(ctx context.Context, id string) (Still, error)
	// Thawed waits until nobody keeps the container still, nor dumps it.
	Thawed(ctx context.Context, id string) error
}

// Still is a container that stands still until Thaw.
type Still interface {
	// Dump writes CRIU's image into one directory and its log into another.
	Dump(ctx context.Context, images, work string) error
	Thaw(ctx context.Context) error
}

// Maker makes checkpoints.
type Maker struct {
	dir     string
	shims   Shims
	journal op.Journal
}

// New returns a maker that keeps what is under way in dir. It must be on a file
// system with room for the memory of the containers.
func New(dir string, shims Shims, journal op.Journal) *Maker {
	return &Maker{dir: dir, shims: shims, journal: journal}
}

// Container is what goes into the checkpoint of one container.
type Container struct {
	ID      string
	Upper   string   // directory with what it has written
	Lower   []string // directories of its image's layers, top first
	LogPath string   // "": it keeps no log
	Config  Config
	Spec    []byte // its OCI specification
	Network []byte // CNI result, "" for the node's network
	Status  Status
	Ended   <-chan struct{} // closed when it ends
}

// Config is config.dump, in the words of Podman's format.
type Config struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`     // as the client named it
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`  // by digest
	RootfsImageName string    `json:"rootfsImageName,omitempty"` // for people
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"` // set when it stands still
}

// Status is status.dump: containerd's names, and Berth's own below them.
type Status struct {
	CreatedAt  int64 // ns since 1970, as all times
	StartedAt  int64
	FinishedAt int64
	ExitCode   int32
	Pid        uint32
	Reason     string
	Message    string

	LogPath  string `json:",omitempty"`
	LogBytes int64  `json:",omitempty"` // size of the log while it stood still
}

// state is the journal's payload.
type state struct {
	ID         string   // of container or sandbox
	Containers []string // IDs
	Location   string   // of the archive, or the directory for those of a pod
	Temp       string   // of a file while it is written
	Files      []string // that are written into the directory
	parts      []*Container
	pod        *Pod
}

func newState(id, location string, parts ...*Container) *state {
	s := &state{ID: id, Location: location, parts: parts}
	for _, c := range parts {
		s.Containers = append(s.Containers, c.ID)
	}
	return s
}

// Container writes a checkpoint of a running container to a file that does not
// exist. The container goes on in any case. The caller keeps others from changing it.
func (m *Maker) Container(ctx context.Context, c Container, location string) error {
	if err := vacant(location); err != nil {
		return err
	}
	s := newState(c.ID, location, &c)
	s.Temp = tempIn(filepath.Dir(location), c.ID)
	return m.run(ctx, m.verb(Kind, m.archiveStep()), s)
}

// tempIn is where a file is written before it has its name.
func tempIn(dir, id string) string { return filepath.Join(dir, ".berth-checkpoint-"+id) }

func (m *Maker) run(ctx context.Context, v op.Verb[*state], s *state) error {
	// CRIU may still be writing for an earlier one, into the same directory.
	if err := m.Recover(ctx, s.ID); err != nil {
		return fmt.Errorf("an earlier checkpoint of it is not undone yet: %w", err)
	}
	if err := op.Run(ctx, m.journal, v, s.ID, s); err != nil {
		return err
	}
	return os.RemoveAll(m.work(s.ID))
}

// vacant checks where a client wants an archive.
func vacant(location string) error {
	if err := clean(location); err != nil {
		return err
	}
	if err := directory(filepath.Dir(location)); err != nil {
		return err
	}
	if _, err := os.Lstat(location); err == nil {
		return fmt.Errorf("location: %s exists; remove it or choose another name: %w", location, errdefs.ErrAlreadyExists)
	}
	return nil
}

func clean(location string) error {
	if !filepath.IsAbs(location) || filepath.Clean(location) != location {
		return fmt.Errorf("location %q is not a clean absolute path: %w", location, errdefs.ErrInvalidArgument)
	}
	return nil
}

func directory(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("location: %w: %w", err, errdefs.ErrInvalidArgument)
	case !st.IsDir():
		return fmt.Errorf("location: %s is not a directory: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Recover removes what checkpoints of the container or sandbox have left half done.
func (m *Maker) Recover(ctx context.Context, id string) error {
	empty := func() *state { return &state{} }
	return errors.Join(op.Recover(ctx, m.journal, m.verb(Kind, m.archiveStep()), id, empty),
		op.Recover(ctx, m.journal, m.verb(PodKind, m.podArchivesStep()), id, empty))
}

// Sweep removes what finished checkpoints have left because the daemon died at
// their very end. Call it before the first checkpoint.
func (m *Maker) Sweep() error {
	busy := map[string]bool{}
	for _, o := range m.journal.Ops() {
		busy[o.Subject] = true
	}
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !busy[e.Name()] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(m.dir, e.Name())))
		}
	}
	return err
}

// verb lists the steps. It is not declared to crash tests, whose nodes have no
// CRIU; those of test/vm kill the daemon in the midst of it.
func (m *Maker) verb(kind string, archives op.Step[*state]) op.Verb[*state] {
	return op.Verb[*state]{
		Kind:    kind,
		OnCrash: op.Rollback,
		Steps:   []op.Step[*state]{m.directoryStep(), m.captureStep(), archives},
	}
}

// work is where a checkpoint under way is kept, part what it has of a container.
func (m *Maker) work(id string) string            { return filepath.Join(m.dir, id) }
func (m *Maker) part(id, container string) string { return filepath.Join(m.dir, id, container) }

func (m *Maker) directoryStep() op.Step[*state] {
	return op.Step[*state]{
		Name: "directory",
		Do: func(_ context.Context, s *state) error {
			err := os.RemoveAll(m.work(s.ID))
			dirs := []string{m.dir, m.work(s.ID)}
			for _, c := range s.Containers {
				dir := m.part(s.ID, c)
				dirs = append(dirs, dir, filepath.Join(dir, imagesDir), filepath.Join(dir, logsDir))
			}
			for _, d := range dirs {
				if e := os.Mkdir(d, 0o700); !errors.Is(e, os.ErrExist) {
					err = errors.Join(err, e)
				}
			}
			return err
		},
		Undo: func(_ context.Context, s *state) error { return os.RemoveAll(m.work(s.ID)) },
	}
}
