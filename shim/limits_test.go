package shim

import (
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestIntegrationLogFileLimit: a file does not grow beyond its limit, the loss
// is counted in the log and in the state, and rotation makes room.
func TestIntegrationLogFileLimit(t *testing.T) {
	const limit = 64 << 10
	r := newRig(t)
	r.create(t, "c", "yes 0123456789 | head -n 20000; while [ ! -e /proc/1/cwd/go ]; do sleep 0.02; done; echo after; exit 6",
		func(c *CreateRequest, _ *specs.Spec) { c.Limits = LogLimits{FileBytes: limit} })
	r.start(t, "c")
	record := int64(len("2026-01-02T03:04:05.000000000Z stdout F 0123456789\n"))
	until(t, "every record is written or counted", func() bool {
		st, err := r.m.State(r.ctx, "c")
		return err == nil && st.Log.Capped > 0 && st.Log.Capped%record == 0 &&
			st.Log.Capped+int64(strings.Count(read(t, r.logPath("c")), " 0123456789\n"))*record == 20000*record
	})
	if got := r.m.LogLosses(r.ctx); got.Capped == 0 || got.Capped%record != 0 || got.Dropped != 0 || len(got.Containers) != 1 {
		t.Errorf("losses: %+v", got)
	}
	old := read(t, r.logPath("c"))
	if len(old) > limit+1024 || !strings.Contains(old, "reached its limit of 65536 bytes") {
		t.Errorf("the file has %d bytes and ends with %q", len(old), old[max(0, len(old)-200):])
	}
	if err := os.Rename(r.logPath("c"), r.logPath("c")+".1"); err != nil {
		t.Fatal(err)
	}
	if err := r.m.ReopenLog(r.ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.m.runDir("c")+"/rootfs/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e := r.exit(t); e.Code != 6 {
		t.Errorf("%+v", e)
	}
	if now := read(t, r.logPath("c")); !strings.Contains(now, "stdout F after\n") {
		t.Errorf("after the rotation: %q", now)
	}
}

// TestIntegrationLogBlocks: with Block a container loses nothing; it waits for
// the rotation.
func TestIntegrationLogBlocks(t *testing.T) {
	const limit, want = 64 << 10, 10000 // lines, more than its pipe holds
	r := newRig(t)
	r.create(t, "c", fmt.Sprintf("yes 0123456789 | head -n %d; while [ ! -e /proc/1/cwd/go ]; do sleep 0.02; done; exit 3", want),
		func(c *CreateRequest, _ *specs.Spec) { c.Limits = LogLimits{FileBytes: limit, Block: true} })
	r.start(t, "c")
	lines, files := 0, 0
	for ; lines < want && files < 20; files++ {
		var text string
		until(t, "the container waits or has written all", func() bool {
			st, err := r.m.State(r.ctx, "c")
			text = read(t, r.logPath("c"))
			return err == nil && (st.Log.Paused || lines+strings.Count(text, " F 0123456789\n") == want)
		})
		if len(text) > limit+waitSlack {
			t.Errorf("file %d has %d bytes, the limit is %d", files, len(text), limit)
		}
		lines += strings.Count(text, " F 0123456789\n")
		if err := os.Remove(r.logPath("c")); err != nil {
			t.Fatal(err)
		}
		if err := r.m.ReopenLog(r.ctx, "c"); err != nil {
			t.Fatal(err)
		}
	}
	if lines != want || files < 5 {
		t.Errorf("%d lines of %d were written, into %d files", lines, want, files)
	}
	if err := os.WriteFile(r.m.runDir("c")+"/rootfs/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e := r.exit(t); e.Code != 3 {
		t.Errorf("%+v", e)
	}
}

// waitSlack is more than one reading by a shim that makes its container wait
// becomes in the log.
const waitSlack = 32 << 10

// TestIntegrationLogRate: more than the burst is dropped and a line counts it.
func TestIntegrationLogRate(t *testing.T) {
	r := newRig(t)
	r.create(t, "c", "yes 0123456789 | head -n 20000; exit 2",
		func(c *CreateRequest, _ *specs.Spec) { c.Limits = LogLimits{Rate: 1 << 10} })
	r.start(t, "c")
	if e := r.exit(t); e.Code != 2 {
		t.Errorf("%+v", e)
	}
	until(t, "the log counts the loss", func() bool { return strings.Contains(read(t, r.logPath("c")), "dropped") })
	if n := strings.Count(read(t, r.logPath("c")), " F 0123456789\n"); n == 0 || n == 20000 {
		t.Errorf("%d lines of 20000 were written", n)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
