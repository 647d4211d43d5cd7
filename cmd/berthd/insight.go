package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/observe/stuck"
	"github.com/berth-dev/berth/observe/timeline"
	"github.com/berth-dev/berth/store"
)

var _ admin.Insight = (*node)(nil)

// Events reads the journal for the admin API, at the reader's pace.
func (n *node) Events(ctx context.Context, r *admin.EventsRequest, send func(*admin.Event) error) error {
	const chunk = 256
	for after := r.GetSince(); ; {
		events, more, err := n.db.Events(after, chunk)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := send(adminEvent(e)); err != nil {
				return err
			}
			after = e.Seq
		}
		switch {
		case len(events) > 0:
			continue
		case !r.GetFollow():
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func adminEvent(e store.Event) *admin.Event {
	return &admin.Event{
		Seq: e.Seq, At: e.At.UnixNano(), Kind: e.Kind, Id: e.ID, PodId: e.PodID, Name: e.Name, Namespace: e.Namespace,
		ExitCode: e.ExitCode, Reason: e.Reason,
	}
}

// Metrics returns the metrics for the admin API.
func (n *node) Metrics() ([]byte, error) { return n.watch.metrics.Text() }

// Explain tells what was done for a pod, and what it waits for. A pod is named
// by ID, prefix of an ID, name, or NAMESPACE/NAME; "" stands for all.
func (n *node) Explain(pod string) (*admin.ExplainResponse, error) {
	out := &admin.ExplainResponse{}
	known := n.watch.timeline.Pods(func(id, namespace, name string) bool {
		return pod == "" || strings.HasPrefix(id, pod) || pod == name || pod == namespace+"/"+name
	})
	for _, p := range known {
		out.Pods = append(out.Pods, n.explained(p))
	}
	if len(out.GetPods()) == 0 && pod != "" {
		return nil, fmt.Errorf("explain pod %q: nothing is remembered of it: it was last worked on before this daemon started, or too long ago (explain.pods): %w",
			pod, errdefs.ErrNotFound)
	}
	return out, nil
}

func (n *node) explained(p timeline.Pod) *admin.PodTimeline {
	out := &admin.PodTimeline{Id: p.ID, Name: p.Name, Namespace: p.Namespace, Dropped: uint64(p.Dropped)}
	for _, s := range p.Spans {
		out.Work = append(out.Work, &admin.Work{
			Depth: uint32(s.Depth), Kind: string(s.Work.Kind), Name: s.Work.Name, Object: s.Work.Object,
			Began: s.Began.UnixNano(), Took: s.Took.Nanoseconds(), Running: s.Running, Error: s.Error,
		})
	}
	who := stuck.Pod{ID: p.ID, Containers: []string{p.ID}}
	for _, c := range n.db.ContainersOf(p.ID) {
		who.Containers = append(who.Containers, c.ID)
		if pids, err := n.cgroups.Pids(c.Facts.CgroupPath); err == nil && c.Facts.CgroupPath != "" {
			who.Members = append(who.Members, pids...) // a group that has just gone has no processes
		}
	}
	for _, o := range n.Operations() {
		if o.GetSubject() == p.ID || slices.Contains(who.Containers, o.GetSubject()) {
			out.Unfinished = append(out.Unfinished, o)
		}
	}
	for _, s := range stuck.Find("/proc", who) {
		out.Processes = append(out.Processes, &admin.Process{Pid: int64(s.PID), Name: s.Name, State: s.State, Role: s.Role, Stack: s.Stack})
	}
	return out
}
