// Package image is berthctl's commands on images and what they are made of.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

// Commands are the commands of this package.
func Commands(a *cli.App) []*cobra.Command {
	return []*cobra.Command{images(a), layers(a), content(a), gc(a)}
}

func images(a *cli.App) *cobra.Command {
	ls := a.Command("ls", "List images", cobra.NoArgs, func(c *cobra.Command, cl cli.Clients, _ []string) error {
		r, err := cl.Images.ListImages(c.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			return err
		}
		return a.Show(c.OutOrStdout(), r, imageTable(a, r.GetImages()))
	})
	rm := a.Command("rm IMAGE...", "Remove images", cobra.MinimumNArgs(1), func(c *cobra.Command, cl cli.Clients, args []string) error {
		for _, ref := range args {
			if _, err := cl.Images.RemoveImage(c.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				return err
			}
		}
		return nil
	})
	all := cli.Group("images", "Images", ls, cli.Completed(imagesInspect(a), a.ImageNames(1)), cli.Completed(imagesTree(a), a.ImageNames(0)),
		cli.Completed(imagesCheck(a), a.ImageNames(0)), imagesImport(a), imagesExport(a), pullCommand(a), cli.Completed(rm, a.ImageNames(0)))
	all.AddCommand(imagesChange(a)...)
	return all
}

func imageTable(a *cli.App, images []*runtimeapi.Image) cli.Table {
	t := cli.Table{Header: "ID SIZE PINNED REFERENCE DIGEST", Wide: 1}
	for _, im := range images {
		refs := im.GetRepoTags()
		if len(refs) == 0 {
			refs = im.GetRepoDigests()
		}
		if len(refs) == 0 {
			refs = []string{"-"}
		}
		for _, ref := range refs {
			t.Rows = append(t.Rows, []string{a.ID(im.GetId()), cli.Bytes(im.GetSize()), fmt.Sprint(im.GetPinned()), ref, strings.Join(im.GetRepoDigests(), " ")})
		}
	}
	return t
}

// imagesAPI makes a sub-command that gets a client of the admin API's images.
func imagesAPI(a *cli.App, use, short string, args cobra.PositionalArgs, f func(*cobra.Command, admin.ImagesClient, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(c *cobra.Command, argv []string) error {
		return a.ImagesAPI(func(cl admin.ImagesClient) error { return f(c, cl, argv) })
	}}
}

func imagesCheck(a *cli.App) *cobra.Command {
	var deep, repair bool
	cmd := imagesAPI(a, "check [IMAGE...]", "Compare layers, blobs and records with what is on disk; exit code 1 if something is wrong", cobra.ArbitraryArgs,
		func(c *cobra.Command, cl admin.ImagesClient, args []string) error {
			stream, err := cl.CheckImages(c.Context(), &admin.CheckImagesRequest{Images: args, Deep: deep, Repair: repair})
			if err != nil {
				return err
			}
			for {
				e, err := stream.Recv()
				if err != nil {
					return err
				}
				if r := e.GetReport(); r != nil {
					return showCheck(a, c.OutOrStdout(), r)
				}
			}
		})
	cmd.Flags().BoolVar(&deep, "deep", false, "read all content and compare checksums, not only sizes, modes and owners")
	cmd.Flags().BoolVar(&repair, "repair", false, "set damaged layers aside and fetch them again, delete what no record owns")
	return cmd
}

func showCheck(a *cli.App, w io.Writer, r *admin.CheckImagesReport) error {
	var rows [][]string
	left := false
	for _, p := range r.GetProblems() {
		rows = append(rows, []string{p.GetKind(), p.GetName(), p.GetDetail(), p.GetFixed()})
		left = left || p.GetFixed() == "" || strings.HasPrefix(p.GetFixed(), "not ")
	}
	header := ""
	if len(rows) > 0 {
		header = "KIND NAME PROBLEM DONE"
	}
	if err := a.Show(w, r, cli.Table{Header: header, Rows: rows}); err != nil {
		return err
	}
	if !a.Structured() {
		_, _ = fmt.Fprintf(w, "checked %d images, %d layers with %d files, %d blobs, read %s: %d problems\n",
			r.GetImages(), r.GetLayers(), r.GetFiles(), r.GetBlobs(), cli.Bytes(uint64(max(0, r.GetBytes()))), len(rows))
	}
	if left {
		return &cli.ExitError{Code: cli.CodeFailed}
	}
	return nil
}

