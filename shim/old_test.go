package shim

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// oldShim builds the shim of an earlier protocol version from its frozen source.
func oldShim(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open("testdata/shim-v" + version + ".tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for in := tar.NewReader(unzip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if path := filepath.Join(dir, h.Name); h.Typeflag == tar.TypeReg {
			b, err := io.ReadAll(in)
			if err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join("..", n))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, n), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// Beside the shim under test, where TestMain looks for leftovers.
	out := filepath.Join(filepath.Dir(binary), "berth-shim-v"+version)
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "./cmd/berth-shim")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=mod")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %s", text)
	}
	if said, err := exec.Command(out, "version").Output(); err != nil || strings.TrimSpace(string(said)) != version {
		t.Fatalf("the frozen shim says version %q, %v", said, err)
	}
	return out
}

// TestIntegrationOldShim: a shim of protocol 1 serves under the daemon of
// today, for all it could ever do; what it lacks is refused or not known.
func TestIntegrationOldShim(t *testing.T) {
	r := newRig(t)
	current := r.cfg.Binary
	r.cfg.Binary = oldShim(t, "1")
	r.m = r.manager(t)
	r.create(t, "old", "while read x; do echo got $x; done; exit 4", func(c *CreateRequest, _ *specs.Spec) { c.Stdin, c.StdinOnce = true, true })
	r.start(t, "old")
	oldMayLack(t, r)

	// The upgrade: a new daemon with a new shim program beside it.
	_ = r.m.Close()
	r.cfg.Binary = current
	r.m = r.manager(t)
	st, err := r.m.Reconnect(r.ctx, "old")
	if err != nil || st.Phase != PhaseRunning || st.Version != 1 || st.Busy.Command != "" {
		t.Fatalf("%+v %v", st, err)
	}
	if out, code := r.execRun(t, "old", "echo here; exit 3"); out != "here\n" || code != 3 {
		t.Errorf("exec: %q %d", out, code)
	}
	a, err := r.m.Attach(r.ctx, "old", true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := os.Rename(r.logPath("old"), r.logPath("old")+".1"); err != nil {
		t.Fatal(err)
	}
	if err := r.m.ReopenLog(r.ctx, "old"); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(a.Stdin, "one\n")
	got := make([]byte, len("got one\n"))
	if _, err := io.ReadFull(a.Stdout, got); err != nil || string(got) != "got one\n" {
		t.Errorf("attach: %q %v", got, err)
	}
	if l := r.lines(t, "old"); len(l) != 1 || l[0] != "stdout F got one" {
		t.Errorf("log after the rotation: %q", l)
	}
	limit := int64(64 << 20)
	if err := r.m.Update(r.ctx, "old", r.rt, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Error(err)
	}
	if err := r.m.Signal(r.ctx, "old", 0); err != nil {
		t.Error(err)
	}
	oldIsNotFrozen(t, r)
	_ = a.Stdin.Close()
	if e := r.exit(t); e.ID != "old" || e.Code != 4 || e.Lost {
		t.Errorf("%+v", e)
	}
	if err := r.m.Delete(r.ctx, "old", r.rt); err != nil || r.m.remains("old", r.rt) {
		t.Error("after the deletion:", err, r.m.remains("old", r.rt))
	}
}

// oldIsNotFrozen: shims from before there were checkpoints refuse one, and go on.
func oldIsNotFrozen(t *testing.T, r *rig) {
	t.Helper()
	if _, err := r.m.Freeze(r.ctx, "old"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "earlier version") {
		t.Errorf("freeze under an old shim: %v", err)
	}
	if err := r.m.Thawed(r.ctx, "old"); err != nil {
		t.Error(err)
	}
}

// oldMayLack checks that what protocol 1 lacks is said, and by nothing worse.
func oldMayLack(t *testing.T, r *rig) {
	t.Helper()
	r.bundle(t, "capped", "true")
	_, err := r.m.Create(r.ctx, CreateRequest{ID: "capped", Runtime: r.rt, LogPath: r.logPath("capped"), Limits: LogLimits{Rate: 1000}})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "protocol 2") {
		t.Errorf("log limits under an old shim: %v", err)
	}
	if r.m.remains("capped", r.rt) {
		until(t, "the refused shim leaves", func() bool { return !r.m.remains("capped", r.rt) })
	}
	if got := r.m.LogTrouble(r.ctx); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestIntegrationOldDaemon: a daemon of protocol 1 launches and runs the shim
// of today, whose program an upgrade installs while that daemon still runs, and
// hears nothing that it does not know.
func TestIntegrationOldDaemon(t *testing.T) {
	r := newRig(t)
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=4096"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
	if err := os.WriteFile(full+"/fill", make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	r.bundle(t, "od", "echo x; exit 6")
	exitPath := r.m.exitPath("od")
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd, theirs := pair[0], os.NewFile(uintptr(pair[1]), "theirs")
	t.Cleanup(func() { _ = syscall.Close(fd) })
	cmd := exec.Command(binary, "launch", "od")
	cmd.Dir, cmd.Env, cmd.ExtraFiles = filepath.Join(r.cfg.RunDir, "od"), shimEnv(), []*os.File{theirs}
	// Not into a pipe: the shim goes on with it, and nobody would see its end.
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	t.Cleanup(func() { _ = r.m.Delete(r.ctx, "od", r.rt) })
	next := func() wire.Frame {
		buf := make([]byte, wire.MaxFrame)
		n, err := syscall.Read(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		f, err := wire.Parse(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	id := uint32(0)
	var events []wire.Frame // that came before an answer: the container ends when it likes
	ask := func(kind wire.Kind, body []byte) wire.Frame {
		id++
		if _, err := syscall.Write(fd, wire.Append(nil, wire.Frame{Kind: kind, ID: id, Body: body})); err != nil {
			t.Fatal(err)
		}
		f := next()
		for f.Kind == wire.KindExited {
			events = append(events, f)
			f = next()
		}
		if f.ID != id {
			t.Fatalf("kind %d answers with kind %d, id %d", kind, f.Kind, f.ID)
		}
		return f
	}
	ask(wire.KindHello, wire.Encode(&wire.Hello{Version: 1, Oldest: 1, Events: true}))
	var made wire.Reply
	req := &wire.Create{Runtime: wire.Runtime(r.rt), ID: "od", LogPath: full + "/log", ExitPath: exitPath}
	if err := wire.Decode(ask(wire.KindCreate, wire.Encode(req)).Body, &made); err != nil || made.Code != wire.CodeOK || made.PID == 0 {
		t.Fatalf("%+v %v", made, err)
	}
	started := ask(wire.KindStart, nil)
	if started.Kind != wire.KindReply {
		t.Errorf("%+v", started)
	}
	var e wire.Exit
	if len(events) == 0 {
		events = append(events, next())
	}
	if f := events[0]; f.Kind != wire.KindExited || wire.Decode(f.Body, &e) != nil || e.Code != 6 {
		t.Errorf("kind %d %+v", f.Kind, e)
	}
}
