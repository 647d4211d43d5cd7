// Package terminal runs programs in a terminal (tmux) and reads its screen.
package terminal

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait; it is long because machines are slow and shared.
const patience = 60 * time.Second

// Terminal is a terminal in which one program runs.
type Terminal struct {
	t      testing.TB
	socket string
}

// Config is a terminal and what runs in it.
type Config struct {
	Cols, Rows string   // size, in decimal
	Env        []string // NAME=value, added to the test's own
	Args       []string // program and its arguments
}

// Start starts a program. When it has ended, "exit code N" is written below. The test is skipped where tmux is missing; what is
// left of the program is ended with the test.
func Start(t testing.TB, c Config) *Terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("tmux is not installed (apt-get install tmux)")
	}
	dir, err := os.MkdirTemp("", "tmux-") // short: it is part of a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, []byte("set -g status off\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x := &Terminal{t: t, socket: filepath.Join(dir, "s")}
	args := []string{"-u", "-f", conf, "new-session", "-d", "-x", c.Cols, "-y", c.Rows}
	for _, e := range append([]string{"LC_ALL=C.UTF-8"}, c.Env...) {
		args = append(args, "-e", e)
	}
	// A shell stays when the program has ended, and says how.
	script := `"$0" "$@"; printf 'exit code %s\n' $?; exec cat >/dev/null`
	x.tmux(append(append(args, "--", "sh", "-c", script), c.Args...)...)
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", x.socket, "kill-server").Run() })
	return x
}

// tmux runs a command of tmux and returns its output.
func (x *Terminal) tmux(args ...string) string {
	x.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", x.socket}, args...)...).CombinedOutput()
	if err != nil {
		x.t.Fatalf("tmux %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// Keys presses keys, as tmux names them.
func (x *Terminal) Keys(keys ...string) { x.tmux(append([]string{"send-keys"}, keys...)...) }

// Resize changes the size.
func (x *Terminal) Resize(cols, rows string) { x.tmux("resize-window", "-x", cols, "-y", rows) }

// Screen is what is seen now, without blanks at the ends of lines and empty
// lines at the end.
func (x *Terminal) Screen() string {
	return strings.TrimRight(x.tmux("capture-pane", "-p"), "\n") + "\n"
}

// Coloured is Screen with the escape sequences of its colours.
func (x *Terminal) Coloured() string { return x.tmux("capture-pane", "-p", "-e") }

// Await waits until the screen has a text, and returns the screen.
func (x *Terminal) Await(text string) string {
	x.t.Helper()
	return x.Until(text, func(s string) bool { return strings.Contains(s, text) })
}

// Until waits until the screen is as it should be, and returns it. A program
// draws in pieces: ask for all that a test goes on to look at.
func (x *Terminal) Until(what string, ok func(screen string) bool) string {
	x.t.Helper()
	return x.await(what, func() (string, bool) { s := x.Screen(); return s, ok(s) })
}

// Golden waits until the screen, after view, is that of a file in testdata.
// BERTH_REWRITE=1 takes what there is after a second.
func (x *Terminal) Golden(name string, view func(screen string) string) {
	x.t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("BERTH_REWRITE") != "" {
		time.Sleep(time.Second)
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			x.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(view(x.Screen())), 0o644); err != nil {
			x.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		x.t.Fatal(err)
	}
	x.Until(path+" (BERTH_REWRITE=1 writes it anew):\n"+string(want), func(s string) bool { return view(s) == string(want) })
}

// AwaitEnd waits for the program's end, and returns its exit code.
func (x *Terminal) AwaitEnd() string {
	x.t.Helper()
	return x.await("exit code", func() (string, bool) {
		s := x.Screen()
		_, code, ended := strings.Cut(s, "exit code ")
		return strings.TrimSpace(code), ended && strings.HasSuffix(code, "\n")
	})
}

func (x *Terminal) await(what string, ask func() (string, bool)) string {
	x.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		got, ok := ask()
		if ok {
			return got
		}
		if time.Now().After(end) {
			x.t.Fatalf("after %v there is no %s on the screen:\n%s", patience, what, x.Screen())
		}
	}
}