func gc(a *cli.App) *cobra.Command {
	var dry, all bool
	cmd := imagesAPI(a, "gc", "Delete layers and blobs that no image, container or pull needs", cobra.NoArgs,
		func(c *cobra.Command, cl admin.ImagesClient, _ []string) error {
			r, err := cl.CollectImages(c.Context(), &admin.CollectImagesRequest{DryRun: dry, All: all})
			if err != nil {
				return err
			}
			verb := "deleted"
			if dry {
				verb = "would delete"
			}
			var rows [][]string
			for _, l := range r.GetLayers() {
				rows = append(rows, []string{verb, "layer", l.GetChainId(), cli.Bytes(l.GetBytes())})
			}
			for _, b := range r.GetBlobs() {
				rows = append(rows, []string{verb, "blob", b, ""})
			}
			for _, q := range r.GetQuarantine() {
				rows = append(rows, []string{verb, "quarantine", q, ""})
			}
			for _, l := range r.GetKept() {
				rows = append(rows, []string{"keeps for a pull", "layer", l.GetChainId(), cli.Bytes(l.GetBytes())})
			}
			return a.Show(c.OutOrStdout(), r, cli.Table{Rows: rows})
		})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be deleted")
	cmd.Flags().BoolVar(&all, "all", false, "layers that a failed pull brought within the last hour, too")
	return cmd
}

func imagesImport(a *cli.App) *cobra.Command {
	var name string
	cmd := imagesAPI(a, "import FILE", "Import images from an OCI layout or docker-archive tar; - is standard input", cobra.ExactArgs(1),
		func(c *cobra.Command, cl admin.ImagesClient, args []string) error {
			in := io.NopCloser(c.InOrStdin())
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return cli.Failed(err, "")
				}
				in = f
			}
			defer func() { _ = in.Close() }()
			r, err := importFrom(c.Context(), cl, in, name)
			if err != nil {
				return err
			}
			var rows [][]string
			for _, img := range r.GetImages() {
				rows = append(rows, []string{img.GetId(), strings.Join(img.GetNames(), " ")})
			}
			return a.Show(c.OutOrStdout(), r, cli.Table{Rows: rows})
		})
	cmd.Flags().StringVar(&name, "name", "", "name of the one image in the archive, instead of what the archive says")
	return cmd
}

func importFrom(ctx context.Context, cl admin.ImagesClient, in io.Reader, name string) (*admin.ImportImagesResponse, error) {
	stream, err := cl.ImportImages(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&admin.ImportImagesRequest{Name: name}); err != nil {
		_, err = stream.CloseAndRecv()
		return nil, err
	}
	buf := make([]byte, 1<<20)
	for {
		n, err := in.Read(buf)
		if n > 0 && stream.Send(&admin.ImportImagesRequest{Data: buf[:n]}) != nil {
			break // the daemon has ended the call: CloseAndRecv tells why
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, cli.Failed(fmt.Errorf("read archive: %w", err), "")
		}
	}
	return stream.CloseAndRecv()
}

func imagesExport(a *cli.App) *cobra.Command {
	return imagesAPI(a, "export FILE IMAGE...", "Export images as an OCI layout that docker loads as well; - is standard output", cobra.MinimumNArgs(2),
		func(c *cobra.Command, cl admin.ImagesClient, args []string) error {
			stream, err := cl.ExportImages(c.Context(), &admin.ExportImagesRequest{Images: args[1:]})
			if err != nil {
				return err
			}
			if args[0] == "-" {
				return copyChunks(c.OutOrStdout(), stream.Recv)
			}
			f, err := os.CreateTemp(filepath.Dir(args[0]), ".berth-export-")
			if err != nil {
				return cli.Failed(err, "")
			}
			err = copyChunks(f, stream.Recv)
			if err = errors.Join(err, f.Close()); err == nil {
				err = os.Rename(f.Name(), args[0])
			}
			if err != nil {
				_ = os.Remove(f.Name())
			}
			return err
		})
}

