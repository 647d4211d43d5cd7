package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

const sampleLog = `2026-01-02T10:00:00.000000001Z stdout F one
2026-01-02T10:00:01Z stderr F bad
2026-01-02T10:00:02Z stdout P tw
2026-01-02T10:00:03Z stdout F o
2026-01-02T10:00:04Z stdout F three
`

func over() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestShowLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(sampleLog), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for name, tt := range map[string]struct {
		view        logView
		stdout, err string
	}{
		"all":        {logView{tail: -1}, "one\ntwo\nthree\n", "bad\n"},
		"tail":       {logView{tail: 2}, "two\nthree\n", ""},
		"tail of 3":  {logView{tail: 3}, "two\nthree\n", "bad\n"},
		"none":       {logView{tail: 0}, "", ""},
		"many":       {logView{tail: 100}, "one\ntwo\nthree\n", "bad\n"},
		"since":      {logView{tail: -1, since: at("2026-01-02T10:00:04Z")}, "three\n", ""},
		"timestamps": {logView{tail: 2, timestamps: true}, "2026-01-02T10:00:02Z two\n2026-01-02T10:00:04Z three\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errw bytes.Buffer
			tt.view.out, tt.view.err = &out, &errw
			if err := showLog(t.Context(), path, tt.view, over()); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.stdout, out.String()); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.err, errw.String()); d != "" {
				t.Error(d)
			}
		})
	}
	if err := os.WriteFile(path, []byte("no log\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := showLog(t.Context(), path, logView{tail: -1, out: io.Discard, err: io.Discard}, over()); err == nil {
		t.Error("a file that is no log is taken for one")
	}
}

// Every line is printed once and in order while the log grows and is rotated.
func TestFollowRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	write := func(f *os.File, i int) {
		// In two pieces: a line may be there in part when it is read.
		for _, s := range []string{"2026-01-02T10:00:00Z stdout F li", fmt.Sprintf("ne %d\n", i)} {
			if _, err := f.WriteString(s); err != nil {
				t.Error(err)
			}
		}
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1000)
	ended := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- showLog(t.Context(), path, logView{tail: -1, out: lineWriter(got), err: io.Discard}, ended)
	}()
	const files, lines = 4, 25
	for i := range files * lines {
		if i > 0 && i%lines == 0 {
			// The reader is with this file before the next one comes: what was
			// rotated twice between two looks, no reader could find.
			for j := i - lines; j < i; j++ {
				if s := <-got; s != fmt.Sprintf("line %d\n", j) {
					t.Fatalf("got %q, want line %d", s, j)
				}
			}
			if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if f, err = os.Create(path); err != nil {
				t.Fatal(err)
			}
		}
		write(f, i)
	}
	f.Close()
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for j := (files - 1) * lines; j < files*lines; j++ {
		if s := <-got; s != fmt.Sprintf("line %d\n", j) {
			t.Fatalf("got %q, want line %d", s, j)
		}
	}
	if len(got) > 0 {
		t.Errorf("%d lines too many", len(got))
	}
}

