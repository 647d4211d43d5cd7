package suite

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Where CRIU does not work these stories hold the daemon to saying so: that is
// the development machine. `make vm RUN=checkpoint` tells them in full.
func checkpointStories() []story {
	return []story{
		{name: "checkpoint/absent", berth: true, tell: checkpointAbsent},
		{name: "checkpoint/container", berth: true, tell: checkpointContainer},
		{name: "checkpoint/images", berth: true, tell: checkpointImages},
		{name: "checkpoint/restored by runc", owned: true, tell: checkpointRestored},
		{name: "checkpoint/commands in the container", berth: true, tell: checkpointWithCommands},
		{name: "checkpoint/refused", berth: true, tell: checkpointRefused},
		{name: "checkpoint/time is over", owned: true, tell: checkpointTimeOut},
		{name: "checkpoint/container stopped meanwhile", owned: true, tell: checkpointStopped},
		{name: "checkpoint/killed daemon", owned: true, tell: checkpointKilled},
		{name: "checkpoint/berthctl", owned: true, tell: checkpointCtl},
		{name: "checkpoint/kubelet", owned: true, tell: checkpointKubelet},
	}
}

// checkpointable returns why there can be no checkpoints; "" when there can.
func (n *node) checkpointable(t *testing.T) string {
	t.Helper()
	r, err := n.rt.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	must(t, err)
	var says struct {
		Available bool
		Reason    string
	}
	must(t, json.Unmarshal([]byte(r.GetInfo()["checkpoint"]), &says))
	if says.Available != (says.Reason == "") {
		t.Errorf("status says %+v", says)
	}
	return says.Reason
}

// criu skips a test where there is none.
func (n *node) criu(t *testing.T) {
	t.Helper()
	if reason := n.checkpointable(t); reason != "" {
		t.Skip(reason)
	}
}

func (c *container) checkpoint(ctx context.Context, file string, timeout int64) error {
	_, err := c.p.n.rt.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: file, Timeout: timeout})
	return err
}

// checkpointAbsent: the reason is in the answer and in the status.
func checkpointAbsent(t *testing.T, n *node) {
	reason := n.checkpointable(t)
	if reason == "" {
		t.Skip("CRIU works here")
	}
	c := n.pod(t).run(t, probe("sleep"))
	dir := t.TempDir()
	err := c.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 0)
	wantCode(t, "checkpoint without CRIU", err, codes.Unimplemented)
	has(t, "reason", err.Error(), "CRIU")
	has(t, "reason", reason, "CRIU")
	emptyDir(t, dir)
	equal(t, "state", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
}

// counter has an open file that grows, a listener, and files changed and removed of its image.
// The listener is no MPTCP socket and holds no file of its cgroup, which CRIU would not find again.
const counter = `mkdir -p /data; exec 3>/data/open; echo tmp >/dev/shm/kept; ln -s /etc/passwd /data/link; rm -r /etc/group /home; mkdir /home; echo new >/home/new
GODEBUG=multipathtcp=0,containermaxprocs=0 /probe echo 0.0.0.0:8080 & i=0; while :; do i=$((i+1)); echo $i; echo f$i >&3; sleep 0.1; done`

// goesOn reports that a container counts on.
func (c *container) goesOn(t *testing.T) {
	t.Helper()
	lines := len(c.log(t))
	eventually(t, "the container goes on", func() bool { return len(c.log(t)) > lines+1 })
}

func (p *pod) counter(t *testing.T) *container {
	t.Helper()
	c := p.run(t, shell(counter))
	c.waitLog(t, "3\n")
	c.waitLog(t, ":8080\n")
	return c
}

