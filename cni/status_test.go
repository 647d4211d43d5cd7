package cni

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestStatus(t *testing.T) {
	status := func(body string) string {
		return "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = STATUS ] || exit 0\n" + body + "\n"
	}
	for _, c := range []struct {
		name   string
		files  map[string]string
		plugin string
		want   string // "" : ready
		note   string
	}{
		{"empty directory", nil, addOK, "no network configuration in", ""},
		{"ready", map[string]string{"10-a.conflist": goodList}, addOK, "", ""},
		{"plugin missing", map[string]string{"10-a.conflist": goodList}, "", `plugin "fake" is not in`, ""},
		{"plugin not executable", map[string]string{"10-a.conflist": strings.Replace(goodList, "1.1.0", "1.0.0", 1)}, addOK, "cannot be executed", ""},
		{"only a bad file", map[string]string{"10-a.conflist": "{"}, addOK, "10-a.conflist", ""},
		{"bad file beside a good one", map[string]string{"05-bad.conflist": "{", "10-a.conflist": goodList}, addOK, "", "05-bad.conflist"},
		{"two networks with one name", map[string]string{"10-a.conflist": goodList, "20-b.conflist": goodList}, addOK, "", `20-b.conflist: network "net-a" is that of`},
		{"single conf", map[string]string{"10-a.conf": `{"cniVersion":"1.0.0","name":"x","type":"fake"}`}, addOK, "", ""},
		{"list named .conf", map[string]string{"10-a.conf": goodList}, addOK, "10-a.conf", ""},
		{"not ready", map[string]string{"10-a.conflist": goodList}, status(`echo '{"code":50,"msg":"agent is down"}'; exit 1`), "agent is down", ""},
		{"hangs", map[string]string{"10-a.conflist": goodList}, status("sleep 1000"), "no status within", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, c.files, c.plugin)
			if c.name == "plugin not executable" {
				if err := os.Chmod(filepath.Join(b.bin, "fake"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if c.name == "hangs" {
				b.cfg.Pace.Status = 300 * time.Millisecond
			}
			r := b.Status(t.Context())
			switch {
			case c.want == "" && r.Err != nil:
				t.Error(r.Err)
			case c.want != "" && (!errdefs.IsUnavailable(r.Err) || !strings.Contains(r.Err.Error(), c.want)):
				t.Errorf("got %v, want Unavailable with %q", r.Err, c.want)
			case c.want != "" && !strings.Contains(r.Err.Error(), "since "+r.Networks[0].Since.UTC().Format(time.RFC3339)):
				t.Errorf("%v: does not say since when", r.Err)
			}
			if !strings.Contains(r.Note, c.note) || c.note == "" && r.Note != "" {
				t.Errorf("note %q, want %q", r.Note, c.note)
			}
			// The same again: nothing of it may change by itself, as the kubelet writes it into the node.
			if again := b.Status(t.Context()); r.Err != nil && again.Err.Error() != r.Err.Error() {
				t.Errorf("%v, then %v", r.Err, again.Err)
			}
		})
	}
}

// A plugin that hangs when it is asked for its status does not hold up who asks.
func TestStatusIsServedFromMemory(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	b.cfg.Pace = Pace{Status: time.Hour, Poll: time.Nanosecond, Relist: time.Hour}
	if r := b.Status(t.Context()); r.Err != nil {
		t.Fatal(r.Err)
	}
	mark := filepath.Join(b.bin, "asked")
	write(t, filepath.Join(b.bin, "new"), "#!/bin/sh\ntouch "+mark+"\nexec sleep 1000\n", 0o755)
	if err := os.Rename(filepath.Join(b.bin, "new"), filepath.Join(b.bin, "fake")); err != nil {
		t.Fatal(err)
	}
	until(t, "the plugin is asked and hangs", func() bool {
		if r := b.Status(t.Context()); r.Err != nil {
			t.Fatal(r.Err)
		}
		_, err := os.Stat(mark)
		return err == nil
	})
	for range 100 {
		if r := b.Status(t.Context()); r.Err != nil || !r.Networks[0].Ready {
			t.Fatal(r.Err)
		}
	}
}

// until waits for something that happens in the background.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// ready waits until the network of that name, "" for none, is in use. It looks
// at what is known without asking, so that only events or the re-list can help.
func (b *bench) ready(t *testing.T, want string) {
	t.Helper()
	until(t, "network "+want, func() bool {
		b.def.mu.Lock()
		defer b.def.mu.Unlock()
		return b.def.state.Network == want && !b.def.state.Checked.IsZero() && b.def.state.Ready == (want != "")
	})
}

// change goes through all that can happen to a configuration directory.
func (b *bench) change(t *testing.T) {
	t.Helper()
	netB := strings.ReplaceAll(goodList, "net-a", "net-b")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	b.ready(t, "")
	write(t, filepath.Join(b.conf, "20-b.conflist"), netB, 0o644)
	b.ready(t, "net-b")
	write(t, filepath.Join(b.conf, ".tmp"), goodList, 0o644)
	do(os.Rename(filepath.Join(b.conf, ".tmp"), filepath.Join(b.conf, "10-a.conflist")))
	b.ready(t, "net-a")
	do(os.RemoveAll(b.conf))
	b.ready(t, "")
	do(os.Mkdir(b.conf, 0o755))
	write(t, filepath.Join(b.conf, "20-b.conflist"), netB, 0o644)
	b.ready(t, "net-b")
	// Replaced by a symbolic link, of which the target is replaced in turn.
	real := filepath.Join(filepath.Dir(b.conf), "elsewhere", "net.d")
	do(os.MkdirAll(real, 0o755))
	write(t, filepath.Join(real, "10-a.conflist"), goodList, 0o644)
	do(os.Symlink(real, b.conf+".new"))
	do(os.RemoveAll(b.conf))
	do(os.Rename(b.conf+".new", b.conf))
	b.ready(t, "net-a")
	do(os.Rename(real, real+".old"))
	b.ready(t, "")
	do(os.Mkdir(real, 0o755))
	write(t, filepath.Join(real, "20-b.conflist"), netB, 0o644)
	b.ready(t, "net-b")
	// Everything above it goes as well.
	do(os.Remove(b.conf))
	do(os.RemoveAll(filepath.Dir(real)))
	b.ready(t, "")
	do(os.MkdirAll(b.conf, 0o755))
	write(t, filepath.Join(b.conf, "10-a.conflist"), goodList, 0o644)
	b.ready(t, "net-a")
}

// With nothing but events: the re-list is an hour away.
func TestDirectoryIsWatched(t *testing.T) {
	b := newBench(t, nil, addOK)
	b.Start()
	b.change(t)
}

// With the directory's parents missing at the start.
func TestDirectoryIsWatchedBeforeItExists(t *testing.T) {
	b := newBench(t, nil, addOK)
	if err := os.RemoveAll(filepath.Dir(b.conf)); err != nil {
		t.Fatal(err)
	}
	b.Start()
	b.ready(t, "")
	for _, dir := range []string{b.conf, b.bin} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(b.bin, "fake"), addOK, 0o755)
	write(t, filepath.Join(b.conf, "10-a.conflist"), goodList, 0o644)
	b.ready(t, "net-a")
}

