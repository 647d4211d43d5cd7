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
	"syscall"
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

// settle bounds how long a crash that is due may take.
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
		for _, name := range []string{"berthd", "berth-shim", "berthctl"} {
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
	rush  bool     // do not wait for recovery after a restart; every other time
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
	return openFrom(t, toml, "")
}

// openFrom is openWith with a daemon from another directory, and its shim if
// that has one.
func openFrom(t *testing.T, toml, dir string) *node {
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
	if dir != "" {
		if err := os.Symlink(filepath.Join(built.dir, "berth-shim"), filepath.Join(dir, "berth-shim")); !errors.Is(err, os.ErrExist) {
			must(t, err)
		}
		programs.Bin = dir
	}
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
// "fail", "hang" (until the flag is gone), "before" or "after" (it kills itself then, and removes the flag).
const wrapper = `#!/bin/sh
if [ -s %[1]s ]; then
  read verb how < %[1]s
  hit=
  for a in "$@" "$CNI_COMMAND"; do [ "$a" = "$verb" ] && hit=1; done
  if [ "$hit" ]; then
    case $how in
    hang) while [ -e %[1]s ]; do sleep 0.1; done;;
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
	sleep, err := exec.LookPath("sleep")
	if err == nil {
		err = exec.Command("cp", sleep, filepath.Join(n.tools, "berthd-other")).Run()
	}
	if err != nil {
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
		if err == nil && !n.settles() {
			err = errors.New("it ended while it recovered")
		}
		if err == nil {
			return
		}
		if env == nil || !n.h.Ended(settle) {
			n.t.Fatalf("the daemon does not start again: %v", err)
		}
		n.lives++
	}
}

// restartWhole is restart, and waits until recovery is through.
func (n *node) restartWhole() {
	n.t.Helper()
	n.rush = true // was the last time
	n.restart()
}

// settles waits until recovery is through, or does not: then the calls that
// follow race with it. It reports whether the daemon still lives.
func (n *node) settles() bool {
	n.t.Helper()
	if n.rush = !n.rush; n.rush {
		return true
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var settled bool
		err := n.admin(func(c admin.AdminClient) error {
			r, err := c.Recovery(n.t.Context(), &admin.RecoveryRequest{})
			settled = r.GetSettled()
			return err
		})
		if settled || status.Code(err) == codes.Unimplemented { // an earlier Berth does not tell
			return true
		}
		if err != nil && n.h.Ended(settle) {
			return false
		}
	}
	n.t.Fatalf("recovery is not through after %v", patience)
	return false
}

// admin calls the admin API.
func (n *node) admin(f func(admin.AdminClient) error) error {
	return n.dialAdmin(func(c *grpc.ClientConn) error { return f(admin.NewAdminClient(c)) })
}

func (n *node) dialAdmin(f func(*grpc.ClientConn) error) error {
	conn, err := grpc.NewClient("unix://"+n.h.Dir("run", "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(conn)
}

// berthctl runs the operator's tool on the node, and returns its output.
func (n *node) berthctl(args ...string) (string, error) {
	args = append(args, "--address", n.h.Dir("run", "berth.sock"), "--admin-address", n.h.Dir("run", "admin.sock"))
	out, err := n.h.Space().Command(n.t.Context(), filepath.Join(built.dir, "berthctl"), args...).CombinedOutput()
	return string(out), err
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
	n.must("list what is unfinished", func(ctx context.Context) error {
		out = nil
		return n.admin(func(c admin.AdminClient) error {
			r, err := c.Operations(ctx, &admin.OperationsRequest{})
			for _, o := range r.GetOperations() {
				out = append(out, "journal entry "+o.GetKind()+" "+o.GetSubject())
			}
			if err != nil {
				return err
			}
			all, err := c.Recovery(ctx, &admin.RecoveryRequest{})
			for _, o := range all.GetObjects() {
				out = append(out, fmt.Sprint("in recovery: ", o))
			}
			return err
		})
	})
	return out
}

// clean fails the test when anything is left of pods that are removed.
func (n *node) clean(cgroups ...string) {
	n.t.Helper()
	var left []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		left = append(n.operations(), n.h.Leftovers(n.t.Context())...)
		for _, g := range cgroups {
			found, _ := filepath.Glob("/sys/fs/cgroup/*/" + g)
			more, _ := filepath.Glob("/sys/fs/cgroup/" + g)
			left = append(left, append(found, more...)...)
		}
		if len(left) == 0 {
			n.noLeaks()
			return
		}
	}
	n.t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
}

// noLeaks asks the operator's tool, which knows what exists. Nodes of other
// tests come and go on the machine: a process that passes for another daemon
// keeps the tool from taking theirs for ours.
func (n *node) noLeaks() {
	n.t.Helper()
	decoy := exec.Command(filepath.Join(n.tools, "berthd-other"), "600")
	decoy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(n.t, decoy.Start())
	defer func() { _ = decoy.Process.Kill(); _ = decoy.Wait() }()
	n.must("look for leaks", func(context.Context) error {
		out, err := n.berthctl("doctor", "--leaks")
		if exit := (&exec.ExitError{}); errors.As(err, &exit) && exit.ExitCode() == 3 { // no daemon answers
			return status.Error(codes.Unavailable, out)
		}
		if err != nil || out != "" {
			n.t.Errorf("berthctl doctor --leaks: %v\n%s", err, out)
		}
		return nil
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
