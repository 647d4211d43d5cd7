package suite

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func restoreStories() []story {
	return []story{
		{name: "checkpoint/restored", berth: true, tell: restored},
		{name: "checkpoint/restored forms", berth: true, tell: restoredForms},
		{name: "checkpoint/restored pod of three", berth: true, tell: restoredChain},
		{name: "checkpoint/restored and not started", berth: true, tell: restoredNotStarted},
		{name: "checkpoint/restore refused", berth: true, tell: restoreRefused},
		{name: "checkpoint/restore, killed daemon", owned: true, tell: restoreKilled},
	}
}

// again is the configuration of a copy of a pod.
func (p *pod) again(t *testing.T) *runtimeapi.PodSandboxConfig {
	c := proto.Clone(p.config).(*runtimeapi.PodSandboxConfig)
	c.Metadata.Name, c.Metadata.Uid, c.LogDirectory = "copy-"+strings.ToLower(rand.Text()[:8]), rand.Text(), t.TempDir()
	return c
}

func restoreRequest(dir string, config *runtimeapi.PodSandboxConfig, all ...*container) *runtimeapi.RestorePodRequest {
	r := &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: config}
	for _, c := range all {
		r.ContainerConfigs = append(r.ContainerConfigs, proto.Clone(c.config).(*runtimeapi.ContainerConfig))
	}
	return r
}

// restore makes a copy of a pod, whose containers are created.
func (n *node) restore(t *testing.T, r *runtimeapi.RestorePodRequest) (*pod, []*container) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	out, err := n.rt.RestorePod(ctx, r)
	must(t, err)
	p := &pod{n: n, id: out.GetPodSandboxId(), config: r.GetConfig()}
	t.Cleanup(func() { p.remove(t) })
	equal(t, "containers", len(out.GetRestoredContainers()), len(r.GetContainerConfigs()))
	var all []*container
	for i, rc := range out.GetRestoredContainers() {
		c := &container{p: p, id: rc.GetContainerId(), config: r.ContainerConfigs[i]}
		equal(t, "name", rc.GetName(), c.config.Metadata.Name)
		equal(t, "state", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_CREATED)
		all = append(all, c)
	}
	return p, all
}

// checkpointed makes a checkpoint of a pod's containers in a new directory.
func (p *pod) checkpointed(t *testing.T, all ...*container) string {
	t.Helper()
	dir := t.TempDir()
	must(t, p.checkpoint(t.Context(), dir, all...))
	return dir
}

// lastOf is the last number in a file of a container.
func (c *container) lastOf(t *testing.T, file string) int {
	t.Helper()
	i, err := strconv.Atoi(strings.TrimPrefix(c.sh(t, "tail -n 1 "+file), "f"))
	must(t, err)
	return i
}