// Without any events: the re-list heals all.
func TestDirectoryIsRelisted(t *testing.T) {
	b := newBench(t, nil, addOK)
	b.cfg.Pace.Relist = 10 * time.Millisecond
	b.def.open = func() (*watcher, error) { return nil, errors.New("no inotify instance is free") }
	b.Start()
	b.change(t)
}

// A watcher that breaks is replaced.
func TestWatcherIsReplaced(t *testing.T) {
	b := newBench(t, nil, addOK)
	opened := make(chan *watcher, 8)
	b.def.open = func() (*watcher, error) {
		w, err := newWatcher()
		opened <- w
		return w, err
	}
	b.Start()
	b.ready(t, "")
	if err := (<-opened).Close(); err != nil {
		t.Fatal(err)
	}
	<-opened
	write(t, filepath.Join(b.conf, "10-a.conflist"), goodList, 0o644)
	b.ready(t, "net-a")
}

// A file that is spoilt while its network is in use takes it from nobody.
func TestSpoiltFileKeepsItsNetwork(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList, "20-b.conflist": strings.ReplaceAll(goodList, "net-a", "net-b")}, addOK)
	b.Start()
	b.ready(t, "net-a")
	for _, bad := range []string{"{", "", `{"cniVersion":"1.1.0","name":"net-a","plugins":[]}`} {
		write(t, filepath.Join(b.conf, "10-a.conflist"), bad, 0o644)
		until(t, "the bad file is reported", func() bool {
			r := b.Status(t.Context())
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			return strings.Contains(r.Note, "10-a.conflist")
		})
		if _, err := b.Attach(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
		if n := b.def.current().network; n.Name != "net-a" {
			t.Errorf("now on network %q", n.Name)
		}
		if err := b.Detach(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(b.conf, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	b.ready(t, "net-b")
}

// A handler with a directory of its own neither uses the others' network nor
// makes the node unready.
func TestHandlerDirectory(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	own := filepath.Join(filepath.Dir(b.conf), "kata.d")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := b.cfg
	cfg.HandlerDirs = map[string]string{"kata": own, "same": b.conf}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	r := m.Status(t.Context())
	if r.Err != nil || !strings.Contains(r.Note, "kata") || len(r.Networks) != 2 {
		t.Errorf("%+v", r)
	}
	req := request()
	req.Handler = "kata"
	if _, err := m.Attach(t.Context(), req); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), own) {
		t.Errorf("got %v", err)
	}
	write(t, filepath.Join(own, "10.conflist"), strings.ReplaceAll(goodList, "net-a", "net-kata"), 0o644)
	for handler, want := range map[string]string{"kata": "net-kata", "same": "net-a", "": "net-a", "other": "net-a"} {
		if n := m.of(handler).current().network; n == nil || n.Name != want {
			t.Errorf("handler %q: %+v, want %s", handler, n, want)
		}
	}
	if _, err := m.Attach(t.Context(), req); err != nil {
		t.Error(err)
	}
}

// A link to what does not exist yet: its making is told, at whatever depth, and
// links in a circle end.
func TestWatcherOfDanglingLink(t *testing.T) {
	for name, to := range map[string]string{"absolute": "", "relative": "elsewhere/net.d", "over another link": "other/net.d", "circle": "conf"} {
		dir := t.TempDir()
		target := filepath.Join(dir, "elsewhere", "net.d")
		if to == "" {
			to = target
		}
		err := errors.Join(os.Symlink(to, filepath.Join(dir, "conf")), os.Symlink("elsewhere", filepath.Join(dir, "other")), os.Mkdir(filepath.Dir(target), 0o755))
		w, werr := newWatcher()
		if err = errors.Join(err, werr); err != nil {
			t.Fatal(err)
		}
		if err := w.aim(filepath.Join(dir, "conf")); err != nil && name != "circle" {
			t.Errorf("%s: %v", name, err)
		}
		told := make(chan error, 1)
		go func() { told <- w.wait() }()
		if name == "circle" {
			target = filepath.Join(dir, "conf")
			err = os.Remove(target)
		}
		if err = errors.Join(err, os.Mkdir(target, 0o755)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-told:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: nobody is told that the directory was made", name)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestWatcherOfLinksOnTheWay leads a link in the middle of a chain elsewhere,
// also one that is part of a directory's name.
func TestWatcherOfLinksOnTheWay(t *testing.T) {
	for _, middle := range []string{"second", "place"} {
		dir := t.TempDir()
		at := func(name string) string { return filepath.Join(dir, name) }
		for _, d := range []string{"a/real", "b/real"} {
			if err := os.MkdirAll(at(d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		links := [][2]string{{"second", "conf"}, {"third", "second"}, {at("place/real"), "third"}, {"a", "place"}}
		for _, l := range links {
			// Links in directories of their own, so that none is told of by the watch for another.
			if err := errors.Join(os.MkdirAll(at("in-"+l[1]), 0o755), os.Symlink(l[0], at("in-"+l[1]+"/link")), os.Symlink("in-"+l[1]+"/link", at(l[1]))); err != nil {
				t.Fatal(err)
			}
			if !filepath.IsAbs(l[0]) {
				if err := errors.Join(os.Remove(at("in-"+l[1]+"/link")), os.Symlink("../"+l[0], at("in-"+l[1]+"/link"))); err != nil {
					t.Fatal(err)
				}
			}
		}
		w, err := newWatcher()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.aim(at("conf")); err != nil {
			t.Fatal(err)
		}
		told := make(chan error, 1)
		go func() { told <- w.wait() }()
		if err := errors.Join(os.Symlink(at("b/real"), at("in-"+middle+"/new")), os.Rename(at("in-"+middle+"/new"), at("in-"+middle+"/link"))); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-told:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("nobody is told that %s leads elsewhere", middle)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestStampSeesRewrites: a file of the same size and time is another one.
func TestStampSeesRewrites(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "10-a.conflist")
	at := time.Unix(1e9, 0)
	write(t, file, "one", 0o644)
	if err := os.Chtimes(file, at, at); err != nil {
		t.Fatal(err)
	}
	before := dirStamp(dir)
	if dirStamp(dir) != before {
		t.Error("the stamp changes by itself")
	}
	write(t, file+".new", "two", 0o644)
	if err := errors.Join(os.Chtimes(file+".new", at, at), os.Rename(file+".new", file)); err != nil {
		t.Fatal(err)
	}
	if dirStamp(dir) == before {
		t.Error("a file that took the place of another is not seen")
	}
}

func TestRelevant(t *testing.T) {
	event := func(wd, mask byte, name string) []byte {
		b := make([]byte, 16, 32)
		b[0], b[4], b[12] = wd, mask, 16
		return append(b, append([]byte(name), make([]byte, 16-len(name))...)...)
	}
	watched := map[int32]string{1: "", 2: "net.d"}
	for _, c := range []struct {
		name string
		buf  []byte
		want bool
	}{
		{"any name", event(1, 2, "x"), true},
		{"the name", event(2, 2, "net.d"), true},
		{"another name", event(2, 2, "x"), false},
		{"the second event", append(event(2, 2, "x"), event(1, 2, "y")...), true},
		{"a watch of before", event(3, 2, "x"), false},
		{"cut off", event(2, 2, "x")[:20], true},
		{"lost events", append([]byte{255, 255, 255, 255, 0, 0x40}, make([]byte, 10)...), true},
		{"nothing", nil, false},
	} {
		if got := relevant(c.buf, watched); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
