package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

// patience bounds every wait; it is long because machines are slow and shared.
const patience = 60 * time.Second

// settle bounds how long a crash that is due, and cleaning up in the
// background, may take.
const settle = 10 * time.Second

const testImage = images.HostPlain + "/probe:1"

func full() bool { return os.Getenv("BERTH_CRASH") == "full" }

// newRand is the source of all choices of a test; its seed is printed.
func newRand(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BERTH_CRASH_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("BERTH_CRASH_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// built is made once for all tests: the directory with the daemon that has
// fault points and its shim, and the images.
var built struct {
	sync.Once
	dir    string
	images map[string]any
	err    error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func buildOnce(ctx context.Context) error {
	built.Do(func() {
		if built.images, built.err = catalog(ctx); built.err != nil {
			return
		}
		if built.dir, built.err = os.MkdirTemp("", "berth-crash-"); built.err != nil {
			return
		}
		for _, name := range []string{"berthd", "berth-shim"} {
			cmd := exec.Command("go", "build", "-tags", "faults", "-o", filepath.Join(built.dir, name), "github.com/berth-dev/berth/cmd/"+name)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				built.err = fmt.Errorf("build %s: %w\n%s", name, err, out)
				return
			}
		}
	})
	return built.err
}

// node is a daemon that may be killed, with its clients and its saboteurs.
type node struct {
	t     *testing.T
	h     *harness.Node
	rt    runtimeapi.RuntimeServiceClient
	im    runtimeapi.ImageServiceClient
	tools string   // directory of the wrappers around runc and plugins
	next  []string // fault points of the coming lives, one each
	lives int      // crashes survived
}

// open makes a node with Berth's defaults and starts its daemon. The test is
// skipped where no node can run.
func open(t *testing.T) *node {
	t.Helper()
	return openWith(t, "")
}

// openWith is open with a configuration file.
func openWith(t *testing.T, toml string) *node {
	t.Helper()
	programs, err := harness.Find("")
	must(t, err)
	if missing := programs.Missing(false); len(missing) > 0 {
		t.Skip("cannot run a node here:\n  " + strings.Join(missing, "\n  "))
	}
	err = buildOnce(t.Context())
	if errors.Is(err, images.ErrNoBusybox) {
		t.Skip(err)
	}
	must(t, err)
	programs.Bin = built.dir
	n := &node{t: t, tools: t.TempDir()}
	must(t, n.wrap(&programs))
	n.h, err = harness.New(harness.Config{Programs: programs, TOML: toml})
	must(t, err)
	t.Cleanup(n.close)
	reg, err := images.Serve(built.images, harness.ListenIn(n.h.Space().NetNS()))
	must(t, err)
	t.Cleanup(func() { reg.Close() })
	must(t, reg.WriteHosts(n.h.HostsDir()))
	must(t, n.h.Start(t.Context()))
	conn, err := n.h.Conn()
	must(t, err)
	n.rt, n.im = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return n
}

func (n *node) close() {
	if n.t.Failed() {
		n.t.Logf("end of the daemon's log:\n%s", n.h.LogTail())
	}
	for _, pid := range n.h.Shims() {
		n.t.Errorf("shim %d is left", pid)
		_ = exec.Command("kill", "-9", strconv.Itoa(pid)).Run()
	}
	if err := n.h.Close(); err != nil {
		n.t.Error(err)
	}
}

func catalog(ctx context.Context) (map[string]any, error) {
	parts, err := images.LoadParts(ctx)
	if err != nil {
		return nil, err
	}
	all, err := images.Catalog(parts)
	if err != nil {
		return nil, err
	}
	return map[string]any{"probe:1": all["probe:1"]}, nil
}

// wrapper runs the real program, unless the flag file says "VERB HOW": how is
// "fail", "before" or "after" (it kills itself then, and removes the flag).
const wrapper = `#!/bin/sh
if [ -s %[1]s ]; then
  read verb how < %[1]s
  hit=
  for a in "$@" "$CNI_COMMAND"; do [ "$a" = "$verb" ] && hit=1; done
  if [ "$hit" ]; then
    case $how in
    fail) echo "told to fail" >&2; exit 1;;
    before) rm %[1]s; kill -9 $$;;
    after) rm %[1]s; %[2]s "$@"; kill -9 $$;;
    esac
  fi
fi
exec %[2]s "$@"
`

// wrap puts wrappers around runc and two CNI plugins.
func (n *node) wrap(p *harness.Programs) error {
	write := func(name, program string) error {
		return os.WriteFile(filepath.Join(n.tools, name), fmt.Appendf(nil, wrapper, n.flag(name), program), 0o755)
	}
	if err := write("runc", p.Runc); err != nil {
		return err
	}
	p.Runc = filepath.Join(n.tools, "runc")
	plugins, err := os.ReadDir(p.CNI)
	if err != nil {
		return err
	}
	for _, e := range plugins {
		program := filepath.Join(p.CNI, e.Name())
		if e.Name() == "bridge" || e.Name() == "portmap" {
			err = errors.Join(err, write(e.Name(), program))
		} else {
			err = errors.Join(err, os.Symlink(program, filepath.Join(n.tools, e.Name())))
		}
	}
	p.CNI = n.tools
	return err
}

func (n *node) flag(program string) string { return filepath.Join(n.tools, program+".flag") }

// sabotage makes the wrapper of a program misbehave at a verb, as wrapper
// says; with how "" no longer.
func (n *node) sabotage(program, verb, how string) {
	n.t.Helper()
	if how == "" {
		if err := os.Remove(n.flag(program)); err != nil && !os.IsNotExist(err) {
			n.t.Fatal(err)
		}
		return
	}
	must(n.t, os.WriteFile(n.flag(program), []byte(verb+" "+how+"\n"), 0o644))
}

// restart starts the daemon for its next life; one that dies while it recovers
// is started again.
func (n *node) restart() {
	n.t.Helper()
	for {
		var env []string
		if len(n.next) > 0 {
			env = append(env, "BERTH_FAULT="+n.next[0])
			n.next = n.next[1:]
		}
		err := n.h.Start(n.t.Context(), env...)
		if err == nil {
			return
		}
		if env == nil || !n.h.Ended(settle) {
			n.t.Fatalf("the daemon does not start again: %v", err)
		}
		n.lives++
	}
}

// call makes a call and, when the daemon dies of it, restarts the daemon and
// makes the same call again. Other errors come back.
func (n *node) call(f func(ctx context.Context) error) error {
	n.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(n.t.Context(), patience)
		err := f(ctx)
		cancel()
		if err == nil || status.Code(err) != codes.Unavailable || !n.h.Ended(settle) {
			return err
		}
		n.lives++
		n.restart()
	}
}

// must is call for calls that have to succeed.
func (n *node) must(what string, f func(ctx context.Context) error) {
	n.t.Helper()
	if err := n.call(f); err != nil {
		n.t.Fatalf("%s: %v", what, err)
	}
}

// eventually waits until ok, which makes its calls by call or must.
func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	n.t.Fatalf("after %v: not true that %s", patience, what)
}

// operations are the entries in the journal.
func (n *node) operations() (out []string) {
	n.t.Helper()
	conn, err := grpc.NewClient("unix://"+n.h.Dir("run", "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(n.t, err)
	defer conn.Close()
	r, err := admin.NewAdminClient(conn).Operations(n.t.Context(), &admin.OperationsRequest{})
	must(n.t, err)
	for _, o := range r.GetOperations() {
		out = append(out, "journal entry "+o.GetKind()+" "+o.GetSubject())
	}
	return out
}

// clean fails the test when anything is left of pods that are removed.
func (n *node) clean(cgroups ...string) {
	n.t.Helper()
	var left []string
	for end := time.Now().Add(settle); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		left = append(n.operations(), n.h.Leftovers(n.t.Context())...)
		for _, g := range cgroups {
			found, _ := filepath.Glob("/sys/fs/cgroup/*/" + g)
			more, _ := filepath.Glob("/sys/fs/cgroup/" + g)
			left = append(left, append(found, more...)...)
		}
		if len(left) == 0 {
			return
		}
	}
	n.t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
