package supervise

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/shim/runc"
	"github.com/berth-dev/berth/shim/wire"
)

// TestLostOnlyWhenDead: the end of a dead shim's container is recorded when its
// processes were killed, by its group or, without one, by the runtime.
func TestLostOnlyWhenDead(t *testing.T) {
	const none = "/berth-no-such-group"
	for _, c := range []struct {
		name, runtime, group string
		clean, recorded      bool
	}{
		{"all is well", "/bin/true", none, true, true},
		{"the runtime fails on what is dead", "/bin/false", none, false, true},
		{"the group cannot be killed", "/bin/true", "/../group", false, false},
		{"no group, the runtime fails", "/bin/false", "", false, false},
		{"no group, the runtime cannot be run", "/no/such/runtime", "", false, false},
		{"no group, the runtime kills", "/bin/true", "", true, true},
	} {
		t.Chdir(t.TempDir())
		exit := filepath.Join(t.TempDir(), "exit")
		l := &wire.Launch{PID: 1 << 30, Cgroup: c.group, Create: wire.Create{ExitPath: exit}}
		failures := erase(runc.Runtime{Path: c.runtime, Root: "/nowhere"}, "id", l)
		if (len(failures) == 0) != c.clean {
			t.Errorf("%s: %q", c.name, failures)
		}
		b, err := os.ReadFile(exit)
		if e, perr := wire.ParseExitRecord(b); (err == nil) != c.recorded || err == nil && (perr != nil || !e.Lost || e.Code != 255) {
			t.Errorf("%s: record %q, %v", c.name, b, err)
		}
	}
}

// TestLostNotOverUnread: a record that cannot be read is not taken for none.
func TestLostNotOverUnread(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir(wire.ExitFile, 0o700); err != nil {
		t.Fatal(err)
	}
	exit := filepath.Join(t.TempDir(), "exit")
	l := &wire.Launch{PID: 1 << 30, Create: wire.Create{ExitPath: exit}}
	if failures := erase(runc.Runtime{Path: "/bin/true"}, "id", l); len(failures) != 1 {
		t.Errorf("%q", failures)
	}
	if _, err := os.Stat(exit); err == nil {
		t.Error("an end was recorded")
	}
	if err := os.Mkdir(wire.LaunchFile, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := readLaunch(); err == nil {
		t.Error("a launch file that cannot be read is taken for none")
	}
}
