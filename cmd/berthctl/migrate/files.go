package migrate

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// source is a runtime that a node comes from.
type source struct {
	name, file, dropIns string
	rootKeys            []string // what says where its images are: the first that is set
	storage             []string // files of containers/storage that say so where the runtime does not
	root                string   // where they are by default
	merge               func(file string, doc, below map[string]any) (map[string]any, error)
	translate           func(doc map[string]any) (Report, error)
}

func sources() []source {
	return []source{
		{
			name: "containerd", file: "/etc/containerd/config.toml",
			rootKeys: []string{"root"}, root: "/var/lib/containerd",
			merge: mergeContainerd, translate: fromContainerd,
		},
		{
			name: "crio", file: "/etc/crio/crio.conf", dropIns: "/etc/crio/crio.conf.d",
			rootKeys: []string{"crio.imagestore", "crio.root"}, root: "/var/lib/containers/storage",
			storage: []string{"/etc/containers/storage.conf", "/usr/share/containers/storage.conf"},
			merge:   mergeCRIO, translate: fromCRIO,
		},
	}
}

// load reads a runtime's files and translates them.
func load(s source, file string) (Report, error) {
	doc, err := s.document(file)
	if err != nil {
		return Report{}, err
	}
	r, err := s.translate(doc)
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", cmp.Or(file, s.file), err)
	}
	return r, nil
}

// document reads a runtime's files as one document, in the runtime's order: the
// later ones win.
func (s source) document(file string) (map[string]any, error) {
	dropIns := s.dropIns
	if file == "" {
		file = s.file
	} else {
		dropIns = ""
	}
	raw, err := readTOML(file)
	if errors.Is(err, fs.ErrNotExist) && dropIns != "" {
		raw, err = map[string]any{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w; --config names another file, and `containerd config dump` or `crio config` prints what is in force", err)
	}
	doc, err := s.merge(file, nil, raw)
	if err != nil {
		return nil, err
	}
	more, err := filesBelow(dropIns)
	if err != nil {
		return nil, err
	}
	pending, err := imports(file, raw)
	if err != nil {
		return nil, err
	}
	pending = append(more, pending...)
	for seen := map[string]bool{file: true}; len(pending) > 0; {
		f := pending[0]
		if pending = pending[1:]; seen[f] {
			continue
		}
		seen[f] = true
		below, err := readTOML(f)
		if err != nil {
			return nil, err
		}
		next, err := imports(f, below)
		if err != nil {
			return nil, err
		}
		pending = append(pending, next...)
		if doc, err = s.merge(f, doc, below); err != nil {
			return nil, err
		}
	}
	return doc, nil
}

// filesBelow lists all files below a directory in their order, whatever their
// names are: CRI-O reads them so.
func filesBelow(dir string) (files []string, err error) {
	if dir == "" {
		return nil, nil
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return files, err
}

// imports lists the files that one of containerd's names.
func imports(file string, doc map[string]any) (files []string, err error) {
	patterns, _ := doc["imports"].([]any)
	for _, i := range patterns {
		pattern := fmt.Sprint(i)
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(file), pattern)
		}
		if !strings.Contains(pattern, "*") {
			files = append(files, filepath.Clean(pattern))
			continue
		}
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("imports of %s: %q: %w", file, i, err)
		}
		files = append(files, found...)
	}
	return files, nil
}

func readTOML(file string) (map[string]any, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration to migrate: %w", err)
	}
	doc := map[string]any{}
	if err := toml.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", file, err, errdefs.ErrInvalidArgument)
	}
	return doc, nil
}

// imageRoot is where the runtime's configuration says its images are.
func (s source) imageRoot(file string) (string, error) {
	doc, err := s.document(file)
	if errors.Is(err, fs.ErrNotExist) && file == "" {
		doc, err = nil, nil
	}
	if err != nil {
		return "", err
	}
	if root := first(doc, s.rootKeys); root != "" {
		return root, nil
	}
	for _, f := range s.storage {
		doc, err := readTOML(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return cmp.Or(first(doc, []string{"storage.imagestore", "storage.graphroot"}), s.root), nil
	}
	return s.root, nil
}

// first is the first text that is set, by its dotted key.
func first(doc map[string]any, keys []string) string {
	for _, key := range keys {
		if text, _ := at(doc, key).(string); text != "" {
			return text
		}
	}
	return ""
}

// at is what a document has at a dotted key.
func at(doc map[string]any, key string) any {
	var v any = doc
	for part := range strings.SplitSeq(key, ".") {
		m, _ := v.(map[string]any)
		v = m[part]
	}
	return v
}