// restored: the processes go on where they were, in another pod with another
// address and name, and are as those of any container from then on.
func restored(t *testing.T, n *node) {
	n.criu(t)
	from := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "first" })
	c := from.run(t, shell("trap 'echo asked; exit 7' TERM; echo ram >/dev/note; "+counter), func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"NET_RAW"}}
	})
	c.waitLog(t, "3\n")
	listens := func(c *container) func() bool {
		return func() bool { return strings.Contains(c.sh(t, "cat /proc/net/tcp /proc/net/tcp6"), ":1F90 ") }
	}
	eventually(t, "it listens", listens(c))
	dir := from.checkpointed(t, c)
	c.goesOn(t)
	config := from.again(t)
	config.Hostname = "second"
	p, all := n.restore(t, restoreRequest(dir, config, c))
	d := all[0]
	if b, err := os.ReadFile(d.logFile()); err == nil && len(b) > 0 {
		t.Errorf("it said %q before it was started", b)
	}
	d.start(t)
	d.goesOn(t)
	equal(t, "state", d.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	diff := readTar(t, strings.NewReader(string(readArchive(t, filepath.Join(dir, c.config.Metadata.Name+".tar"))["rootfs-diff.tar"])))
	lines := strings.Split(strings.TrimSpace(string(diff["data/open"])), "\n")
	last, err := strconv.Atoi(strings.TrimPrefix(lines[len(lines)-1], "f"))
	must(t, err)
	equal(t, "the first number of the copy", d.log(t)[0].s, strconv.Itoa(last+1))
	if got := d.lastOf(t, "/data/open"); got <= last {
		t.Errorf("the copy writes %d after %d", got, last)
	}
	equal(t, "what was removed of the image", d.sh(t, "ls -d /etc/group /home/* 2>/dev/null || true"), "/home/new")
	equal(t, "shared memory", d.sh(t, "cat /dev/shm/kept"), "tmp")
	equal(t, "host name", d.sh(t, "hostname"), "second")
	equal(t, "host name of the first", c.sh(t, "hostname"), "first")
	ip := p.status(t).GetNetwork().GetIp()
	if ip == "" || ip == from.status(t).GetNetwork().GetIp() {
		t.Errorf("address %q", ip)
	}
	eventually(t, "it listens on", listens(d))
	has(t, "its answer", c.sh(t, "(echo ahoy; sleep 1) | timeout 10 /bin/busybox nc "+ip+" 8080 || true"), "ahoy")
	equal(t, "file of a tmpfs", d.sh(t, "cat /dev/note"), "ram")
	pid := d.sh(t, "grep -h '^CapBnd\\|^Seccomp:\\|^NoNewPrivs' /proc/1/status")
	equal(t, "rights", pid, c.sh(t, "grep -h '^CapBnd\\|^Seccomp:\\|^NoNewPrivs' /proc/1/status"))
	emptyDir(t, filepath.Join(n.ownDir(t, "state", "containers", d.id), "restore"))
	st, err := n.rt.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: d.id})
	must(t, err)
	if st.GetStats().GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("statistics: %v", st)
	}
	d.stop(t, 30)
	s := d.wait(t)
	equal(t, "exit code", s.GetExitCode(), 7)
	has(t, "its last words", d.text(t), "asked")
	c.goesOn(t)
	// The same checkpoint once more: nothing in it was changed.
	_, more := n.restore(t, restoreRequest(dir, from.again(t), c))
	more[0].start(t)
	more[0].goesOn(t)
	equal(t, "the first number of the second copy", more[0].log(t)[0].s, strconv.Itoa(last+1))
}

