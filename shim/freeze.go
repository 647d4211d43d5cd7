package shim

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/shim/wire"
)

// Frozen is a container that stands still. It goes on when Thaw is called, and
// also when this process dies.
type Frozen struct {
	id   string
	link *link
}

// Freeze stops all processes of a running container and returns when all stand
// still. Commands that clients run in it (Exec) are waited for, for some
// seconds; those that come later wait until it goes on.
func (m *Manager) Freeze(ctx context.Context, id string) (*Frozen, error) {
	work, end := watched(ctx, "freeze", id)
	f, err := m.freeze(work, id)
	end(err)
	if errdefs.IsNotImplemented(err) {
		return nil, fmt.Errorf("freeze container %s: it was started by an earlier version of Berth, whose shim cannot do that: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("freeze container %s: %w", id, err)
	}
	return f, nil
}

func (m *Manager) freeze(ctx context.Context, id string) (*Frozen, error) {
	l, err := m.connect(ctx, id)
	if err != nil {
		return nil, err
	}
	if _, _, err := l.call(ctx, wire.KindFreeze, nil, nil); err != nil {
		l.close()
		return nil, goneIsNotFound(err)
	}
	return &Frozen{id: id, link: l}, nil
}

// connect opens a connection of its own to a container's shim.
func (m *Manager) connect(ctx context.Context, id string) (*link, error) {
	if err := m.open(); err != nil {
		return nil, err
	}
	conn, err := dial(m.runDir(id))
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w: %w", err, dialKind(err))
	}
	l, _, err := newLink(ctx, conn, false, nil)
	return l, goneIsNotFound(err)
}

// Dump has CRIU, by `runc checkpoint`, write an image of the processes into one
// directory and its log into another, which exist. The container still stands
// still afterwards. When ctx ends the dump goes on: CRIU cannot be stopped in the
// middle without harm. Thawed tells when it is over.
func (f *Frozen) Dump(ctx context.Context, images, work string) error {
	ctx, end := watched(ctx, "dump", f.id)
	_, _, err := f.link.call(ctx, wire.KindDump, wire.Encode(&wire.Dump{Images: images, Work: work}), nil)
	end(err)
	if err != nil {
		return fmt.Errorf("dump container %s: %w", f.id, goneIsNotFound(err))
	}
	return nil
}

// Thaw lets the container go on and releases what f holds, in any case.
func (f *Frozen) Thaw(ctx context.Context) error {
	ctx, end := watched(ctx, "thaw", f.id)
	_, _, err := f.link.call(ctx, wire.KindThaw, nil, nil)
	f.link.close()
	end(err)
	if err != nil {
		return fmt.Errorf("thaw container %s: %w", f.id, goneIsNotFound(err))
	}
	return nil
}

// Thawed waits until the container neither stands still nor is dumped, whoever
// began that. A container without a shim, or with one that cannot do either, does not.
func (m *Manager) Thawed(ctx context.Context, id string) error {
	l, err := m.connect(ctx, id)
	if err == nil {
		_, _, err = l.call(ctx, wire.KindThaw, nil, nil)
		l.close()
	}
	err = goneIsNotFound(err)
	if errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for container %s to go on: %w", id, err)
	}
	return nil
}
