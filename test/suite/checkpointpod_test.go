package suite

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func checkpointPodStories() []story {
	return []story{
		{name: "checkpoint/pod", berth: true, tell: checkpointPod},
		{name: "checkpoint/pod refused", berth: true, tell: checkpointPodRefused},
		{name: "checkpoint/pod, killed daemon", owned: true, tell: checkpointPodKilled},
	}
}

func (p *pod) checkpoint(ctx context.Context, dir string, containers ...*container) error {
	r := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: dir}
	for _, c := range containers {
		r.ContainerIds = append(r.ContainerIds, c.id)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	_, err := p.n.rt.CheckpointPod(ctx, r)
	return err
}

// chain is a pod of three in which the first counts in shared memory, the second
// notes what it sees there, and the third what that one saw.
func (n *node) chain(t *testing.T) (*pod, []*container) {
	t.Helper()
	p := n.pod(t)
	const follows = `while :; do a=$(cat /dev/shm/FROM 2>/dev/null); [ -n "$a" ] && echo $a >/dev/shm/TO.new && echo $a >>/seen && mv /dev/shm/TO.new /dev/shm/TO && echo $a; sleep 0.05; done`
	all := []*container{
		p.run(t, shell(`i=0; while :; do i=$((i+1)); echo $i >>/seen; echo $i >/dev/shm/one.new; mv /dev/shm/one.new /dev/shm/one; echo $i; sleep 0.05; done`)),
		p.run(t, shell(strings.NewReplacer("FROM", "one", "TO", "two").Replace(follows))),
		p.run(t, shell(strings.NewReplacer("FROM", "two", "TO", "three").Replace(follows))),
	}
	for _, c := range all {
		c.waitLog(t, "\n")
	}
	return p, all
}

// checkpointPod: what was captured is of one moment. No container has seen what
// the one before it had not done yet, and the files are as the shared memory is.
func checkpointPod(t *testing.T, n *node) {
	n.criu(t)
	p, all := n.chain(t)
	dir := t.TempDir()
	must(t, p.checkpoint(t.Context(), dir, all...))
	for _, c := range all {
		c.goesOn(t)
	}
	var files []string
	for _, c := range all {
		files = append(files, c.config.Metadata.Name+".tar")
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := slices.Sorted(slices.Values(append(slices.Clone(files), "containers.dump", "devshm-checkpoint.tar", "pod.dump", "pod.options")))
	equal(t, "files", strings.Join(got, " "), strings.Join(want, " "))
	b, err := os.ReadFile(filepath.Join(dir, "pod.dump"))
	must(t, err)
	var config struct{ Metadata struct{ Name, UID string } }
	must(t, json.Unmarshal(b, &config))
	equal(t, "pod", config.Metadata.Name+config.Metadata.UID, p.config.Metadata.Name+p.config.Metadata.Uid)

	shm := readArchive(t, filepath.Join(dir, "devshm-checkpoint.tar"))
	last := func(b []byte) int {
		t.Helper()
		lines := strings.Fields(string(b))
		if len(lines) == 0 {
			t.Fatal("nothing was written")
		}
		i, err := strconv.Atoi(lines[len(lines)-1])
		must(t, err)
		return i
	}
	var seen []int
	for i, f := range files {
		archive := readArchive(t, filepath.Join(dir, f))
		has(t, "CRIU's log", string(archive["dump.log"]), "Dumping finished successfully")
		own := last(readTar(t, strings.NewReader(string(archive["rootfs-diff.tar"])))["seen"])
		shared := last(shm[[]string{"one", "two", "three"}[i]])
		if shared > own {
			t.Errorf("container %d has written %d, and shared %d", i, own, shared)
		}
		if i > 0 && own > seen[i-1] {
			t.Errorf("container %d has seen %d when the one before it had written %d", i, own, seen[i-1])
		}
		seen = append(seen, own)
	}
	t.Logf("written and seen: %v", seen)
	n.nothingLeft(t, dir, want...)
}

func checkpointPodRefused(t *testing.T, n *node) {
	n.criu(t)
	p, other := n.pod(t), n.pod(t)
	c, created, foreign := p.run(t, probe("sleep")), p.create(t, probe("sleep")), other.run(t, probe("sleep"))
	c.waitLog(t, "ready")
	full, dir := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(full, "theirs"), nil, 0o600))
	for _, tc := range []struct {
		what string
		err  error
		code codes.Code
	}{
		{"no containers", p.checkpoint(t.Context(), dir), codes.InvalidArgument},
		{"twice the same", p.checkpoint(t.Context(), dir, c, c), codes.InvalidArgument},
		{"another pod's", p.checkpoint(t.Context(), dir, c, foreign), codes.InvalidArgument},
		{"one that does not run", p.checkpoint(t.Context(), dir, c, created), codes.FailedPrecondition},
		{"a directory with files", p.checkpoint(t.Context(), full, c), codes.FailedPrecondition},
		{"no directory", p.checkpoint(t.Context(), dir+"/none", c), codes.InvalidArgument},
		{"a relative path", p.checkpoint(t.Context(), "x", c), codes.InvalidArgument},
	} {
		wantCode(t, tc.what, tc.err, tc.code)
	}
	_, err := n.rt.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: dir, ContainerIds: []string{c.id},
		Options: map[string]string{"speed": "high"}})
	wantCode(t, "an option", err, codes.InvalidArgument)
	has(t, "the answer", err.Error(), "speed")
	_, err = n.rt.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: "none", OutputPath: dir, ContainerIds: []string{c.id}})
	wantCode(t, "an unknown pod", err, codes.NotFound)
	n.nothingLeft(t, dir)
	n.nothingLeft(t, full, "theirs")
	equal(t, "state", c.sh(t, "echo well"), "well")
}

// checkpointPodKilled kills the daemon while the containers stand still: all go on.
func checkpointPodKilled(t *testing.T, n *node) {
	n.criu(t)
	p, all := n.chain(t)
	for i := range 4 {
		dir := t.TempDir()
		done := make(chan error, 1)
		go func() { done <- p.checkpoint(t.Context(), dir, all...) }()
		eventually(t, "CRIU writes", func() bool {
			found, _ := filepath.Glob(n.own.Dir("state", "checkpoints", p.id, "*", "images", "*"))
			return len(found) > 0 || len(done) > 0
		})
		time.Sleep(time.Duration(i) * time.Second)
		must(t, n.own.Kill())
		for _, c := range all {
			c.goesOn(t)
		}
		must(t, n.own.Start(t.Context()))
		for _, c := range all {
			equal(t, "exec", c.sh(t, "echo well"), "well")
		}
		if err := <-done; err == nil {
			continue
		}
		equal(t, "state", p.status(t).GetState(), runtimeapi.PodSandboxState_SANDBOX_READY)
		eventually(t, "the recovery is through", func() bool {
			entries, _ := os.ReadDir(n.own.Dir("state", "checkpoints"))
			return len(entries) == 0
		})
		n.nothingLeft(t, dir)
	}
	dir := t.TempDir()
	must(t, p.checkpoint(t.Context(), dir, all...))
}