// restoredForms: containers of all kinds, that are as before in what they may do.
func restoredForms(t *testing.T, n *node) {
	n.criu(t)
	const count = `i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done`
	for _, tc := range []struct {
		name   string
		pod    func(*runtimeapi.PodSandboxConfig)
		script string
		edit   edit
		look   func(t *testing.T, c *container)
	}{
		{name: "read-only root", edit: security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }),
			look: func(t *testing.T, c *container) {
				equal(t, "a file is made", c.exec(t, "/bin/sh", "-c", "echo x >/written").GetExitCode() != 0, true)
				equal(t, "shared memory", c.sh(t, "echo x >/dev/shm/written; cat /dev/shm/written"), "x")
			}},
		{name: "terminal", edit: func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true },
			look: func(t *testing.T, c *container) { has(t, "its output", c.sh(t, "readlink /proc/1/fd/1"), "/dev/pts/") }},
		{name: "another user", edit: security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000}, []int64{7}
		}), look: func(t *testing.T, c *container) {
			equal(t, "user", c.sh(t, "grep '^Uid:' /proc/1/status | tr '\t' ' '"), "Uid: 1000 1000 1000 1000")
			has(t, "groups", c.sh(t, "grep '^Groups:' /proc/1/status"), "7")
		}},
		{name: "seccomp", edit: security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		}), look: func(t *testing.T, c *container) {
			equal(t, "filter", c.sh(t, "grep '^Seccomp:' /proc/1/status | tr '\t' ' '"), "Seccomp: 2")
		}},
		{name: "connection", script: `GODEBUG=multipathtcp=0,containermaxprocs=0 /probe echo 127.0.0.1:8080 & sleep 0.5; sleep 1000 | /bin/busybox nc 127.0.0.1 8080 & sleep 1; `,
			look: func(t *testing.T, c *container) {
				has(t, "it listens on", c.sh(t, "cat /proc/net/tcp /proc/net/tcp6"), ":1F90 ")
			}},
		{name: "shared PID namespace", pod: func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}, look: func(t *testing.T, c *container) {
			has(t, "the holder", c.sh(t, "cat /proc/1/comm"), "berth-shim")
		}},
		{name: "mount over a link of the image", edit: func(c *runtimeapi.ContainerConfig) { // as /var/run is in most
			image("linked:1")(c)
			c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/out/mounted"}}
		}, look: func(t *testing.T, c *container) {
			equal(t, "volume", c.sh(t, "echo x >/out/mounted/written; cat /etc/mounted/written"), "x")
		}},
		{name: "mounts", edit: func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/data"}, {HostPath: t.TempDir(), ContainerPath: "/fixed", Readonly: true}}
		}, look: func(t *testing.T, c *container) {
			equal(t, "volume", c.sh(t, "echo x >/data/written; cat /data/written"), "x")
			equal(t, "read-only volume", c.exec(t, "/bin/sh", "-c", "echo x >/fixed/written").GetExitCode() != 0, true)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.pod == nil {
				tc.pod = func(*runtimeapi.PodSandboxConfig) {}
			}
			if tc.edit == nil {
				tc.edit = func(*runtimeapi.ContainerConfig) {}
			}
			from := n.pod(t, tc.pod)
			c := from.run(t, shell(tc.script+count), tc.edit)
			c.waitLog(t, "3")
			tc.look(t, c)
			groups := func(c *container) string { return c.sh(t, "cat /proc/1/cgroup; ls /sys/fs/cgroup") }
			want := groups(c)
			for range 2 { // the second time of what is restored
				d := c.startedCopy(t)
				tc.look(t, d)
				equal(t, "control group", groups(d), want)
				c.stop(t, 0)
				equal(t, "exit code", c.wait(t).GetExitCode(), 137)
				c = d
			}
		})
	}
}

// startedCopy restores a container from a new checkpoint, in a pod of its own, and
// starts it. In a PID namespace that is shared, numbers may be taken: then the
// start fails, and another pod is another chance.
func (c *container) startedCopy(t *testing.T) *container {
	t.Helper()
	n, dir := c.p.n, c.p.checkpointed(t, c)
	for try := 0; ; try++ {
		_, all := n.restore(t, restoreRequest(dir, c.p.again(t), c))
		_, err := n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: all[0].id})
		if err != nil && try < 5 && strings.Contains(err.Error(), "File exists") {
			continue
		}
		must(t, err)
		all[0].goesOn(t)
		return all[0]
	}
}

// ownDir is a path of the suite's own node.
func (n *node) ownDir(t *testing.T, elem ...string) string {
	if n.own == nil {
		return t.TempDir()
	}
	return n.own.Dir(elem...)
}

// restoredChain: all of a pod go on from the same moment.
func restoredChain(t *testing.T, n *node) {
	n.criu(t)
	from, all := n.chain(t)
	dir := from.checkpointed(t, all...)
	_, copies := n.restore(t, restoreRequest(dir, from.again(t), all...))
	for _, c := range copies {
		c.start(t)
	}
	for i, c := range copies {
		c.goesOn(t)
		archive := readArchive(t, filepath.Join(dir, all[i].config.Metadata.Name+".tar"))
		seen := strings.Fields(string(readTar(t, strings.NewReader(string(archive["rootfs-diff.tar"])))["seen"]))
		before, err := strconv.Atoi(seen[len(seen)-1])
		must(t, err)
		first, err := strconv.Atoi(c.log(t)[0].s)
		must(t, err)
		if first < before || first > before+100 {
			t.Errorf("container %d goes on at %d after %d", i, first, before)
		}
	}
}