func checkpointContainer(t *testing.T, n *node) {
	n.criu(t)
	p := n.pod(t)
	c := p.counter(t)
	file := filepath.Join(t.TempDir(), "c.tar")
	must(t, c.checkpoint(t.Context(), file, 100))
	c.goesOn(t)
	st, err := os.Stat(file)
	must(t, err)
	equal(t, "mode", st.Mode(), 0o600)
	got := readArchive(t, file)
	var config struct {
		ID, Name, RootfsImageName, Runtime string
		CheckpointedTime                   time.Time
	}
	must(t, json.Unmarshal(got["config.dump"], &config))
	equal(t, "id", config.ID, c.id)
	equal(t, "name", config.Name, c.config.Metadata.Name)
	has(t, "image", config.RootfsImageName, c.config.Image.Image)
	equal(t, "runtime", config.Runtime, "runc")
	var spec specs.Spec
	must(t, json.Unmarshal(got["spec.dump"], &spec))
	equal(t, "spec", spec.Annotations["io.kubernetes.cri.container-name"], c.config.Metadata.Name)
	var status struct {
		Pid      int
		LogPath  string
		LogBytes int64
	}
	must(t, json.Unmarshal(got["status.dump"], &status))
	log, err := os.ReadFile(status.LogPath)
	must(t, err)
	if status.Pid <= 1 || status.LogBytes <= 0 || status.LogBytes >= int64(len(log)) {
		t.Errorf("status: %+v, and the log has %d bytes", status, len(log))
	}
	has(t, "network", string(got["network.status"]), p.status(t).GetNetwork().GetIp())
	has(t, "CRIU's log", string(got["dump.log"]), "Dumping finished successfully")
	for _, name := range []string{"checkpoint/inventory.img", "checkpoint/pages-1.img", "stats-dump"} {
		if len(got[name]) == 0 {
			t.Errorf("no %s among %v", name, slices.Sorted(maps.Keys(got)))
		}
	}
	must(t, allowed(t, got))
	var deleted []string
	must(t, json.Unmarshal(got["deleted.files"], &deleted))
	equal(t, "deleted", strings.Join(deleted, " "), "/etc/group /home/alice")
	diff := readTar(t, strings.NewReader(string(got["rootfs-diff.tar"])))
	equal(t, "new file", string(diff["home/new"]), "new\n")
	has(t, "open file", string(diff["data/open"]), "f1\nf2\n")
	if _, ok := diff["data/link"]; !ok {
		t.Errorf("no link in %v", slices.Sorted(maps.Keys(diff)))
	}
	// What was captured fits together: the last line of the file is not older
	// than the last one in the log.
	lines := strings.Split(strings.TrimSpace(string(diff["data/open"])), "\n")
	last := ""
	for line := range strings.Lines(string(log[:status.LogBytes])) {
		said := strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:])
		if _, err := strconv.Atoi(said); err == nil { // not the listener
			last = "f" + said
		}
	}
	equal(t, "last number in file and log", last, lines[len(lines)-1])

	wantCode(t, "a second time to the same file", c.checkpoint(t.Context(), file, 0), codes.AlreadyExists)
	n.nothingLeft(t, filepath.Dir(file), "c.tar")
	must(t, c.checkpoint(t.Context(), filepath.Join(filepath.Dir(file), "second.tar"), 0))
	c.goesOn(t)
}

// readArchive returns the regular files of a tar, and other entries empty.
func readArchive(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	return readTar(t, f)
}

func readTar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(t, err)
		b, err := io.ReadAll(in)
		must(t, err)
		out[strings.TrimSuffix(h.Name, "/")] = b
	}
}

func emptyDir(t *testing.T, dir string, but ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(but, e.Name()) {
			t.Errorf("%s is left in %s", e.Name(), dir)
		}
	}
}

// nothingLeft: neither where the archive was to be nor in the daemon's own directory.
func (n *node) nothingLeft(t *testing.T, dir string, but ...string) {
	t.Helper()
	emptyDir(t, dir, but...)
	if n.own != nil {
		emptyDir(t, n.own.Dir("state", "checkpoints"))
	}
}

