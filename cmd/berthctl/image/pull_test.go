package image

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

func progressOf(phases ...string) *admin.PullProgress {
	p := &admin.PullProgress{Image: "r.test/app:v1"}
	for i, phase := range phases {
		have := map[string]int64{"downloading": 512 << 10, "done": 1 << 20, "present": 1 << 20}[phase]
		p.Layers = append(p.Layers, &admin.LayerProgress{
			Digest: "sha256:" + strings.Repeat(string(rune('a'+i)), 64), Size: 1 << 20, Have: have, Phase: phase,
			BytesPerSecond: have % (1 << 20),
		})
	}
	return p
}

func TestPullLines(t *testing.T) {
	var b bytes.Buffer
	l := (&pull{App: &cli.App{Output: "table"}}).display(&b)
	l.show(progressOf("present", "waiting"))
	l.show(progressOf("present", "downloading"))
	l.show(progressOf("present", "downloading"))
	l.show(progressOf("present", "done"))
	l.end()
	want := "r.test/app:v1: 2 layers\naaaaaaaaaaaaa: present 1.0 MiB of 1.0 MiB\nbbbbbbbbbbbbb: downloading 512.0 KiB of 1.0 MiB\nbbbbbbbbbbbbb: done 1.0 MiB of 1.0 MiB\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
	b.Reset()
	(&pull{App: &cli.App{Output: "json"}}).display(&b).show(progressOf("done"))
	if b.Len() > 0 {
		t.Errorf("JSON output with progress: %q", b.String())
	}
}

// TestPullBars: bars are redrawn in place, fit the terminal, and what is done
// gives way.
func TestPullBars(t *testing.T) {
	var out bytes.Buffer
	b := &bars{w: &out, rows: 5, cols: 70}
	b.show(progressOf("downloading", "waiting"))
	want := "aaaaaaaaaaaaa [============            ] 512.0 KiB /   1.0 MiB  downl\n" +
		"bbbbbbbbbbbbb [                        ]       0 B /   1.0 MiB  waiti\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
	out.Reset()
	b.show(progressOf("done", "done", "downloading", "waiting", "waiting"))
	if got := out.String(); !strings.HasPrefix(got, "\x1b[2A\x1b[J") || strings.Count(got, "\n") != 3 || strings.Contains(got, "aaaa") || !strings.Contains(got, "eeee") {
		t.Errorf("got %q", got)
	}
}

func TestPullExplain(t *testing.T) {
	var b bytes.Buffer
	explainPull(&b, []*admin.PullAttempt{
		{Host: "m.test", Object: "manifests/v1", Credentials: "not asked for any", Took: 2e6, Error: "connection refused\nthere"},
		{Host: "r.test", Object: "blobs/sha256:" + strings.Repeat("0", 64), Credentials: "the pull request", Took: 3e6},
	})
	want := "HOST    OBJECT               CREDENTIALS        TOOK  RESULT\n" +
		"m.test  manifests/v1         not asked for any  2ms   connection refused there\n" +
		"r.test  blobs/0000000000000  the pull request   3ms   ok\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

// TestPullError: a registry that is away is not a daemon that is away.
func TestPullError(t *testing.T) {
	gone := status.Error(codes.Unavailable, "registry r.test")
	for answered, want := range map[bool]int{true: 1, false: 3} {
		if code, _ := cli.Explain(pullError(context.Background(), gone, answered), "berthctl images pull"); code != want {
			t.Errorf("answered %v: exit code %d, want %d", answered, code, want)
		}
	}
}