// restoredNotStarted: such a container can be stopped and removed as any other.
func restoredNotStarted(t *testing.T, n *node) {
	n.criu(t)
	from := n.pod(t)
	c := from.counter(t)
	dir := from.checkpointed(t, c)
	_, all := n.restore(t, restoreRequest(dir, from.again(t), c))
	d := all[0]
	_, err := n.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: d.id, Cmd: []string{"/bin/busybox", "true"}})
	wantCode(t, "exec before the start", err, codes.FailedPrecondition)
	d.stop(t, 10)
	if code := d.wait(t).GetExitCode(); code != 143 && code != 137 {
		t.Errorf("exit code %d", code)
	}
	_, err = n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: d.id})
	wantCode(t, "start after the stop", err, codes.FailedPrecondition)
	d.remove(t)
	p, all := n.restore(t, restoreRequest(dir, from.again(t), c))
	all[0].remove(t)
	p.remove(t)
	_, err = n.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	wantCode(t, "status", err, codes.NotFound)
	c.goesOn(t)
}

// restoreRefused: what does not fit is refused, and nothing remains of it.
func restoreRefused(t *testing.T, n *node) {
	n.criu(t)
	from := n.pod(t)
	c := from.counter(t)
	dir := from.checkpointed(t, c)
	pods := func() int {
		r, err := n.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		must(t, err)
		return len(r.GetItems())
	}
	before := pods()
	for _, tc := range []struct {
		what string
		edit func(r *runtimeapi.RestorePodRequest)
		code codes.Code
		says string
	}{
		{"an option", func(r *runtimeapi.RestorePodRequest) { r.Options = map[string]string{"speed": "high"} }, codes.InvalidArgument, "speed"},
		{"a relative path", func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = "x" }, codes.InvalidArgument, "absolute"},
		{"no checkpoint", func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = t.TempDir() }, codes.InvalidArgument, "pod.options"},
		{"a handler that does not exist", func(r *runtimeapi.RestorePodRequest) { r.RuntimeHandler = "none" }, codes.InvalidArgument, "none"},
		{"no containers", func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = nil }, codes.InvalidArgument, c.config.Metadata.Name},
		{"another container", func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Metadata.Name = "other" }, codes.InvalidArgument, "other"},
		{"no metadata", func(r *runtimeapi.RestorePodRequest) { r.Config.Metadata = nil }, codes.InvalidArgument, "metadata"},
		{"other arguments", func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Args = []string{"more"} }, codes.FailedPrecondition, "process.args"},
		{"another variable", func(r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[0].Envs = []*runtimeapi.KeyValue{{Key: "WHO", Value: []byte("secret")}}
		}, codes.FailedPrecondition, "WHO"},
		{"another user", func(r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[0].Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		}, codes.FailedPrecondition, "process."},
		{"more rights", func(r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[0].Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		}, codes.FailedPrecondition, "capabilities"},
		{"one more mount", func(r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[0].Mounts = []*runtimeapi.Mount{{HostPath: "/tmp", ContainerPath: "/more"}}
		}, codes.FailedPrecondition, "/more"},
		{"another image", func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Image.Image = n.pull(t, "zstd:1") }, codes.FailedPrecondition, "image"},
		{"an image that is not here", func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Image.Image = n.ref("absent:1") }, codes.NotFound, "pull"},
		{"a name that is taken", func(r *runtimeapi.RestorePodRequest) { r.Config.Metadata = from.config.Metadata }, codes.AlreadyExists, ""},
	} {
		r := restoreRequest(dir, from.again(t), c)
		tc.edit(r)
		_, err := n.rt.RestorePod(t.Context(), r)
		wantCode(t, tc.what, err, tc.code)
		if err != nil {
			has(t, tc.what, err.Error(), tc.says)
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v", tc.what, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := n.rt.RestorePod(ctx, restoreRequest(dir, from.again(t), c))
	wantCode(t, "too short a time", err, codes.DeadlineExceeded)
	eventually(t, "nothing is left", func() bool { return pods() == before })

	// Images that are damaged are refused before CRIU has them; what only CRIU
	// sees fails at the start, with its reason: a file that was open is missing.
	broken := func(file string, change func([]byte) []byte) *runtimeapi.RestorePodRequest {
		to := t.TempDir()
		must(t, os.CopyFS(to, os.DirFS(dir)))
		rewrite(t, filepath.Join(to, c.config.Metadata.Name+".tar"), file, change)
		return restoreRequest(to, from.again(t), c)
	}
	_, err = n.rt.RestorePod(t.Context(), broken("checkpoint/files.img", func(b []byte) []byte { return b[:len(b)/2] }))
	wantCode(t, "a damaged image", err, codes.InvalidArgument)
	_, all := n.restore(t, broken("rootfs-diff.tar", func([]byte) []byte { return make([]byte, 1024) }))
	_, err = n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: all[0].id})
	wantCode(t, "start without an open file", err, codes.FailedPrecondition)
	if err != nil {
		has(t, "the reason", err.Error(), "CRIU says")
	}
	st := all[0].status(t)
	equal(t, "state", st.GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
	equal(t, "reason", st.GetReason(), "StartError")
	c.goesOn(t)
}

