package builtin

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// inNode marks the re-executed test: it stands in a network and a mount
// namespace of its own, which plays the node.
const inNode = "BERTH_TEST_IN_NODE"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(inNode) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), inNode+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func pluginDir(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and links")
	}
	for _, d := range []string{os.Getenv("BERTH_TEST_CNI_BIN"), "../../bin/cni", "/opt/cni/bin", "/usr/lib/cni"} {
		if _, err := os.Stat(filepath.Join(d, "portmap")); d != "" && err == nil {
			abs, err := filepath.Abs(d)
			if err != nil {
				t.Fatal(err)
			}
			return abs
		}
	}
	t.Skip("no CNI plugins: set BERTH_TEST_CNI_BIN to their directory")
	return ""
}

// program runs plugin programs for a set under test and counts them.
type program struct {
	invoke.DefaultExec
	used []string
}

func (p *program) run(ctx context.Context, plugin string, dirs []string, stdin []byte, env []string) ([]byte, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return nil, err
	}
	p.used = append(p.used, plugin)
	return p.ExecPlugin(ctx, path, stdin, env)
}

// seam is libcni's way to plugins: the set for what it serves, programs else.
type seam struct {
	version.PluginDecoder
	*program
	set *Set
}

func newSeam(t testing.TB, types ...string) *seam {
	t.Helper()
	p := &program{DefaultExec: invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}}
	set, err := New(Config{Types: types, Exec: p.run})
	if err != nil {
		t.Fatal(err)
	}
	return &seam{program: p, set: set}
}

func (s *seam) FindInPath(plugin string, dirs []string) (string, error) {
	if s.set.Serves(plugin) || s.set.CleansAfter(plugin) {
		return "set:" + plugin, nil
	}
	return s.program.FindInPath(plugin, dirs)
}

func (s *seam) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	if name, ok := strings.CutPrefix(path, "set:"); ok {
		return s.set.Call(ctx, name, stdin, env)
	}
	return s.program.ExecPlugin(ctx, path, stdin, env)
}

func (s *seam) Decode(b []byte) (version.PluginInfo, error) { return s.PluginDecoder.Decode(b) }
