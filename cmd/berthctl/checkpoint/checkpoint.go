// Package checkpoint has the commands on checkpoints of containers and pods: to
// make and restore them, to carry them through registries, and to look into one,
// which may be foreign data.
package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// Command makes the command and what is below it.
func Command(a *cli.App) *cobra.Command {
	return cli.Group("checkpoint", "Checkpoints of containers and pods", create(a), inspect(a), restore(a), push(a), pull(a))
}

// nextRead is the step after a checkpoint that cannot be read.
const nextRead = "Only checkpoints as `berthctl checkpoint create`, the kubelet or CheckpointPod write them are read, not compressed ones."

func inspect(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{Use: "inspect FILE|DIRECTORY", Short: "Show what a checkpoint is of, from a file or a pod's directory", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := open(args[0])
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return cli.Failed(err, "")
			}
			if err != nil {
				return cli.Failed(err, nextRead)
			}
			if a.Structured() {
				return a.ShowDocument(c.OutOrStdout(), all)
			}
			for i, s := range all {
				if i > 0 {
					if _, err := fmt.Fprintln(c.OutOrStdout()); err != nil {
						return err
					}
				}
				if err := s.print(c.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		}}
	cmd.Long = "Show which container a checkpoint is of, when it was made, and how much it holds. Nothing is unpacked, and no more than some\n" +
		"MiB is read of any entry: a checkpoint may come from anywhere."
	return cmd
}

// open reads one archive, or all of a directory.
func open(path string) ([]*Summary, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	files := []string{path}
	if st.IsDir() {
		if files, err = filepath.Glob(filepath.Join(glob(path), "*.tar")); err != nil {
			return nil, err
		}
	}
	var out []*Summary
	for _, f := range files {
		s, err := openFile(f)
		if errors.Is(err, errOther) && st.IsDir() {
			continue // the pod's shared memory
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no checkpoint is in it", path)
	}
	return out, nil
}

// glob quotes a path for filepath.Glob.
func glob(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

func openFile(path string) (*Summary, error) {
	f, _, err := regular(path, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Read(f)
}

// regular opens a regular file, and returns its size.
func regular(path string, flags int) (*os.File, int64, error) {
	// A pipe would make the reader wait for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file: %w", path, fs.ErrInvalid)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (s *Summary) print(w io.Writer) error {
	when := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	for _, line := range [][2]string{
		{"container", s.Name}, {"id", s.ID}, {"pod", strings.TrimPrefix(s.Namespace+"/"+s.Pod, "/")}, {"image", s.Image}, {"image digest", s.ImageRef},
		{"handler", s.Handler}, {"created", when(s.Created)}, {"checkpointed", when(s.Checkpointed)}, {"addresses", strings.Join(s.Addresses, ", ")},
		{"memory", cli.Bytes(uint64(s.MemoryBytes))}, {"written files", cli.Bytes(uint64(s.DiffBytes))}, {"deleted files", fmt.Sprint(s.Deleted)},
		{"log", cli.Bytes(uint64(s.LogBytes))},
	} {
		if line[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%-14s %s\n", line[0], cli.Clean(line[1])); err != nil {
			return err
		}
	}
	return nil
}