// rewrite changes one file of a tar.
func rewrite(t *testing.T, file, name string, change func([]byte) []byte) {
	t.Helper()
	in, err := os.Open(file)
	must(t, err)
	defer in.Close()
	out, err := os.Create(file + ".new")
	must(t, err)
	defer out.Close()
	to, from := tar.NewWriter(out), tar.NewReader(in)
	for {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		b, err := io.ReadAll(from)
		must(t, err)
		if h.Name == name {
			b = change(b)
			h.Size = int64(len(b))
		}
		must(t, to.WriteHeader(h))
		_, err = to.Write(b)
		must(t, err)
	}
	must(t, errors.Join(to.Close(), os.Rename(file+".new", file)))
}

// restoreKilled kills the daemon at many moments of a restoring: afterwards the
// pod is there as a whole, or nothing of it.
func restoreKilled(t *testing.T, n *node) {
	n.criu(t)
	from, all := n.chain(t)
	dir := from.checkpointed(t, all...)
	began := time.Now()
	p, copies := n.restore(t, restoreRequest(dir, from.again(t), all...))
	took := time.Since(began)
	for _, c := range copies {
		must(t, errors.Join(n.own.Kill(), n.own.Start(t.Context())))
		equal(t, "state", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_CREATED)
		c.start(t)
	}
	must(t, errors.Join(n.own.Kill(), n.own.Start(t.Context())))
	for _, c := range copies {
		c.goesOn(t)
		equal(t, "a command", c.sh(t, "echo ahoy"), "ahoy")
	}
	p.remove(t)
	const cuts = 8
	for i := range cuts {
		config := from.again(t)
		done := make(chan error, 1)
		go func() { _, err := n.rt.RestorePod(t.Context(), restoreRequest(dir, config, all...)); done <- err }()
		time.Sleep(took * time.Duration(i) / cuts)
		must(t, errors.Join(n.own.Kill(), n.own.Start(t.Context())))
		err := <-done
		left := &pod{n: n}
		eventually(t, "all of it is there, or nothing", func() bool {
			left.id = ""
			r, err := n.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			must(t, err)
			for _, s := range r.GetItems() {
				if s.GetMetadata().GetUid() == config.Metadata.Uid {
					left.id = s.GetId()
				}
			}
			cs, err := n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: left.id}})
			must(t, err)
			return left.id == "" || len(cs.GetContainers()) == len(all)
		})
		if err == nil && left.id == "" {
			t.Errorf("cut %d: the answer was good, and the pod is gone", i)
		}
		if left.id != "" { // the answer did not get through, or it was made before
			left.remove(t)
		}
		for _, c := range all {
			c.goesOn(t)
		}
	}
	entries, err := os.ReadDir(n.own.Dir("state", "containers"))
	must(t, err)
	if len(entries) > len(all) {
		t.Errorf("%d directories of %d containers", len(entries), len(all))
	}
}
