package cni

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// NetworkState is what is known of one configuration directory.
type NetworkState struct {
	Dir      string    `json:"dir"`
	Handlers []string  `json:"handlers,omitempty"` // runtime handlers with this directory; none: all others
	Network  string    `json:"network,omitempty"`  // in use; "": none
	File     string    `json:"file,omitempty"`     // it comes from
	Ready    bool      `json:"ready"`
	Reason   string    `json:"reason,omitempty"` // why it is not ready
	Since    time.Time `json:"since"`            // it is ready, or not
	Checked  time.Time `json:"checked"`          // last
	Problems []string  `json:"problems,omitempty"`
}

// Readiness tells whether pods can be attached.
type Readiness struct {
	// Err is nil, or an Unavailable error about the network of pods whose
	// handler has none of its own. It says since when, as a time and not as an
	// age, so that it does not change from call to call: the kubelet writes it
	// into the node's status.
	Err error
	// Note is what an operator should know although Err is nil: files that were
	// ignored, networks of single handlers that are not ready. Mostly "".
	Note     string
	Networks []NetworkState // the one Err is about first
}

// Status answers from memory; what is older than Pace.Poll is found out anew in
// the background. Only the very first answer may take a second, or until ctx ends.
func (m *Manager) Status(ctx context.Context) Readiness {
	var r Readiness
	st, err := m.def.status(ctx)
	if err != nil {
		r.Err = err
		if !st.Since.IsZero() {
			r.Err = fmt.Errorf("%w (since %s)", err, st.Since.UTC().Format(time.RFC3339))
		}
	}
	r.Networks = append(r.Networks, st)
	for _, dir := range slices.Sorted(maps.Keys(m.dirs)) {
		d := m.dirs[dir]
		if d == m.def {
			continue
		}
		st, _ := d.status(ctx)
		st.Handlers = m.handlersOf(dir)
		r.Networks = append(r.Networks, st)
	}
	for i, n := range r.Networks {
		if i > 0 && !n.Ready {
			r.note("handlers %v have no network: %s", n.Handlers, n.Reason)
		}
		for _, p := range n.Problems {
			if r.Err == nil {
				r.note("ignored: %s", p)
			}
		}
	}
	return r
}

func (r *Readiness) note(format string, args ...any) {
	if r.Note != "" {
		r.Note += "; "
	}
	r.Note += fmt.Sprintf(format, args...)
}

func (m *Manager) handlersOf(dir string) []string {
	var out []string
	for _, h := range slices.Sorted(maps.Keys(m.cfg.HandlerDirs)) {
		if m.cfg.HandlerDirs[h] == dir {
			out = append(out, h)
		}
	}
	return out
}

// Describe returns the networks, and the attachments that are there or being
// made, for people.
func (m *Manager) Describe(ctx context.Context) any {
	out := struct {
		Networks    []NetworkState `json:"networks"`
		Attachments int            `json:"attachments"`
		PodCIDRs    []string       `json:"podCIDRs,omitempty"`
	}{Networks: m.Status(ctx).Networks}
	if ids, err := m.Owed(); err == nil {
		out.Attachments = len(ids)
	}
	for _, set := range m.ipRanges() {
		out.PodCIDRs = append(out.PodCIDRs, set[0].Subnet)
	}
	return out
}
