// Package berth_test proves the structure of the module: who may import whom,
// and the budgets that no linter knows.
package berth_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/berth-dev/berth"

const (
	maxFileLines    = 400
	maxPackageFiles = 20
	maxStructFields = 12
	maxDirectDeps   = 30
)

// layer is a row of the import table. An entry that ends in "/..." stands for
// the folder and everything below it; the longest row that fits a package wins.
type layer struct {
	name string
	may  []string
}

func importTable() []layer {
	return []layer{
		{"cmd/berthd", []string{"..."}},
		{"cmd/berthctl", []string{"..."}},
		{"cmd/berth-shim", []string{"shim/supervise/..."}},
		{"test/...", []string{"..."}},
		{"config", nil},
		{"cri/...", []string{"cri/..."}},
		{"runtimeservice/...", []string{"runtimeservice/...", "sandbox", "sandbox/spec", "store", "store/op", "shim", "shim/cgroup"}},
		{"imageservice/...", []string{"imageservice/...", "store", "store/op"}},
		{"sandbox/spec", nil},
		{"sandbox", []string{"sandbox/spec", "store", "store/op", "cni", "cni/netns", "shim", "shim/cgroup"}},
		{"store/op", []string{"store"}},
		{"store", nil},
		{"cni", []string{"cni/netns", "cni/builtin"}},
		{"cni/netns", nil},
		{"cni/builtin", []string{"cni/netns"}},
		{"shim", []string{"shim/wire"}},
		{"shim/wire", nil},
		{"shim/crilog", nil},
		{"shim/runc", nil},
		{"shim/cgroup", nil},
		{"shim/supervise", []string{"shim/wire", "shim/crilog", "shim/runc", "shim/cgroup"}},
	}
}

type goPackage struct {
	ImportPath string
	Standard   bool
	Doc        string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Standard,Doc,Dir,GoFiles,Imports"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.Bytes())
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func fits(pattern, name string) bool {
	dir, all := strings.CutSuffix(pattern, "...")
	if !all {
		return pattern == name
	}
	return dir == "" || name == strings.TrimSuffix(dir, "/") || strings.HasPrefix(name, dir)
}

func rowOf(name string) (layer, bool) {
	var best layer
	found := false
	for _, l := range importTable() {
		if fits(l.name, name) && len(l.name) > len(best.name) {
			best, found = l, true
		}
	}
	return best, found
}

func forbidden(from, to string) string {
	row, ok := rowOf(from)
	switch {
	case !ok:
		return from + " is in no row of the import table"
	case strings.HasPrefix(to, "cmd/") || strings.HasPrefix(to, "test/") && !strings.HasPrefix(from, "test/"):
		return from + " must not import " + to
	case !slices.ContainsFunc(row.may, func(p string) bool { return fits(p, to) }):
		return from + " must not import " + to
	}
	return ""
}

func TestStructureImportRule(t *testing.T) {
	for _, p := range goList(t, "./...") {
		from, ours := strings.CutPrefix(p.ImportPath, module+"/")
		if !ours {
			continue
		}
		if _, ok := rowOf(from); !ok {
			t.Errorf("%s is in no row of the import table", from)
		}
		for _, imp := range p.Imports {
			if to, ok := strings.CutPrefix(imp, module+"/"); ok {
				if msg := forbidden(from, to); msg != "" {
					t.Error(msg)
				}
			}
			if strings.HasPrefix(imp, "go.etcd.io/bbolt") && from != "store" {
				t.Errorf("%s must not import bbolt: only store does", from)
			}
		}
	}
}

// The table itself must refuse what it is there to refuse.
func TestStructureImportRuleRefuses(t *testing.T) {
	for _, edge := range [][2]string{
		{"cri", "store"}, {"imageservice/layer", "runtimeservice"}, {"imageservice", "sandbox"},
		{"store", "store/op"}, {"sandbox", "runtimeservice"}, {"shim", "shim/supervise"},
		{"cmd/berth-shim", "store"}, {"runtimeservice", "cri"}, {"runtimeservice", "config"},
		{"sandbox/spec", "store"}, {"cmd/berthd", "test/demo"}, {"brand/new", "store"},
	} {
		if forbidden(edge[0], edge[1]) == "" {
			t.Errorf("the table lets %s import %s", edge[0], edge[1])
		}
	}
	for _, edge := range [][2]string{
		{"cmd/berthd", "config"}, {"runtimeservice", "store/op"}, {"imageservice", "imageservice/layer"},
		{"cri", "cri/admin"}, {"test/demo", "test/images"}, {"cmd/berth-shim", "shim/supervise"},
	} {
		if msg := forbidden(edge[0], edge[1]); msg != "" {
			t.Error(msg)
		}
	}
}

func TestStructureShimDependencies(t *testing.T) {
	banned := []string{"net/http", "encoding/gob", "encoding/xml", "html/template", "text/template", "crypto/tls"}
	for _, p := range goList(t, "-deps", "./cmd/berth-shim") {
		ours := strings.HasPrefix(p.ImportPath, module+"/")
		sys := strings.HasPrefix(p.ImportPath, "golang.org/x/sys/")
		if !p.Standard && !ours && !sys {
			t.Errorf("berth-shim depends on %s: only the standard library and x/sys are allowed", p.ImportPath)
		}
		if slices.Contains(banned, p.ImportPath) {
			t.Errorf("berth-shim depends on %s, which is too big for a process per container", p.ImportPath)
		}
	}
}

func TestStructurePackages(t *testing.T) {
	for _, p := range goList(t, "./...") {
		files := slices.DeleteFunc(slices.Clone(p.GoFiles), func(f string) bool { return strings.HasSuffix(f, ".pb.go") })
		if len(files) > maxPackageFiles {
			t.Errorf("%s has %d files, the budget is %d", p.ImportPath, len(files), maxPackageFiles)
		}
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// goFiles visits the module's own non-generated Go files.
func goFiles(t *testing.T, visit func(path string, data []byte)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || path == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			visit(path, data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStructureFiles(t *testing.T) {
	goFiles(t, func(path string, data []byte) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		if n := bytes.Count(data, []byte("\n")); n > maxFileLines {
			t.Errorf("%s has %d lines, the budget is %d", path, n, maxFileLines)
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, data, 0)
		if err != nil {
			t.Error(err)
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			ts, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if st, ok := ts.Type.(*ast.StructType); ok && st.Fields.NumFields() > maxStructFields {
				t.Errorf("%s: struct %s has %d fields, the budget is %d", path, ts.Name.Name, st.Fields.NumFields(), maxStructFields)
			}
			return true
		})
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: init functions are not allowed", path)
			}
		}
	})
}

func TestStructureUnfinished(t *testing.T) {
	marks := [][]byte{[]byte("TO" + "DO"), []byte("FIX" + "ME")}
	goFiles(t, func(path string, data []byte) {
		for _, mark := range marks {
			if bytes.Contains(data, mark) {
				t.Errorf("%s has a %s", path, mark)
			}
		}
	})
}

func TestStructureDirectDependencies(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct{ Require []struct{ Indirect bool } }
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	direct := 0
	for _, r := range mod.Require {
		if !r.Indirect {
			direct++
		}
	}
	if direct > maxDirectDeps {
		t.Errorf("%d direct dependencies, the budget is %d", direct, maxDirectDeps)
	}
}
