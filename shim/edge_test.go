package shim

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/shim/wire"
)

// TestIntegrationSharedPIDs: leftovers in a PID namespace that is not the
// container's own are killed and reaped, and hold nothing up.
func TestIntegrationSharedPIDs(t *testing.T) {
	r := newRig(t)
	c := r.create(t, "host", "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & (true &) ; sleep 0.3; exit 3",
		func(_ *CreateRequest, s *specs.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[1:]
		})
	r.start(t, "host")
	if e := r.exit(t); e.Code != 3 {
		t.Errorf("%+v", e)
	}
	g, _ := cgroup.Detect()
	if p, _ := g.Pids("/" + groupRoot() + "/host"); len(p) != 0 {
		t.Errorf("left: %v", p)
	}
	until(t, "the shim leaves", func() bool { return !alive(c.ShimPID) })
}

// TestIntegrationDiskFull: the container goes on, the loss is counted, and the
// log recovers by itself.
func TestIntegrationDiskFull(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=65536"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	fill := dir + "/fill"
	if err := os.WriteFile(fill, make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	r.create(t, "full", "yes 0123456789 | head -n 20000; while [ ! -e /proc/1/cwd/go ]; do sleep 0.02; done; echo after; exit 6",
		func(c *CreateRequest, _ *specs.Spec) { c.LogPath = dir + "/log" })
	r.start(t, "full")
	record := int64(len("2026-01-02T03:04:05.000000000Z stdout F 0123456789\n"))
	until(t, "every byte is either written or counted", func() bool {
		st, err := r.m.State(r.ctx, "full")
		fi, err2 := os.Stat(dir + "/log")
		return err == nil && err2 == nil && st.Log.Error == syscall.ENOSPC && st.Log.Dropped+fi.Size() == 20000*record
	})
	if got := r.m.LogTrouble(r.ctx); len(got) != 1 || got[0].ID != "full" || got[0].Log.Error != syscall.ENOSPC || got[0].Log.Dropped == 0 {
		t.Errorf("trouble while the disk is full: %+v", got)
	}
	if got := r.m.LogLosses(r.ctx); got.Dropped == 0 || got.Capped != 0 || len(got.Containers) != 1 || got.Containers[0].Log.Dropped != got.Dropped {
		t.Errorf("losses while the disk is full: %+v", got)
	}
	_ = os.Remove(fill)
	if err := os.WriteFile(r.m.runDir("full")+"/rootfs/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e := r.exit(t); e.Code != 6 {
		t.Errorf("%+v", e)
	}
	b, err := os.ReadFile(dir + "/log")
	if err != nil || !bytes.HasSuffix(b, []byte(" stdout F after\n")) {
		t.Errorf("%v ...%q", err, b[max(0, len(b)-80):])
	}
	if got, want := r.m.LogLosses(r.ctx).Dropped, 20000*record+int64(len("2026-01-02T03:04:05.000000000Z stdout F after\n"))-int64(len(b)); got != want {
		t.Errorf("%d bytes were counted as lost after the container's end, %d are missing", got, want)
	}
	for _, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		if !strings.HasSuffix(l, " stdout F 0123456789") && !strings.HasSuffix(l, " stdout F after") {
			t.Fatalf("torn record %q", l)
		}
	}
}

// TestIntegrationVersion: a shim refuses a daemon that is too new for it and
// answers requests it doesn't know.
func TestIntegrationVersion(t *testing.T) {
	r := newRig(t)
	r.create(t, "v", "sleep 1000", nil)
	conn, err := dial(r.m.runDir("v"))
	if err != nil {
		t.Fatal(err)
	}
	l, h, err := newLink(r.ctx, conn, false, nil)
	if err != nil || h.ID != "v" {
		t.Fatal(h, err)
	}
	rep, _, err := l.call(r.ctx, wire.Kind(999), []byte{1, 2, 3}, nil)
	if err == nil || rep.Code != wire.CodeUnknown {
		t.Error(rep, err)
	}
	l.close()
	if conn, err = dial(r.m.runDir("v")); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	hello := wire.Encode(&wire.Hello{Version: 99, Oldest: 98})
	_, _ = conn.Write(wire.Append(nil, wire.Frame{Kind: wire.KindHello, ID: 1, Body: hello}))
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 4096)
	_, _ = conn.Read(buf) // its own versions
	if n, err := conn.Read(buf); n > 0 || os.IsTimeout(err) {
		t.Error("the connection stays open:", n, err)
	}
	if st, err := r.m.State(r.ctx, "v"); err != nil || st.Phase != PhaseCreated {
		t.Error(st, err)
	}
}
