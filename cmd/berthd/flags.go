package main

import (
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/config"
)

// flags is the command line. What it sets overrides the file, also at a reload.
type flags struct {
	config   string
	version  bool
	override []func(*config.Config)
}

func parseFlags(args []string, stderr io.Writer) (*flags, error) {
	f := &flags{}
	fs := flag.NewFlagSet("berthd", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&f.config, "config", "", "configuration `file` (default "+config.DefaultPath+" if it exists)")
	fs.BoolVar(&f.version, "version", false, "print the version and exit")
	f.path(fs, "root", "state `directory`", func(c *config.Config, v string) { c.Paths.Root = v })
	f.path(fs, "run", "run-time `directory`", func(c *config.Config, v string) { c.Paths.Run = v })
	f.path(fs, "listen", "CRI `socket`", func(c *config.Config, v string) { c.Listen.CRI = v })
	f.path(fs, "admin-listen", "admin `socket`", func(c *config.Config, v string) { c.Listen.Admin = v })
	f.path(fs, "nri-socket", "`socket` for node resource plugins", func(c *config.Config, v string) { c.NRI.Socket = v })
	f.path(fs, "cni-conf-dir", "`directory` of CNI configurations", func(c *config.Config, v string) { c.CNI.ConfDir = v })
	f.path(fs, "registry-hosts-dir", "`directory` with HOST/hosts.toml", func(c *config.Config, v string) { c.Image.RegistryDirs = []string{v} })
	fs.Func("log-level", "debug, info, warn or error", func(v string) error {
		f.override = append(f.override, func(c *config.Config) { c.Log.Level = v })
		return nil
	})
	var bins []string
	fs.Func("cni-bin-dir", "`directory` of CNI plugins; repeat it or separate by commas", func(v string) error {
		for d := range strings.SplitSeq(v, ",") {
			abs, err := absolute(d)
			if err != nil {
				return err
			}
			bins = append(bins, abs)
		}
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q; berthd takes only flags, see berthd --help", fs.Arg(0))
		_, _ = fmt.Fprintln(stderr, "berthd:", err)
		return nil, err
	}
	if bins != nil {
		f.override = append(f.override, func(c *config.Config) { c.CNI.BinDirs = bins })
	}
	return f, nil
}

// path declares a flag whose value is made absolute and overrides a key.
func (f *flags) path(fs *flag.FlagSet, name, usage string, set func(*config.Config, string)) {
	fs.Func(name, usage, func(v string) error {
		abs, err := absolute(v)
		if err != nil {
			return err
		}
		f.override = append(f.override, func(c *config.Config) { set(c, abs) })
		return nil
	})
}

// absolute also takes the "unix://" form that crictl uses for sockets.
func absolute(v string) (string, error) {
	v = strings.TrimPrefix(v, "unix://")
	if v == "" {
		return "", fmt.Errorf("the path is empty")
	}
	return filepath.Abs(v)
}

// load reads the file and applies the flags over it.
func (f *flags) load() (config.Config, string, error) {
	path := f.config
	if path == "" {
		path = config.DefaultPath
	}
	c, source, err := config.Load(path, f.config == "")
	if err != nil {
		return c, "", err
	}
	for _, set := range f.override {
		set(&c)
	}
	if err := c.Validate(); err != nil {
		return c, "", fmt.Errorf("command line: %w", err)
	}
	return c, source, nil
}
