package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// turns keeps garbage collection of a network apart from attaching to it: what
// is being attached is not yet among the attachments that a collection spares.
// A collection gives way; it never waits for a plugin that hangs.
type turns struct {
	mu     sync.Mutex
	adding map[string]int // attaches under way, by network
	gc     map[string]chan struct{}
}

// add waits until no collection of the network is under way. Call what it returns.
func (t *turns) add(ctx context.Context, network string) (done func(), err error) {
	for {
		t.mu.Lock()
		wait := t.gc[network]
		if wait == nil {
			if t.adding == nil {
				t.adding = map[string]int{}
			}
			t.adding[network]++
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				if t.adding[network]--; t.adding[network] == 0 {
					delete(t.adding, network)
				}
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the garbage collection of network %q: %w: %w", network, errdefs.ErrUnavailable, context.Cause(ctx))
		}
	}
}

// collect is false when the network is in use. Call what it returns.
func (t *turns) collect(network string) (done func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.adding[network] > 0 || t.gc[network] != nil {
		return nil, false
	}
	if t.gc == nil {
		t.gc = map[string]chan struct{}{}
	}
	over := make(chan struct{})
	t.gc[network] = over
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.gc, network)
		close(over)
	}, true
}

// Collect tells the plugins of every network which attachments there are, so
// that they take back all else: addresses of pods that are no more, rules. What
// counts is noted here, or among the attached sandboxes that the caller names.
// Attachments that were cached and count no longer are detached, whatever the
// network's version; plugins know GC from version 1.1 of the specification on.
// A network that pods are being attached to is left for later: Unavailable. One
// that nothing is known to be attached to is left alone: what is there may be
// another runtime's.
func (m *Manager) Collect(ctx context.Context, attached []string) error {
	used, err := m.usedNetworks()
	if err != nil {
		return err
	}
	for _, d := range m.dirs {
		if list := d.current().network; list != nil && used[list.Name] != nil {
			used[list.Name] = list
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(used)) {
		if err := m.collect(ctx, used[name], attached); err != nil {
			errs = append(errs, fmt.Errorf("collect garbage of network %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) collect(ctx context.Context, list *libcni.NetworkConfigList, attached []string) error {
	done, ok := m.turns.collect(list.Name)
	if !ok {
		return fmt.Errorf("pods are being attached to it: %w", errdefs.ErrUnavailable)
	}
	defer done()
	// Nothing is added to the network from here on.
	ids, err := m.Owed()
	if err != nil {
		return err
	}
	ids = append(ids, attached...)
	slices.Sort(ids)
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range slices.Compact(ids) {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: IfName})
	}
	ctx, cancel := m.limit(ctx)
	defer cancel()
	if err := m.lib.GCNetworkList(ctx, list, args); err != nil {
		return classify(err)
	}
	return nil
}

// usedNetworks are the networks that pods are attached to, as noted, or cached,
// then. What cannot be read is met again when its pod is detached.
func (m *Manager) usedNetworks() (map[string]*libcni.NetworkConfigList, error) {
	ids, err := m.Owed()
	if err != nil {
		return nil, err
	}
	out := map[string]*libcni.NetworkConfigList{}
	cached, err := m.lib.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("list cached network attachments: %w", err)
	}
	for _, c := range cached {
		if list, err := libcni.NetworkConfFromBytes(c.Config); err == nil {
			out[list.Name] = list
		}
	}
	for _, id := range ids {
		if list, _, err := m.readIntent(id); err == nil && list != nil {
			out[list.Name] = list
		}
	}
	return out, nil
}

// Pauses between garbage collections, and after the first that did not succeed.
const (
	collectEvery = time.Hour
	collectAgain = time.Minute
)

// KeepCollecting collects garbage now and then until ctx ends. attached returns
// the sandboxes that are known to be attached. What fails is tried again soon,
// then less and less often: a plugin that hangs holds up attaching each time.
func (m *Manager) KeepCollecting(ctx context.Context, attached func() []string) {
	again := collectAgain
	for {
		pause := collectEvery
		err := m.Collect(ctx, attached())
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			again = collectAgain
		default:
			pause, again = again, min(2*again, collectEvery)
			level := slog.LevelWarn
			if errdefs.IsUnavailable(err) && !errors.Is(err, context.DeadlineExceeded) {
				level = slog.LevelInfo
			}
			m.cfg.Logger.Log(ctx, level, "garbage collection of networks, to be tried again", "error", err, "in", pause)
		}
		if sleep(ctx, pause); ctx.Err() != nil {
			return
		}
	}
}
