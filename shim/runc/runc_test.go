package runc

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestCommands(t *testing.T) {
	r := Runtime{Path: "/bin/runc", Root: "/r", SystemdCgroup: true}
	const head = "/bin/runc --root /r --log /l --log-format json --systemd-cgroup "
	for _, tc := range []struct {
		got  []string
		want string
	}{
		{r.Create("/l", "c", "p", "k"), head + "create --bundle . --pid-file p --console-socket k c"},
		{r.Start("/l", "c"), head + "start c"},
		{r.Delete("/l", "c", true), head + "delete --force c"},
		{r.Update("/l", "c", "f"), head + "update --resources f c"},
		{r.Exec("/l", "c", ExecOptions{Process: "f", PidFile: "p", Cgroup: "pids:e"}),
			head + "exec --detach --process f --pid-file p --cgroup pids:e c"},
		{r.Checkpoint("/l", "c", "/i", "/w"), head +
			"checkpoint --image-path /i --work-path /w --leave-running --tcp-established --ext-unix-sk --file-locks c"},
		{r.Restore("/l", "c", RestoreOptions{Images: "/i", Work: "/w", PidFile: "p", Console: "k"}), head + "restore --detach --bundle . --pid-file p --image-path /i --work-path /w " +
			"--tcp-established --ext-unix-sk --file-locks --manage-cgroups-mode soft --console-socket k c"},
		{Runtime{Path: "runc"}.Delete("", "c", false), "runc delete c"},
	} {
		if d := cmp.Diff(tc.want, strings.Join(tc.got, " ")); d != "" {
			t.Error(d)
		}
	}
}

func TestFailure(t *testing.T) {
	for _, tc := range []struct{ name, log, stderr, want string }{
		{"log", `{"level":"warning","msg":"w","time":"x"}` + "\n" + `{"level":"error","msg":"exec: \"foo\": not found","time":"x"}` + "\n", "other", `exec: "foo": not found`},
		{"last error wins", `{"level":"error","msg":"one"}` + "\n" + `{"level":"error","msg":"two"}`, "", "two"},
		{"escapes", `{"level":"error","msg":"a\nb\u00e9\/\\"}`, "", `a bé/\`},
		{"torn log", `{"level":"error","msg":"tor`, "words\nlast words\n", "last words"},
		{"numbers are not strings", `{"level":"error","n":3,"msg":"x"}`, "", "exit status 7"},
		{"nothing", "", "", "exit status 7"},
	} {
		if got := Failure([]byte(tc.log), []byte(tc.stderr), 7); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if n := len(Failure(nil, []byte(strings.Repeat("é", 9000)), 1)); n > maxMessage {
		t.Error(n)
	}
}

func FuzzFailure(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"a\u0041"}`), []byte("x"))
	f.Fuzz(func(t *testing.T, log, stderr []byte) {
		got := Failure(log, stderr, 1)
		if got == "" || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\x00") {
			t.Fatalf("%q", got)
		}
	})
}

// FuzzLogLine compares with the real parser on what that one writes.
func FuzzLogLine(f *testing.F) {
	f.Add("plain", "<&>\u2028\"\\")
	f.Fuzz(func(t *testing.T, level, msg string) {
		if !utf8.ValidString(level) || !utf8.ValidString(msg) {
			return
		}
		for _, r := range level + msg {
			if r > 0xffff {
				return // Go's encoder writes these raw, others as two escapes
			}
		}
		b, err := json.Marshal(map[string]string{"level": level, "msg": msg, "time": "t"})
		if err != nil {
			t.Fatal(err)
		}
		l, m, ok := logLine(string(b))
		if !ok || l != level || m != msg {
			t.Fatalf("%s: %q %q %v", b, l, m, ok)
		}
	})
}
