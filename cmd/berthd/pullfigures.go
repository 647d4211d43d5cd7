package main

import "github.com/berth-dev/berth/observe/metrics"

// pullFigures tell what pulls move and what they spare. How many pulls there
// were, and how they ended, is in the durations of the verb image.pull.
func (p *parts) pullFigures() []metrics.Figure {
	type set = func(float64, ...string)
	return []metrics.Figure{
		{Name: "berth_pulls_in_progress", Help: "Pulls under way.", Read: func(set set) { set(float64(len(p.images.Pulls()))) }},
		{Name: "berth_pull_layers_total", Help: "Layers that pulls asked for: fetched for those they unpacked, present for those the node had.",
			Labels: []string{"source"}, Counter: true, Read: func(set set) {
				s := p.images.PullStats()
				set(float64(s.LayersFetched), "fetched")
				set(float64(s.LayersPresent), "present")
			}},
		{Name: "berth_pull_bytes_total", Help: "Bytes of packed layers: received from registries, or resumed from what an earlier try had left.",
			Labels: []string{"source"}, Counter: true, Read: func(set set) {
				s := p.images.PullStats()
				set(float64(s.BytesFetched), "received")
				set(float64(s.BytesResumed), "resumed")
			}},
		{Name: "berth_pull_phase_seconds_total", Help: "Time of all layers together: download, unpack, commit. The first two of a layer overlap.",
			Labels: []string{"phase"}, Counter: true, Read: func(set set) {
				s := p.images.PullStats()
				set(s.Download.Seconds(), "download")
				set(s.Unpack.Seconds(), "unpack")
				set(s.Commit.Seconds(), "commit")
			}},
		{Name: "berth_pull_transfer_breaks_total", Help: "Transfers that broke off and went on from where they were.", Counter: true,
			Read: func(set set) { set(float64(p.images.PullStats().Breaks)) }},
		{Name: "berth_registry_retries_total", Help: "Requests to registries that were repeated after a passing failure.", Counter: true,
			Read: func(set set) { set(float64(p.images.PullStats().Registry.Retries)) }},
		{Name: "berth_registry_host_failures_total", Help: "Hosts of registries, mirrors included, that were tried in vain; an image that a host does not have counts.", Counter: true,
			Read: func(set set) { set(float64(p.images.PullStats().Registry.Failures)) }},
	}
}
