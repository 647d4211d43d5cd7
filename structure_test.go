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
	"maps"
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
	maxDirectDeps   = 41
)

// layer is a row of the import table. An entry that ends in "/..." stands for
// the folder and everything below it; the longest row that fits a package wins.
// Tests may import their own package, and what it may import.
type layer struct {
	name string
	may  []string
	test []string // what tests may import besides
}

func importTable() []layer {
	return []layer{
		{name: "cmd/berthd", may: []string{"..."}},
		{name: "cmd/berthctl", may: []string{"cmd/berthctl/...", "config"}, test: []string{"test/golden", "test/terminal", "cri/admin"}},
		{name: "cmd/berthctl/bench", may: []string{"cmd/berthctl/cli", "cri/admin", "cri/unixsock"}, test: []string{"test/golden"}},
		{name: "cmd/berthctl/checkpoint", may: []string{"cmd/berthctl/cli", "cmd/berthctl/image", "cmd/berthctl/pod", "config", "cri/admin", "imageservice/content", "imageservice/layer", "imageservice/registry"}, test: []string{"imageservice/registrytest"}},
		{name: "cmd/berthctl/cli", may: []string{"cri/admin", "cri/unixsock"}},
		{name: "cmd/berthctl/doctor", may: []string{"cmd/berthctl/cli", "osthread", "config", "cri/admin", "store"}},
		{name: "cmd/berthctl/explain", may: []string{"cmd/berthctl/cli", "cri/admin"}, test: []string{"test/golden"}},
		{name: "cmd/berthctl/image", may: []string{"cmd/berthctl/cli", "cri/admin"}, test: []string{"test/golden"}},
		{name: "cmd/berthctl/migrate", may: []string{"cmd/berthctl/cli", "cmd/berthctl/migrate/adopt", "config", "cri/admin"}, test: []string{"test/golden"}},
		{name: "cmd/berthctl/migrate/adopt", may: []string{"imageservice/manifest", "store"}},
		{name: "cmd/berthctl/node", may: []string{"cmd/berthctl/cli", "config", "cni", "cri/admin"}, test: []string{"test/golden"}},
		{name: "cmd/berthctl/pod", may: []string{"cmd/berthctl/cli", "cri/admin"}, test: []string{"test/golden"}},
		{name: "cmd/berthctl/session", may: []string{"cmd/berthctl/cli", "cmd/berthctl/image", "cmd/berthctl/pod", "cri/admin"}, test: []string{"test/golden"}},
		{name: "cmd/berth-shim", may: []string{"shim/supervise/..."}},
		{name: "cmd/berth-verify", may: []string{"imageservice/signature/check"}},
		{name: "test/...", may: []string{"..."}},
		{name: "config"},
		{name: "observe"},
		{name: "observe/metrics", may: []string{"observe"}},
		{name: "observe/timeline", may: []string{"observe"}},
		{name: "observe/tracing", may: []string{"observe"}},
		{name: "observe/stuck"},
		{name: "cri", may: []string{"cri/unixsock", "cri/admin", "observe"}},
		{name: "cri/admin", may: []string{"cri/unixsock"}},
		{name: "cri/streaming"},
		{name: "cri/unixsock"},
		{name: "runtimeservice", may: []string{"runtimeservice/...", "chunk", "observe", "sandbox", "sandbox/spec", "store", "store/op", "shim", "shim/cgroup"}, test: []string{"shim/shimtest"}},
		{name: "runtimeservice/cdi"},
		{name: "runtimeservice/nri", may: []string{"store"}},
		{name: "runtimeservice/checkpoint", may: []string{"store", "store/op", "runtimeservice/checkpoint/image"}},
		{name: "runtimeservice/checkpoint/image"},
		{name: "runtimeservice/confine", may: []string{"sandbox/spec"}},
		{name: "runtimeservice/stats", may: []string{"chunk", "sandbox", "store", "shim/cgroup"}},
		{name: "runtimeservice/reconcile", may: []string{"store"}},
		{name: "runtimeservice/recovery", may: nil},
		{name: "osthread"},
		{name: "chunk"},
		{name: "imageservice/...", may: []string{"imageservice/...", "chunk", "observe", "osthread", "store", "store/op"}},
		{name: "sandbox/spec"},
		{name: "sandbox", may: []string{"observe", "sandbox/spec", "store", "store/op", "cni", "cni/netns", "shim", "shim/cgroup"}},
		{name: "store/op", may: []string{"observe", "store"}},
		{name: "store"},
		{name: "cni", may: []string{"observe", "cni/netns", "cni/builtin"}},
		{name: "cni/netns", may: []string{"osthread"}},
		{name: "cni/builtin", may: []string{"cni/netns", "cni/builtin/fw", "cni/builtin/ipam"}},
		{name: "cni/builtin/fw"},
		{name: "cni/builtin/ipam"},
		{name: "shim", may: []string{"observe", "shim/wire"}, test: []string{"shim/cgroup", "shim/shimtest"}},
		{name: "shim/shimtest", may: []string{"shim"}},
		{name: "shim/wire"},
		{name: "shim/crilog"},
		{name: "shim/runc"},
		{name: "shim/cgroup"},
		{name: "shim/supervise", may: []string{"shim/wire", "shim/crilog", "shim/runc", "shim/cgroup"}},
	}
}

