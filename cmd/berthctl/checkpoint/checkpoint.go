// Package checkpoint has the commands on checkpoints of containers: to make one,
// and to look into one, which may be foreign data.
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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// Command makes the command and what is below it.
func Command(a *cli.App) *cobra.Command {
	return cli.Group("checkpoint", "Checkpoints of containers", create(a), inspect(a))
}

func create(a *cli.App) *cobra.Command {
	var limit time.Duration
	cmd := a.Command("create CONTAINER FILE", "Write a checkpoint of a running container, which goes on", cobra.ExactArgs(2),
		func(c *cobra.Command, cl cli.Clients, args []string) error {
			if limit < 0 || limit%time.Second != 0 {
				return cli.Failed(fmt.Errorf("the time-out %v is not a number of seconds", limit), "Give --timeout 2m, for example.")
			}
			k, err := cl.Container(c.Context(), args[0])
			if err != nil {
				return err
			}
			file, err := filepath.Abs(args[1])
			if err != nil {
				return err
			}
			_, err = cl.CheckpointContainer(c.Context(), &runtimeapi.CheckpointContainerRequest{
				ContainerId: k.GetId(), Location: file, Timeout: int64(limit / time.Second)})
			if status.Code(err) == codes.Unimplemented {
				return cli.Failed(errors.New(status.Convert(err).Message()), "Give the node what it lacks for checkpoints; nothing has to be restarted. See docs/checkpoint.md.")
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), file)
			return err
		})
	cmd.Long = "Write a checkpoint of a running container into a new file: its processes, by CRIU, and the files it has written. It stands\n" +
		"still meanwhile and goes on afterwards. The file holds the memory of the processes, with all secrets that are in it."
	cmd.Flags().DurationVar(&limit, "timeout", 0, "give up after `time`; 0: what the daemon allows")
	return cli.Completed(cmd, a.Containers(0))
}

func inspect(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{Use: "inspect FILE|DIRECTORY", Short: "Show what a checkpoint is of, from a file or a pod's directory", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := open(args[0])
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return cli.Failed(err, "")
			}
			if err != nil {
				return cli.Failed(err, "Only checkpoints as `berthctl checkpoint create`, the kubelet or CheckpointPod write them are read, not compressed ones.")
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
	// A pipe would make the reader wait for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Type() != 0 {
		return nil, fmt.Errorf("it is no regular file: %w", fs.ErrInvalid)
	}
	return Read(f)
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
