package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/berth-dev/berth/cni"
	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/store"
)

// networkStep attaches the pod. One on the node's network has nothing to
// attach, and its addresses are the node's, which the client knows.
func (m *Manager) networkStep() step {
	return step{
		Name: "network",
		Do: func(ctx context.Context, s *state) error {
			if hostNetwork(s.Rec.Config) {
				return nil
			}
			r, err := m.request(s)
			if err != nil {
				return err
			}
			res, err := m.net.Attach(ctx, r)
			if err != nil {
				return err
			}
			s.Rec.Facts.Network = store.NetworkFacts{Attached: true, IPs: res.IPs, Result: res.JSON}
			_, later := netns.SplitSysctls(s.Rec.Config.GetLinux().GetSysctls())
			return netns.SetSysctls(m.at.pin(s.Rec.ID, netns.Net), later)
		},
		Undo: m.detach,
		Done: func(_ context.Context, s *state) (bool, error) {
			return hostNetwork(s.Rec.Config) || s.Rec.Facts.Network.Attached, nil
		},
	}
}

// detach disconnects the pod, trying again for plugins that fail for a moment.
// One that does not end in time is not given another chance here.
func (m *Manager) detach(ctx context.Context, s *state) error {
	if hostNetwork(s.Rec.Config) {
		return nil
	}
	r, err := m.request(s)
	if err != nil {
		return err
	}
	for _, delay := range []time.Duration{100 * time.Millisecond, 500 * time.Millisecond} {
		err = m.net.Detach(ctx, r)
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		m.cfg.Logger.Warn("detaching sandbox from its network failed, trying again", "sandbox", s.Rec.ID, "error", err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return err
		}
	}
	return m.net.Detach(ctx, r)
}

// request describes the pod to the plugins; a namespace that is gone is not
// named. What an earlier boot noted of the attachment may have been lost with the
// power, so that its pods count as attached.
func (m *Manager) request(s *state) (cni.Request, error) {
	pin := m.at.pin(s.Rec.ID, netns.Net)
	pinned, err := netns.IsPinned(pin)
	if err != nil {
		return cni.Request{}, err
	}
	if !pinned {
		pin = ""
	}
	boot := s.Rec.Facts.BootID
	return cni.Request{
		SandboxID:  s.Rec.ID,
		Handler:    s.Rec.Handler,
		NetNS:      pin,
		Attached:   s.Rec.Facts.Network.Attached || boot != "" && boot != m.cfg.BootID,
		Config:     s.Rec.Config,
		CgroupPath: s.Rec.Facts.CgroupParent,
	}, nil
}
