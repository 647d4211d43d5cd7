// Package migrate is berthctl's commands for a node that ran another runtime.
package migrate

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/config"
)

// options are what both commands are told.
type options struct {
	from, file string
	images     bool
	root       string
}

// source is the runtime that --from names.
func (o options) source() (source, error) {
	for _, s := range sources() {
		if s.name == o.from {
			return s, nil
		}
	}
	return source{}, fmt.Errorf("--from %q is unknown; use containerd or crio", o.from)
}

// read translates the runtime's configuration.
func (o options) read() (Report, []byte, error) {
	s, err := o.source()
	if err != nil {
		return Report{}, nil, err
	}
	r, err := load(s, o.file)
	if err != nil {
		return r, nil, cli.Failed(err, "")
	}
	text, err := berthFile(r)
	if err != nil {
		return r, nil, cli.Failed(err, "Change it in a copy of the file, and name that by --config.")
	}
	return r, text, nil
}

// Command is `berthctl migrate`.
func Command(a *cli.App) *cobra.Command {
	var o options
	check := &cobra.Command{Use: "check", Short: "What becomes of each setting or image of another runtime", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		if o.images {
			return o.checkImages(a, c.OutOrStdout())
		}
		r, _, err := o.read()
		if err != nil {
			return err
		}
		return a.Show(c.OutOrStdout(), r, table(r))
	}}
	check.Long = "What becomes of each setting that is made: taken, needless (Berth does without), lost (somebody has to look), or unknown.\n" +
		"With --images: which images can be taken over as they are in its store.\nIt reads files only, changes nothing, and needs no daemon."
	imports := importCommand(a, &o)
	group := cli.Group("migrate", "Come from containerd or CRI-O", check, imports)
	for _, c := range []*cobra.Command{check, imports} {
		f := c.Flags()
		f.StringVar(&o.from, "from", "", "`runtime` that the node has now: containerd or crio")
		f.StringVar(&o.file, "config", "", "its configuration `file`, when that is elsewhere; CRI-O's drop-in files are then not read")
		f.BoolVar(&o.images, "images", false, "its images, not its configuration")
		f.StringVar(&o.root, "root", "", "its `directory` of images, when its configuration does not say the right one")
		_ = c.MarkFlagRequired("from")
		_ = c.RegisterFlagCompletionFunc("from", cobra.FixedCompletions([]string{"containerd", "crio"}, cobra.ShellCompDirectiveNoFileComp))
	}
	return group
}

func importCommand(a *cli.App, o *options) *cobra.Command {
	var output string
	var force bool
	c := &cobra.Command{Use: "import", Short: "Write Berth's configuration out of another runtime's, or take over its images", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		if o.images {
			return o.importImages(c.Context(), a, c.OutOrStdout())
		}
		r, text, err := o.read()
		if err != nil {
			return err
		}
		if output == "-" {
			_, err := c.OutOrStdout().Write(text)
			return err
		}
		if err := write(output, text, force); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s is written; check it, and what `berthctl migrate check --from %s` calls lost\n", output, r.From)
		return err
	}}
	c.Long = "Write Berth's configuration out of another runtime's: the settings that `berthctl migrate check` calls taken.\n\n" +
		"With --images, when Berth runs and the other runtime has stopped: take over the images in its store without pulling\n" +
		"them again. Everything is verified by its digest, the store is only read, and what cannot be taken over is said and\n" +
		"left to a pull. It can be repeated: what Berth has is not sent again."
	c.Flags().StringVar(&output, "to", config.DefaultPath, "the `file` to write; - is standard output")
	c.Flags().BoolVarP(&force, "force", "f", false, "replace a file that exists")
	return c
}

// berthFile is Berth's configuration out of what is taken. What Berth refuses is
// an error that names the key.
func berthFile(report Report) ([]byte, error) {
	set, origin := map[string]any{}, map[string]string{}
	for _, r := range report.Settings {
		for k, v := range r.ours {
			set[k], origin[k] = v, r.Key
		}
	}
	for _, h := range report.Handlers { // each has a table, if only an empty one
		set["runtime.handlers."+quoted(h)+"."] = nil
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Made by `berthctl migrate import --from %s`. Every other key has its default;\n# `berthctl config dump` shows them all.\n", report.From)
	last := ""
	keys := slices.Collect(maps.Keys(set))
	slices.SortFunc(keys, func(x, y string) int {
		tx, _ := cut(x)
		ty, _ := cut(y)
		return strings.Compare(tx+"\x00"+x, ty+"\x00"+y)
	})
	for _, k := range keys {
		section, key := cut(k)
		if section != last {
			fmt.Fprintf(&b, "\n[%s]\n", section)
			last = section
		}
		if key == "" {
			continue
		}
		value, err := toml.Marshal(map[string]any{"v": set[k]})
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", k, err)
		}
		fmt.Fprintf(&b, "# %s\n%s = %s", origin[k], key, strings.TrimPrefix(string(value), "v = "))
	}
	if _, err := config.Parse("the configuration that results", b.Bytes()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// cut divides a dotted key into its table and its name.
func cut(key string) (section, name string) {
	i := strings.LastIndex(key, ".")
	return key[:i], key[i+1:]
}

// write makes the file, whole or not at all.
func write(file string, text []byte, force bool) error {
	if _, err := os.Lstat(file); err == nil && !force {
		return cli.Failed(fmt.Errorf("%s exists: %w", file, errdefs.ErrAlreadyExists), "Look at it, and give --force to replace it, or --to for another file.")
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return cli.Failed(fmt.Errorf("write %s: %w", file, err), "")
	}
	tmp := file + ".new"
	err := os.WriteFile(tmp, text, 0o644)
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return cli.Failed(fmt.Errorf("write %s: %w", file, err), "")
	}
	return nil
}

func table(r Report) cli.Table {
	t := cli.Table{Header: "VERDICT KEY VALUE BERTH NOTE"}
	order := []string{lost, unknown, taken, needless}
	rows := slices.Clone(r.Settings)
	slices.SortStableFunc(rows, func(a, b Row) int { return slices.Index(order, a.Verdict) - slices.Index(order, b.Verdict) })
	for _, r := range rows {
		value := r.Value
		if len(value) > 40 {
			value = value[:37] + "..."
		}
		t.Rows = append(t.Rows, []string{r.Verdict, r.Key, value, r.Berth, r.Note})
	}
	return t
}
