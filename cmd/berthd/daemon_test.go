package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/unixsock"
)

// patience bounds every wait; it only has to be longer than a slow machine.
const patience = 2 * time.Minute

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// instance is a real berthd in directories of its own.
type instance struct {
	cmd    *exec.Cmd
	log    *safeBuffer
	notify *net.UnixConn
	dir    string
	ended  chan error
}

// programs builds all four programs.
func programs(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("berthd needs root")
	}
	bin := t.TempDir()
	out, err := exec.Command("go", "build", "-o", bin+"/", ".", "../berth-shim", "../berthctl", "../berth-verify").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func launch(t *testing.T, bin string) *instance {
	t.Helper()
	dir, err := os.MkdirTemp("", "berthd")
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{log: &safeBuffer{}, dir: dir, ended: make(chan error, 1)}
	in.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in.file("c.toml"), []byte("[log]\nlevel = \"info\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in.cmd = exec.Command(filepath.Join(bin, "berthd"), in.flags()...)
	in.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+in.file("n"), "WATCHDOG_USEC=3000000")
	in.cmd.Stderr = in.log
	if err := in.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { in.ended <- in.cmd.Wait() }()
	t.Cleanup(func() {
		_ = in.cmd.Process.Kill()
		_ = in.notify.Close()
		_ = os.RemoveAll(dir)
	})
	in.expect(t, "READY=1")
	return in
}

func (in *instance) file(name string) string { return filepath.Join(in.dir, name) }

func (in *instance) flags() []string {
	return []string{"--config", in.file("c.toml"), "--root", in.file("root"), "--run", in.file("run"),
		"--cni-conf-dir", in.file("net.d"), "--cni-bin-dir", in.file("bin1") + "," + in.file("bin2"), "--nri-socket", in.file("nri")}
}

// expect reads notifications until one contains want.
func (in *instance) expect(t *testing.T, want string) {
	t.Helper()
	_ = in.notify.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4096)
	for {
		n, err := in.notify.Read(b)
		if err != nil {
			t.Fatalf("no %s: %v\n%s", want, err, in.log)
		}
		if strings.Contains(string(b[:n]), want) {
			return
		}
	}
}

func (in *instance) version(t *testing.T) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///b", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return unixsock.Dial(ctx, in.file("run/berth.sock"))
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	r, err := runtimeapi.NewRuntimeServiceClient(conn).Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil || r.GetRuntimeName() != "berth" {
		t.Fatalf("version: %v, %v", r, err)
	}
}

// logs waits until the log, which comes through a pipe, has all of want.
func (in *instance) logs(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		for end := time.Now().Add(patience); !strings.Contains(in.log.String(), w); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("log lacks %q:\n%s", w, in.log)
			}
		}
	}
}

func TestIntegrationDaemon(t *testing.T) {
	bin := programs(t)
	in := launch(t, bin)
	in.version(t)
	in.expect(t, "WATCHDOG=1")
	for name, mode := range map[string]os.FileMode{"run/berth.sock": 0o660, "run/admin.sock": 0o600} {
		if info, err := os.Stat(in.file(name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}

	in.pulls(t, bin)

	out, err := exec.Command(filepath.Join(bin, "berthd"), in.flags()...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "in use by another daemon (pid ") {
		t.Errorf("second daemon: %v\n%s", err, out)
	}

	if err := os.WriteFile(in.file("c.toml"), []byte("[log]\nlevle = \"debug\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = in.cmd.Process.Signal(syscall.SIGHUP)
	in.expect(t, "RELOADING=1")
	in.expect(t, "READY=1")
	in.logs(t, "the old configuration stays in force", "did you mean")
	if err := os.WriteFile(in.file("c.toml"), []byte("[log]\nlevel = \"debug\"\n[image]\nmax_downloads = 5\nkeep_blobs = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = in.cmd.Process.Signal(syscall.SIGHUP)
	in.expect(t, "RELOADING=1")
	in.expect(t, "READY=1")
	in.version(t)
	in.logs(t, "msg=\"configuration changed\" key=image.max_downloads", "key=image.keep_blobs", "takes effect at a restart", "method=/runtime.v1.RuntimeService/Version")

	in.signed(t, bin)

	_ = in.cmd.Process.Signal(syscall.SIGTERM)
	in.expect(t, "STOPPING=1")
	select {
	case err := <-in.ended:
		if err != nil {
			t.Errorf("end: %v\n%s", err, in.log)
		}
	case <-time.After(patience):
		t.Fatal("SIGTERM does not end the daemon")
	}
	if _, err := os.Stat(in.file("run/berth.sock")); !os.IsNotExist(err) {
		t.Errorf("socket is left: %v", err)
	}
	in.refusesBase(t, bin)
}

// refusesBase starts daemons with base specifications that are none.
func (in *instance) refusesBase(t *testing.T, bin string) {
	t.Helper()
	base := in.file("base.json")
	for name, c := range map[string]struct{ text, want string }{
		"not there":        {"", "no such file or directory"},
		"cut":              {`{"ociVersion": "1.2.0", "process": {`, "unexpected EOF"},
		"another key":      {`{"ociVersion": "1.2.0", "proces": {}}`, "unknown field"},
		"another type":     {`{"mounts": {"destination": "/x"}}`, "mounts"},
		"two in one":       {`{"ociVersion": "1.2.0"} {"ociVersion": "1.2.0"}`, "goes on after its end, at byte 23"},
		"rest of an older": {`{"ociVersion": "1.2.0"}}`, "goes on after its end"},
	} {
		_ = os.Remove(base)
		toml := fmt.Sprintf("[runtime]\ndefault = \"odd\"\n[runtime.handlers.odd]\nbase_spec = %q\n", base)
		err := os.WriteFile(in.file("c.toml"), []byte(toml), 0o600)
		if c.text != "" {
			err = errors.Join(err, os.WriteFile(base, []byte(c.text), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		out, err := exec.CommandContext(ctx, filepath.Join(bin, "berthd"), in.flags()...).CombinedOutput()
		cancel()
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.ExitCode() <= 0 {
			t.Errorf("%s: berthd did not end with an error: %v\n%s", name, err, out)
		}
		for _, want := range []string{"runtime.handlers.odd.base_spec", base, c.want} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %q is missing in\n%s", name, want, out)
			}
		}
	}
}

func TestCommandLine(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(bad, []byte("[pathes]\nroot = \"/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, want string
		args       []string
		code       int
	}{
		{"version", "berthd ", []string{"--version"}, 0},
		{"unknown flag", "not defined", []string{"--nope"}, exitUsage},
		{"argument", "unexpected argument", []string{"x"}, exitUsage},
		{"unknown key", bad + `:1: unknown key "pathes"; did you mean "paths"?`, []string{"--config", bad}, exitUsage},
		{"missing file", "no such file", []string{"--config", "/nonexistent"}, exitUsage},
		{"bad level", "log.level", []string{"--log-level", "loud"}, exitUsage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := run(tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("code %d, output %s", code, out.String())
			}
		})
	}
}