func copyChunks(w io.Writer, recv func() (*admin.ExportImagesChunk, error)) error {
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(m.GetData()); err != nil {
			return cli.Failed(fmt.Errorf("write archive: %w", err), "")
		}
	}
}

// imagesChange are the small verbs.
func imagesChange(a *cli.App) []*cobra.Command {
	return []*cobra.Command{
		cli.Completed(imagesAPI(a, "mount IMAGE DIRECTORY", "Show an image's files read-only in a directory of the node", cobra.ExactArgs(2),
			func(c *cobra.Command, cl admin.ImagesClient, args []string) error {
				dir, err := filepath.Abs(args[1])
				if err == nil {
					_, err = cl.MountImage(c.Context(), &admin.MountImageRequest{Image: args[0], Target: dir})
				}
				return err
			}), a.ImageNames(1)),
		imagesAPI(a, "unmount DIRECTORY", "Take such a mount away", cobra.ExactArgs(1),
			func(c *cobra.Command, cl admin.ImagesClient, args []string) error {
				dir, err := filepath.Abs(args[0])
				if err == nil {
					_, err = cl.UnmountImage(c.Context(), &admin.UnmountImageRequest{Target: dir})
				}
				return err
			}),
		cli.Completed(imagesAPI(a, "tag IMAGE NAME", "Give an image one more name", cobra.ExactArgs(2),
			func(c *cobra.Command, cl admin.ImagesClient, args []string) error {
				r, err := cl.TagImage(c.Context(), &admin.TagImageRequest{Image: args[0], Name: args[1]})
				if err != nil {
					return err
				}
				return a.Show(c.OutOrStdout(), r, cli.Table{Rows: [][]string{{r.GetName()}}})
			}), a.ImageNames(1)),
	}
}

func imagesInspect(a *cli.App) *cobra.Command {
	return imagesAPI(a, "inspect IMAGE", "Configuration, layers, sizes and users of an image, as JSON or YAML", cobra.ExactArgs(1),
		func(c *cobra.Command, cl admin.ImagesClient, args []string) error {
			r, err := cl.DescribeImages(c.Context(), &admin.DescribeImagesRequest{Images: args})
			if err != nil {
				return err
			}
			doc, err := inspected(r.GetImages()[0])
			if err != nil {
				return err
			}
			return a.ShowDocument(c.OutOrStdout(), doc)
		})
}

// inspected is an image's description with its configuration as a document, not
// as bytes. It is encoded here: what embeds a message passes for one.
func inspected(d *admin.ImageDescription) (json.RawMessage, error) {
	out := struct {
		*admin.ImageDescription
		Config json.RawMessage `json:"config,omitempty"`
	}{ImageDescription: d}
	if json.Valid(d.GetConfig()) {
		out.Config = d.GetConfig()
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return b, nil
}

func imagesTree(a *cli.App) *cobra.Command {
	return imagesAPI(a, "tree [IMAGE...]", "Images and their layers, bottom first", cobra.ArbitraryArgs,
		func(c *cobra.Command, cl admin.ImagesClient, args []string) error {
			r, err := cl.DescribeImages(c.Context(), &admin.DescribeImagesRequest{Images: args})
			if err != nil {
				return err
			}
			return a.Show(c.OutOrStdout(), r, cli.Table{Rows: treeRows(a, r.GetImages(), time.Now())})
		})
}

func treeRows(a *cli.App, images []*admin.ImageDescription, now time.Time) (rows [][]string) {
	for _, d := range images {
		name := strings.Join(append(append([]string{}, d.GetRepoTags()...), d.GetArtifact()), " ")
		rows = append(rows, []string{a.ID(d.GetId()), cli.Bytes(d.GetDiskBytes()), cli.Age(d.GetPulledAt(), now), strings.TrimSpace(name)})
		for i, l := range d.GetLayers() {
			note := ""
			switch {
			case l.GetDiffId() == "":
				note = "missing"
			case l.GetImages() > 1:
				note = fmt.Sprintf("shared by %d images", l.GetImages())
			}
			rows = append(rows, []string{cli.Branch(i, len(d.GetLayers())) + a.ID(l.GetChainId()), cli.Bytes(l.GetBytes()), "", note})
		}
	}
	return rows
}