// checkpointRestored has runc, and not Berth, restore what the archive holds into
// another pod: the processes go on where they were, beside those they are copies of.
func checkpointRestored(t *testing.T, n *node) {
	n.criu(t)
	c := n.pod(t).counter(t)
	dir := t.TempDir()
	must(t, c.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 0))
	got := readArchive(t, filepath.Join(dir, "c.tar"))
	other := n.pod(t).create(t, shell(counter))
	bundle := filepath.Join(dir, "bundle")
	images := filepath.Join(dir, "images")
	must(t, errors.Join(os.Mkdir(bundle, 0o700), os.Mkdir(images, 0o700)))
	for name, b := range got {
		if image, ok := strings.CutPrefix(name, "checkpoint/"); ok {
			must(t, os.WriteFile(filepath.Join(images, image), b, 0o600))
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, "diff.tar"), got["rootfs-diff.tar"], 0o600))
	made := n.own.Dir("run", "containers", other.id)
	var spec specs.Spec
	b, err := os.ReadFile(filepath.Join(made, "config.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &spec))
	spec.Root.Path = filepath.Join(made, "rootfs")
	spec.Linux.CgroupsPath += "-restored"
	b, err = json.Marshal(spec)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600))
	var deleted []string
	must(t, json.Unmarshal(got["deleted.files"], &deleted))
	script := "set -e; cd " + spec.Root.Path + "; for f in"
	for _, d := range deleted {
		script += " ." + d
	}
	runc := os.Getenv("BERTH_TEST_RUNC") + " --root " + filepath.Join(dir, "state")
	script += `; do rm -rf "$f"; done; tar xf ` + filepath.Join(dir, "diff.tar") + "; cd " + dir + "; " + runc +
		" restore --detach --bundle " + bundle + " --image-path " + images + " --work-path " + dir +
		" --tcp-established --ext-unix-sk --file-locks --manage-cgroups-mode ignore copy </dev/null 2>err | cat >out & wait"
	t.Cleanup(func() {
		if out, err := n.own.Space().Command(context.Background(), "/bin/sh", "-c", runc+" delete --force copy").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	// The pipe to cat lasts as long as the copy does.
	ended := make(chan []byte, 1)
	cmd := n.own.Space().Command(context.WithoutCancel(t.Context()), "/bin/sh", "-c", script)
	go func() { out, _ := cmd.CombinedOutput(); ended <- out }()
	read := func() string { b, _ := os.ReadFile(filepath.Join(dir, "out")); return string(b) }
	if !poll(func() bool { return strings.Count(read(), "\n") > 2 }) {
		told, _ := os.ReadFile(filepath.Join(dir, "err"))
		log, _ := os.ReadFile(filepath.Join(dir, "restore.log"))
		t.Fatalf("the copy says %q; runc: %s; CRIU: %s", read(), told, log[max(0, len(log)-3000):])
	}
	first, _, _ := strings.Cut(read(), "\n")
	from, err := strconv.Atoi(first)
	must(t, err)
	lines := strings.Split(strings.TrimSpace(string(readTar(t, strings.NewReader(string(got["rootfs-diff.tar"])))["data/open"])), "\n")
	equal(t, "the first number of the copy", "f"+strconv.Itoa(from-1), lines[len(lines)-1])
	c.goesOn(t)
}

// checkpointWithCommands: those that end are waited for, those that come wait,
// and those that stay are the answer.
func checkpointWithCommands(t *testing.T, n *node) {
	n.criu(t)
	c := n.pod(t).counter(t)
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() { done <- c.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 0) }()
	probes := 0
	for over := false; !over; probes++ {
		select {
		case err := <-done:
			must(t, err)
			over = true
		default:
			equal(t, "a probe", c.sh(t, "echo well"), "well")
		}
	}
	t.Logf("%d probes", probes)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := make(chan struct{})
	go func() {
		close(began)
		_, _ = n.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"/bin/sh", "-c", "touch /began; sleep 1000"}})
	}()
	<-began
	eventually(t, "the command runs", func() bool { return c.exec(t, "/bin/busybox", "test", "-e", "/began").GetExitCode() == 0 })
	err := c.checkpoint(t.Context(), filepath.Join(dir, "d.tar"), 0)
	wantCode(t, "with a command that stays", err, codes.FailedPrecondition)
	has(t, "the answer", err.Error(), "exec")
	c.goesOn(t)
	n.nothingLeft(t, dir, "c.tar")
}

func checkpointRefused(t *testing.T, n *node) {
	n.criu(t)
	p := n.pod(t)
	dir := t.TempDir()
	multipath := p.run(t, shell("/probe echo 0.0.0.0:8081 & while :; do echo x; sleep 0.1; done"))
	eventually(t, "it listens", func() bool {
		return strings.Contains(multipath.sh(t, "cat /proc/net/tcp /proc/net/tcp6"), ":1F91 ")
	})
	err := multipath.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 0)
	wantCode(t, "a socket that CRIU does not know", err, codes.FailedPrecondition)
	has(t, "the answer", err.Error(), "GODEBUG=multipathtcp=0")
	multipath.goesOn(t)
	created := p.create(t, shell(counter))
	wantCode(t, "a container that was not started", created.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 0), codes.FailedPrecondition)
	c := p.counter(t)
	for _, bad := range []string{"", "c.tar", dir + "/../c.tar", dir + "/none/c.tar"} {
		wantCode(t, "location "+bad, c.checkpoint(t.Context(), bad, 0), codes.InvalidArgument)
	}
	wantCode(t, "negative time-out", c.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), -1), codes.InvalidArgument)
	ended := p.run(t, probe("exit", "0"))
	ended.wait(t)
	wantCode(t, "a container that has ended", ended.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 0), codes.FailedPrecondition)
	n.nothingLeft(t, dir)
	c.goesOn(t)
}

// large is a container whose dump takes its time.
func (p *pod) large(t *testing.T) *container {
	t.Helper()
	c := p.run(t, shell(`/probe eat 200 & i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done`))
	c.waitLog(t, "ate")
	return c
}

func checkpointTimeOut(t *testing.T, n *node) {
	n.criu(t)
	c := n.pod(t).large(t)
	dir := t.TempDir()
	wantCode(t, "a second is too short", c.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 1), codes.DeadlineExceeded)
	n.nothingLeft(t, dir)
	c.goesOn(t)
	must(t, c.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 0))
	c.goesOn(t)
}

