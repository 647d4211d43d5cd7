package suite

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/cri/unixsock"
)

func eventStories() []story {
	return []story{
		{name: "events/a life in order", tell: eventsOfALife},
		{name: "events/no gap over a killed daemon", owned: true, tell: eventsOverAKill},
		{name: "events/what the daemon did is told", owned: true, tell: timeIsExplained},
	}
}

// eventsOfALife follows a pod and a container from beginning to end.
func eventsOfALife(t *testing.T, n *node) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := n.rt.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	must(t, err)
	got := make(chan *runtimeapi.ContainerEventResponse, 1024)
	go func() {
		defer close(got)
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			got <- e
		}
	}()
	// The stream is open when events arrive on it.
	for open := false; !open; {
		first := n.pod(t)
		first.remove(t)
		select {
		case e := <-got:
			open = e != nil
			if !open {
				t.Fatal("the stream has ended")
			}
		default:
		}
	}
	p := n.pod(t)
	c := p.run(t, image("busybox:1"), shell("exit 7"))
	c.wait(t)
	c.remove(t)
	p.remove(t)
	var of = map[string][]string{}
	for !slices.Contains(of[p.id], "DELETED") {
		e := <-got
		if e == nil {
			t.Fatal("the stream has ended; so far: ", of)
		}
		id := e.GetContainerId()
		of[id] = append(of[id], strings.TrimSuffix(strings.TrimPrefix(e.GetContainerEventType().String(), "CONTAINER_"), "_EVENT"))
		if (id == p.id || id == c.id) && n.own != nil && e.GetPodSandboxStatus().GetMetadata().GetUid() != p.config.GetMetadata().GetUid() {
			t.Errorf("event %v of %s lacks the status of its pod", e.GetContainerEventType(), id)
		}
	}
	equal(t, "events of the container", strings.Join(of[c.id], " "), "CREATED STARTED STOPPED DELETED")
	if n.own != nil {
		equal(t, "events of the pod", strings.Join(of[p.id], " "), "CREATED STARTED STOPPED DELETED")
	}
}

// admin is a client of the daemon's own API.
func (n *node) admin(t *testing.T) admin.AdminClient {
	t.Helper()
	path := n.own.Dir("run", "admin.sock")
	conn, err := grpc.NewClient("passthrough:///admin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return unixsock.Dial(ctx, path) }))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return admin.NewAdminClient(conn)
}

// journal reads the events after a number.
func journal(t *testing.T, c admin.AdminClient, since uint64) (all []*admin.Event) {
	t.Helper()
	stream, err := c.Events(t.Context(), &admin.EventsRequest{Since: since}, grpc.WaitForReady(true))
	must(t, err)
	for {
		e, err := stream.Recv()
		if err != nil {
			equal(t, "the end of the journal", err.Error(), "EOF")
			return all
		}
		all = append(all, e)
	}
}

// eventsOverAKill lets a container end while no daemon runs, and goes on to
// read where it was.
func eventsOverAKill(t *testing.T, n *node) {
	p := n.pod(t)
	ending, file := endsWhen(t)
	ends := p.run(t, ending)
	before := journal(t, n.admin(t), 0)
	last := before[len(before)-1].GetSeq()
	must(t, n.own.Kill())
	must(t, os.WriteFile(file, nil, 0o600))
	eventually(t, "the container ends without a daemon", func() bool { return len(ends.log(t)) == 1 })
	must(t, n.own.Start(t.Context()))
	ends.wait(t)
	var kinds []string
	for _, e := range journal(t, n.admin(t), last) {
		equal(t, "number of the event", e.GetSeq(), last+1)
		last = e.GetSeq()
		if e.GetId() == ends.id {
			kinds = append(kinds, e.GetKind())
			equal(t, "exit code in the event", e.GetExitCode(), 42)
		}
	}
	equal(t, "events of the container after the restart", strings.Join(kinds, " "), "container.stopped")
	if again := journal(t, n.admin(t), 0); again[0].GetSeq() != before[0].GetSeq() || again[len(before)-1].GetKind() != before[len(before)-1].GetKind() {
		t.Error("the restart has changed the journal")
	}
}

// timeIsExplained asks where the time of a pod went, and for the metrics.
func timeIsExplained(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, probe("sleep"))
	c.stop(t, 30)
	r, err := n.admin(t).Explain(t.Context(), &admin.ExplainRequest{Pod: p.id})
	must(t, err)
	equal(t, "pods", len(r.GetPods()), 1)
	var text []string
	for _, w := range r.GetPods()[0].GetWork() {
		text = append(text, strings.Repeat(">", int(w.GetDepth()))+w.GetName())
		if w.GetRunning() || w.GetError() != "" || w.GetTook() <= 0 {
			t.Error(w)
		}
	}
	equal(t, "name", r.GetPods()[0].GetName(), p.config.GetMetadata().GetName())
	all := strings.Join(text, " ")
	for _, want := range []string{"RunPodSandbox >sandbox.run >>journal >>cgroup >>namespaces >>network >>>ADD ", "CreateContainer >container.create", ">>>create ",
		"StartContainer >container.start >>start", "StopContainer >container.stop >>ask"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in %s", want, all)
		}
	}
	m, err := n.admin(t).Metrics(t.Context(), &admin.MetricsRequest{})
	must(t, err)
	for _, want := range []string{`berth_verb_duration_seconds_count{result="ok",verb="sandbox.run"}`, `berth_rpc_calls_total{code="OK",method="StartContainer"}`,
		`berth_step_duration_seconds_count{step="network",verb="sandbox.run"}`, `berth_cni_call_duration_seconds_count{command="ADD"`, "berth_shims_memory_bytes", "berth_container_logs_failing 0"} {
		if !strings.Contains(string(m.GetText()), want) {
			t.Errorf("no metric %s", want)
		}
	}
}
