package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/cni/netns"
)

// TestIntegrationDialInParallel: connections end up in the right pod, over the
// family that is listened on, and no thread stays in a pod's namespace.
func TestIntegrationDialInParallel(t *testing.T) {
	n := newNode(t)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, addr := range []string{"127.0.0.1:90", "[::1]:90"} {
		rec, err := n.Run(t.Context(), newRecord(nil))
		if err != nil {
			t.Fatal(err)
		}
		defer n.stopAndRemove(t, rec.ID)
		ids = append(ids, rec.ID)
		var l net.Listener
		err = netns.Do(rec.Facts.Namespaces[netns.Net], func() (err error) {
			l, err = new(net.ListenConfig).Listen(t.Context(), "tcp", addr)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, rec.ID)
				c.Close()
			}
		}()
	}
	results := make(chan error)
	for i := range 200 {
		go func() { results <- dialed(t.Context(), n, ids[i%2], i%10 == 9) }()
	}
	for range 200 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, p := range tasks {
		if at, err := os.Readlink(p); err == nil && at != own {
			t.Errorf("a thread is in %s, not in %s", at, own)
		}
	}
}

// dialed dials a pod and wants its name, or, with closed, a refusal.
func dialed(ctx context.Context, n *node, id string, closed bool) error {
	if closed {
		if c, err := n.Dial(ctx, id, 91); err == nil {
			c.Close()
			return fmt.Errorf("sandbox %s: nobody listens, and yet there is a connection", id)
		}
		return nil
	}
	c, err := n.Dial(ctx, id, 90)
	if err != nil {
		return err
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != id {
		return fmt.Errorf("sandbox %s answered %q, %w", id, b, err)
	}
	return nil
}