func checkpointStopped(t *testing.T, n *node) {
	n.criu(t)
	c := n.pod(t).large(t)
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() { done <- c.checkpoint(t.Context(), filepath.Join(dir, "c.tar"), 0) }()
	n.awaitDump(t, c, done)
	c.stop(t, 0)
	equal(t, "exit code", c.wait(t).GetExitCode(), 137)
	if err := <-done; err == nil {
		t.Log("the archive was through before")
		must(t, os.Remove(filepath.Join(dir, "c.tar")))
	} else {
		wantCode(t, "checkpoint of a container that was stopped", err, codes.FailedPrecondition)
	}
	n.nothingLeft(t, dir)
}

// awaitDump waits until CRIU writes, or the call is through.
func (n *node) awaitDump(t *testing.T, c *container, done chan error) {
	t.Helper()
	eventually(t, "CRIU begins", func() bool {
		entries, _ := os.ReadDir(n.own.Dir("state", "checkpoints", c.id, c.id, "images"))
		return len(entries) > 0 || len(done) > 0
	})
}

// checkpointKilled kills the daemon at many moments of a checkpoint. The
// container goes on without it, and the next one clears away what is left.
func checkpointKilled(t *testing.T, n *node) {
	n.criu(t)
	c := n.pod(t).counter(t)
	began := time.Now()
	dir := t.TempDir()
	must(t, c.checkpoint(t.Context(), filepath.Join(dir, "first.tar"), 0))
	took := time.Since(began)
	const cuts = 8
	for i := range cuts {
		name := strconv.Itoa(i) + ".tar"
		done := make(chan error, 1)
		go func() { done <- c.checkpoint(t.Context(), filepath.Join(dir, name), 0) }()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(took * time.Duration(i+1) / cuts):
		}
		must(t, n.own.Kill())
		c.goesOn(t)
		must(t, n.own.Start(t.Context()))
		equal(t, "state", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
		equal(t, "exec", c.sh(t, "echo ahoy"), "ahoy") // waits for the recovery
		if err := <-done; err == nil {
			if got := readArchive(t, filepath.Join(dir, name)); len(got["config.dump"]) == 0 {
				t.Error("the archive is not whole")
			}
			must(t, os.Remove(filepath.Join(dir, name)))
		}
		n.nothingLeft(t, dir, "first.tar")
	}
	must(t, c.checkpoint(t.Context(), filepath.Join(dir, "last.tar"), 0))
	c.goesOn(t)
}

// checkpointCtl: berthctl makes one, looks into it, and carries it through a
// registry, or says what the node lacks.
func checkpointCtl(t *testing.T, n *node) {
	ctl := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), filepath.Join(n.ctlProgram(t), "berthctl"), append([]string{"checkpoint"}, args...)...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	does := func(args ...string) string {
		t.Helper()
		out, err := ctl(args...)
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return out
	}
	c := n.pod(t).counter(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "c.tar")
	if n.checkpointable(t) != "" {
		out, err := ctl("create", "--timeout", "100s", c.id[:12], file)
		if err == nil {
			t.Error("made without CRIU")
		}
		has(t, "the answer", out, "CRIU", "docs/checkpoint.md")
		return
	}
	equal(t, "output", does("create", "--timeout", "100s", c.id[:12], file), file)
	has(t, "inspect", does("inspect", file), c.id, c.config.Metadata.Name, c.p.config.Metadata.Name, c.p.status(t).GetNetwork().GetIp(), "runc")
	whole := filepath.Join(dir, "pod")
	equal(t, "output", does("create", "--pod", c.p.config.Metadata.Name, whole), whole)
	for i, path := range []string{file, whole} {
		ref, back := n.ref("checkpoints/"+strconv.Itoa(i)+":1"), filepath.Join(dir, "back"+strconv.Itoa(i))
		has(t, "push", does("push", path, ref), ref+"@sha256:")
		equal(t, "pull", does("pull", ref, back), back)
		out, err := exec.CommandContext(t.Context(), "diff", "-r", path, back).CombinedOutput()
		equal(t, "what came back: "+string(out), err, nil)
	}
	n.cleanRuns(t)
	out := does("restore", filepath.Join(dir, "back1"), "--name", "again")
	has(t, "restore", out, c.p.config.Metadata.Namespace+"/again", c.config.Metadata.Name)
	fields := strings.Fields(out)
	copied := &container{p: c.p, id: fields[len(fields)-1], config: c.config}
	equal(t, "state", copied.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	if copied.sh(t, "sed -n 1p /data/open; cat /dev/shm/kept") != "f1\ntmp" {
		t.Error("files and shared memory are not what they were")
	}
	at := copied.lastOf(t, "/data/open")
	eventually(t, "the copy goes on", func() bool { return copied.lastOf(t, "/data/open") > at })
	c.goesOn(t)
}
