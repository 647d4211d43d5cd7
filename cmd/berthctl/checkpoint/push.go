package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/imageservice/registry"
)

// patience is how long a registry may look at what was sent to it: at gigabytes
// it looks for minutes.
const patience = 15 * time.Minute

// repository is where an image is pushed to or pulled from.
type repository struct {
	*registry.Session
	name   string // with the registry
	object string // tag or digest
}

// openRepository opens the repository of a reference with the node's own settings, those
// that its daemon has in force.
func openRepository(c *cobra.Command, a *cli.App, ref string, login *cli.Login) (*repository, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("reference %q: %w", ref, err)
	}
	password, err := login.Password(c.InOrStdin())
	if err != nil {
		return nil, err
	}
	var files registry.Files
	err = a.AdminAPI(func(cl admin.AdminClient) error {
		r, err := cl.Config(c.Context(), &admin.ConfigRequest{})
		if err != nil {
			return err
		}
		cfg, err := config.Parse("the daemon's configuration", []byte(r.GetToml()))
		files = registry.Files{HostsDirs: cfg.Image.RegistryDirs, AuthFiles: cfg.Image.AuthFiles}
		return err
	})
	if err != nil {
		return nil, err
	}
	r := &repository{name: named.Name()}
	if t, ok := named.(reference.Tagged); ok {
		r.object = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.object = d.Digest().String()
	}
	r.Session, err = registry.New(registry.Config{Files: files, Limits: registry.Limits{FirstByte: patience}}).Open(c.Context(),
		registry.Target{Domain: reference.Domain(named), Path: reference.Path(named), Creds: registry.Credentials{Username: login.Username, Password: password}})
	if err != nil {
		return nil, cli.Failed(err, "")
	}
	return r, nil
}

// registryError says what a user may do about it.
func registryError(ctx context.Context, err error) error {
	var said *cli.ExitError
	switch {
	case ctx.Err() != nil:
		return &cli.ExitError{Code: cli.CodeInterrupted, Err: errors.New("interrupted"), Next: "Nothing is left half done."}
	case errors.As(err, &said):
		return err
	case errdefs.IsNotFound(err):
		return &cli.ExitError{Code: cli.CodeNotFound, Err: err, Next: "Check the reference, and that its registry has it."}
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return cli.Failed(err, "Give --username and --password-stdin, or name a file with credentials in image.auth_files.")
	}
	return cli.Failed(err, "Registries are as the node's hosts.toml files say; see docs/images.md.")
}

// pushed is what push tells.
type pushed struct {
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	Bytes     int64  `json:"bytes"` // of the layer
}

func push(a *cli.App) *cobra.Command {
	var login cli.Login
	cmd := &cobra.Command{Use: "push FILE|DIRECTORY REFERENCE", Short: "Push a checkpoint to a registry, as an image", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := newSource(args[0])
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return cli.Failed(err, "")
			}
			if err != nil {
				return cli.Failed(err, nextRead)
			}
			defer s.close()
			r, err := openRepository(c, a, args[1], &login)
			if err != nil {
				return err
			}
			defer r.Close()
			done, err := r.push(c.Context(), s)
			if err != nil {
				return err
			}
			return a.Show(c.OutOrStdout(), done, cli.Table{Rows: [][]string{{done.Reference + "@" + done.Digest}}})
		}}
	cmd.Long = "Push a checkpoint to a registry, as an image of one layer: what is in the archive of a container, or the files of a pod's\n" +
		"directory. CRI-O and checkpointctl know the first form. `berthctl checkpoint pull` brings it to another node.\n" +
		"The image holds the memory of the processes, with all secrets that are in it: whoever may pull it may read them.\n\n" +
		loginHelp
	login.Flags(cmd)
	return cmd
}

const loginHelp = "The node's hosts.toml files and its own credentials (image.auth_files) are used, unless others are given."

func (r *repository) push(ctx context.Context, s *source) (*pushed, error) {
	if reference.DigestRegexp.MatchString(r.object) {
		return nil, fmt.Errorf("a checkpoint is pushed under a tag, not under digest %s", r.object)
	}
	parts, err := s.image(ctx)
	if err != nil {
		return nil, cli.Failed(err, "")
	}
	for i, p := range parts {
		tag := ""
		if i == len(parts)-1 {
			tag = r.object
		}
		if err := r.Push(ctx, p.desc, tag, p.write); err != nil {
			return nil, registryError(ctx, err)
		}
	}
	return &pushed{Reference: r.name + ":" + r.object, Digest: parts[len(parts)-1].desc.Digest.String(), Bytes: parts[0].desc.Size}, nil
}