type goPackage struct {
	ImportPath   string
	Standard     bool
	Doc          string
	Dir          string
	GoFiles      []string
	Imports      []string
	Module       struct{ Path string }
	TestImports  []string
	XTestImports []string
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Standard,Doc,Dir,GoFiles,Imports,Module,TestImports,XTestImports"}, args...)...)
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

// forbidden says why from must not import to, or nothing. Packages that end in
// "test" and the folder test/ serve tests only.
func forbidden(from, to string) string {
	row, ok := rowOf(from)
	switch {
	case !ok:
		return from + " is in no row of the import table"
	case strings.HasPrefix(from, "test/") && strings.HasPrefix(to, "test/"):
		return ""
	case strings.HasPrefix(to, "cmd/") && !partOf(from, to), strings.HasPrefix(to, "test/"), strings.HasSuffix(to, "test"):
		return from + " must not import " + to
	case !slices.ContainsFunc(row.may, func(p string) bool { return fits(p, to) }):
		return from + " must not import " + to
	}
	return ""
}

// partOf says whether to is a part of the program that from belongs to: a
// package below its main package.
func partOf(from, to string) bool {
	parts := strings.SplitN(to, "/", 3)
	return len(parts) == 3 && strings.HasPrefix(from+"/", parts[0]+"/"+parts[1]+"/")
}

// forbiddenInTest is forbidden for the test files of from.
func forbiddenInTest(from, to string) string {
	row, _ := rowOf(from)
	also := func(p string) bool { return fits(p, to) }
	helper := strings.HasSuffix(to, "test") && slices.ContainsFunc(row.may, also)
	if from == to || helper || slices.ContainsFunc(row.test, also) {
		return ""
	}
	if msg := forbidden(from, to); msg != "" {
		return "a test: " + msg
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
		check := func(imports []string, forbidden func(from, to string) string) {
			for _, imp := range imports {
				if to, ok := strings.CutPrefix(imp, module+"/"); ok {
					if msg := forbidden(from, to); msg != "" {
						t.Error(msg)
					}
				}
				if strings.HasPrefix(imp, "go.etcd.io/bbolt") && from != "store" && from != "cmd/berthctl/migrate/adopt" && !strings.HasPrefix(from, "test/") {
					t.Errorf("%s must not import bbolt: only store does, and the reader of containerd's", from)
				}
			}
		}
		check(p.Imports, forbidden)
		check(p.TestImports, forbiddenInTest)
		check(p.XTestImports, forbiddenInTest)
	}
}

// The table itself must refuse what it is there to refuse.
func TestStructureImportRuleRefuses(t *testing.T) {
	for _, edge := range [][2]string{
		{"cri", "store"}, {"imageservice/layer", "runtimeservice"}, {"imageservice", "sandbox"},
		{"store", "store/op"}, {"sandbox", "runtimeservice"}, {"shim", "shim/supervise"},
		{"cmd/berth-shim", "store"}, {"runtimeservice", "cri"}, {"runtimeservice", "config"},
		{"sandbox/spec", "store"}, {"cmd/berthd", "test/demo"}, {"brand/new", "store"},
		{"cmd/berthctl", "store"}, {"cri/unixsock", "cri"}, {"imageservice", "imageservice/registrytest"},
		{"test/suite", "cmd/berthd"}, {"cmd/berthd", "cmd/berthctl/cli"}, {"cmd/berthctl/cli", "cmd/berthctl/pod"}, {"cmd/berthctl/cli", "cmd/berthctl"},
	} {
		if forbidden(edge[0], edge[1]) == "" {
			t.Errorf("the table lets %s import %s", edge[0], edge[1])
		}
	}
	for _, edge := range [][2]string{
		{"cmd/berthd", "config"}, {"runtimeservice", "store/op"}, {"imageservice", "imageservice/layer"},
		{"cri", "cri/admin"}, {"test/demo", "test/images"}, {"cmd/berth-shim", "shim/supervise"},
		{"cmd/berthctl/pod", "cmd/berthctl/cli"}, {"cmd/berthctl", "cmd/berthctl/pod"},
	} {
		if msg := forbidden(edge[0], edge[1]); msg != "" {
			t.Error(msg)
		}
	}
	for _, edge := range [][2]string{
		{"store/op", "store/op"}, {"imageservice/layer", "imageservice/registrytest"}, {"shim", "shim/cgroup"},
	} {
		if msg := forbiddenInTest(edge[0], edge[1]); msg != "" {
			t.Error(msg)
		}
	}
	for _, edge := range [][2]string{{"store", "store/op"}, {"cri", "imageservice/registrytest"}, {"imageservice", "test/images"}} {
		if forbiddenInTest(edge[0], edge[1]) == "" {
			t.Errorf("the table lets the tests of %s import %s", edge[0], edge[1])
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

// What sigstore's libraries cost is paid by berth-verify, when it runs.
func TestStructureDaemonDependencies(t *testing.T) {
	for _, p := range goList(t, "-deps", "./cmd/berthd", "./cmd/berthctl") {
		if strings.HasPrefix(p.ImportPath, "github.com/sigstore/") {
			t.Errorf("berthd or berthctl depends on %s, which costs each node 5 MiB of memory", p.ImportPath)
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

// The budget counts the modules that code of the four binaries imports by
// itself: those are what a node runs. What only tests import is not on nodes.
func TestStructureDirectDependencies(t *testing.T) {
	moduleOf := map[string]string{}
	wanted := map[string]bool{}
	for _, p := range goList(t, "-deps", "./cmd/...") {
		moduleOf[p.ImportPath] = p.Module.Path
		if p.Module.Path == module {
			for _, imp := range p.Imports {
				wanted[imp] = true
			}
		}
	}
	direct := map[string]bool{}
	for imp := range wanted {
		if m := moduleOf[imp]; m != "" && m != module {
			direct[m] = true
		}
	}
	if len(direct) == 0 || len(direct) > maxDirectDeps {
		t.Errorf("%d direct dependencies in the binaries, the budget is %d: %v", len(direct), maxDirectDeps, slices.Sorted(maps.Keys(direct)))
	}
}
