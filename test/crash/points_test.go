package crash

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestIntegrationEveryPoint kills the daemon at each fault point of each verb.
func TestIntegrationEveryPoint(whole *testing.T) {
	t := whole
	n := open(t)
	points := n.discover()
	chosen := points
	if one := os.Getenv("BERTH_CRASH_POINT"); one != "" {
		chosen = []string{one}
	} else if !full() {
		r := newRand(t)
		r.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		chosen = chosen[:4]
	}
	crashes := 0
	for _, point := range chosen {
		t.Run(strings.ReplaceAll(point, " ", "_"), func(t *testing.T) {
			if n.t.Failed() {
				n = open(whole)
			}
			n.t, n.lives, n.next = t, 0, sequence(point)
			defer func() { n.t = whole }() // the node outlives this test
			want := len(n.next)
			must(t, n.h.Kill())
			n.restart()
			n.workload(runtimeapi.NamespaceMode_POD)
			if n.lives != want {
				t.Errorf("%d crashes, want %d", n.lives, want)
			}
			crashes += n.lives
		})
	}
	t.Logf("fault points: %d of %d tried, %d crashes survived", len(chosen), len(points), crashes)
}

// TestIntegrationPairs lets a second fault point follow a first one: in the
// recovery, in the repetition of the call, or in a later one.
func TestIntegrationPairs(whole *testing.T) {
	t := whole
	n := open(t)
	points, r := n.discover(), newRand(t)
	rounds, crashes := 1, 0
	if full() {
		rounds = 100
	}
	for range rounds {
		pair := append(sequence(points[r.IntN(len(points))]), points[r.IntN(len(points))])
		t.Run(strings.ReplaceAll(strings.Join(pair, "+"), " ", "_"), func(t *testing.T) {
			if n.t.Failed() {
				n = open(whole)
			}
			n.t, n.lives, n.next = t, 0, pair
			defer func() { n.t = whole }()
			must(t, n.h.Kill())
			n.restart()
			n.workload(runtimeapi.NamespaceMode_POD)
			crashes += n.lives
		})
	}
	t.Logf("pairs of fault points: %d tried, %d crashes survived", rounds, crashes)
}

// sequence is the faults of one daemon life after another that lead to point.
// Undo points are reached by a recovery from a crash before the commit.
func sequence(point string) []string {
	f := strings.Split(point, "/")
	if strings.HasPrefix(f[2], "undo-") {
		return []string{f[0] + "/commit/before", point}
	}
	return []string{point}
}

// discover returns all fault points and checks that the workload reaches them.
func (n *node) discover() []string {
	n.t.Helper()
	trace := filepath.Join(n.tools, "trace")
	must(n.t, n.h.Kill())
	must(n.t, n.h.Start(n.t.Context(), "BERTH_FAULT_TRACE="+trace))
	n.workload(runtimeapi.NamespaceMode_POD)
	b, err := os.ReadFile(trace)
	must(n.t, err)
	all, reached := sourcePoints(n.t), map[string]bool{}
	for line := range strings.Lines(string(b)) {
		kind, point, _ := strings.Cut(strings.TrimSpace(line), " ")
		reached[point] = reached[point] || kind == "reached"
		all = append(all, point)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	for _, p := range all {
		if !reached[p] && !strings.Contains(p, "/undo-") {
			n.t.Errorf("the workload does not reach the fault point %s", p)
		}
	}
	return all
}

// sourcePoints finds the calls of op.Fault in the module's source.
func sourcePoints(t *testing.T) (out []string) {
	t.Helper()
	must(t, filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && fmt.Sprint(call.Fun) == "&{op Fault}" {
				out = append(out, joined(call.Args))
			}
			return true
		})
		return nil
	}))
	return out
}

func joined(args []ast.Expr) string {
	var parts []string
	for _, a := range args {
		if lit, ok := a.(*ast.BasicLit); ok {
			s, _ := strconv.Unquote(lit.Value)
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, "/")
}