type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) { w <- string(p); return len(p), nil }

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 10, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{"": {}, "10m": now.Add(-10 * time.Minute), "2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if got, err := parseSince(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"yesterday", "-5m", "10"} {
		if _, err := parseSince(s, now); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func TestVerdict(t *testing.T) {
	if err := decodeVerdict([]byte(`{"status":"Success"}`)); err != nil {
		t.Error(err)
	}
	err := decodeVerdict([]byte(`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]},"message":"command terminated"}`))
	var ee *cli.ExitError
	if !errors.As(err, &ee) || ee.Code != 42 || ee.Err != nil {
		t.Errorf("got %#v", err)
	}
	for _, s := range []string{`{"status":"Failure","message":"no such program"}`, `garbage`, `{"status":"Failure","reason":"NonZeroExitCode","message":"no such program"}`} {
		if code, text := cli.Explain(decodeVerdict([]byte(s)), "berthctl exec"); code != 1 || !strings.Contains(text, "no such program") && !strings.Contains(text, "garbage") {
			t.Errorf("%s: %d, %s", s, code, text)
		}
	}
}

// Keys pass as they are typed until those that leave, however they are cut.
func TestDetacher(t *testing.T) {
	for _, tt := range []struct {
		keys []string
		want string
		left bool
	}{
		{[]string{"ab", "c"}, "abc", false},
		{[]string{"ab\x10\x11c"}, "ab", true},
		{[]string{"ab\x10", "\x11", "c"}, "ab", true},
		{[]string{"ab\x10", "c\x10", "\x10", "\x11"}, "ab\x10c\x10", true},
		{[]string{"\x11\x10x"}, "\x11\x10x", false},
	} {
		r, w := io.Pipe()
		go func() {
			for _, k := range tt.keys {
				_, _ = w.Write([]byte(k))
			}
			w.Close()
		}()
		left := false
		got, err := io.ReadAll(&detacher{in: r, left: func() { left = true }})
		r.Close()
		if err != nil || string(got) != tt.want || left != tt.left {
			t.Errorf("%q: got %q, left %v, %v", tt.keys, got, left, err)
		}
	}
}

func TestParsers(t *testing.T) {
	ports := map[string]*runtimeapi.PortMapping{
		"80:8080": {HostPort: 80, ContainerPort: 8080}, "127.0.0.1:5353:53/udp": {HostIp: "127.0.0.1", HostPort: 5353, ContainerPort: 53, Protocol: runtimeapi.Protocol_UDP},
		"[::1]:1:2/sctp": {HostIp: "::1", HostPort: 1, ContainerPort: 2, Protocol: runtimeapi.Protocol_SCTP},
		"80":             nil, "0:1": nil, "1:65536": nil, "x:1": nil, "1:2/http": nil, "1.2.3:1:2": nil, "::1:1:2": nil,
	}
	for s, want := range ports {
		if got, err := parsePort(s); (err == nil) != (want != nil) || want != nil && got.String() != want.String() {
			t.Errorf("port %q: %v, %v", s, got, err)
		}
	}
	for s, want := range map[string]*runtimeapi.Mount{
		"/a:/b": {HostPath: "/a", ContainerPath: "/b"}, "/a:/b:ro": {HostPath: "/a", ContainerPath: "/b", Readonly: true},
		"/a": nil, "/a:b": nil, "/a:/b:rx": nil, ":/b": nil, "/a:/b:ro:x": nil,
	} {
		if got, err := parseMount(s); (err == nil) != (want != nil) || want != nil && got.String() != want.String() {
			t.Errorf("mount %q: %v, %v", s, got, err)
		}
	}
	t.Setenv("BERTH_TEST_OWN", "own")
	for s, want := range map[string]string{"A=b=c": "A=b=c", "A=": "A=", "BERTH_TEST_OWN": "BERTH_TEST_OWN=own", "=x": "", "BERTH_TEST_NOT": ""} {
		got, err := parseEnv(s)
		if (err == nil) != (want != "") || want != "" && got.GetKey()+"="+string(got.GetValue()) != want {
			t.Errorf("env %q: %v, %v", s, got, err)
		}
	}
	for s, want := range map[string]int64{"64Mi": 64 << 20, "1G": 1 << 30, "4096": 4096, "x": 0, "1T": 0, "-1": 0, "99999999999G": 0, "Mi": 0} {
		got, err := limitFlags{memory: s}.resources()
		if (err == nil) != (want != 0) || want != 0 && got.GetMemoryLimitInBytes() != want {
			t.Errorf("memory %q: %v, %v", s, got, err)
		}
	}
	for cpus, want := range map[float64]int64{0: 0, 0.01: 10, 2: 2048, 1000: 1 << 18, -1: -1, 0.001: -1, math.Inf(1): -1, math.NaN(): -1} {
		got, err := limitFlags{cpus: cpus}.resources()
		if (err == nil) != (want >= 0) || want >= 0 && got.GetCpuShares() != want {
			t.Errorf("cpus %v: %v, %v", cpus, got, err)
		}
	}
	for s, ok := range map[string]bool{"1000": true, "1000:5": true, "alice": true, "alice:5": false, "5:alice": false, ":": false} {
		if err := setUser(&runtimeapi.LinuxContainerSecurityContext{}, s); (err == nil) != ok {
			t.Errorf("user %q: %v", s, err)
		}
	}
}

func TestRunSpec(t *testing.T) {
	s := runSpec{image: "i", name: "web", uid: "U", logs: "/l", place: placeFlags{namespace: "n", network: "host", labels: []string{"a=b"}}}
	c, err := s.sandbox()
	if err != nil {
		t.Fatal(err)
	}
	if c.GetHostname() != "" || c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != runtimeapi.NamespaceMode_NODE || c.GetLabels()["a"] != "b" {
		t.Errorf("got %v", c)
	}
	k, err := s.container()
	if err != nil || k.GetLinux().GetSecurityContext().GetSeccomp().GetProfileType() != runtimeapi.SecurityProfile_RuntimeDefault || len(k.GetLinux().GetSecurityContext().GetMaskedPaths()) == 0 {
		t.Errorf("got %v, %v", k, err)
	}
	for _, bad := range []placeFlags{{network: "bridge"}, {network: "host", ports: []string{"1:2"}}, {network: "pod", labels: []string{"x"}}, {network: "pod", labels: []string{"berthctl.run=x"}}} {
		if _, err := (runSpec{place: bad}).sandbox(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// An end by the user is told from one by itself.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	if err := interrupted(ctx, io.EOF); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	cancel()
	if code, _ := cli.Explain(interrupted(ctx, io.EOF), ""); code != cli.CodeInterrupted {
		t.Error(code)
	}
}
