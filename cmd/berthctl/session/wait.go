package session

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// lookPause is how often a container is looked at when no event tells of it:
// an event may have come before we listened, or the daemon may be gone.
const lookPause = 500 * time.Millisecond

// waitExit returns the status of a container once it has ended. A daemon that
// goes away meanwhile is waited for: containers outlive it.
func waitExit(ctx context.Context, cl cli.Clients, id string) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := cl.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return nil, err
	}
	wake := make(chan struct{}, 1)
	go func() {
		for {
			e, err := events.Recv()
			if err != nil {
				return
			}
			if e.GetContainerId() == id {
				select {
				case wake <- struct{}{}:
				default:
				}
			}
		}
	}()
	look := time.NewTicker(lookPause)
	defer look.Stop()
	for seen := false; ; seen = true {
		r, err := cl.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil && (!seen || status.Code(err) != codes.Unavailable) || r.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return r.GetStatus(), err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wake:
		case <-look.C:
		}
	}
}

// hasTTY says whether a container was made with a terminal.
func hasTTY(ctx context.Context, cl cli.Clients, id string) (bool, error) {
	r, err := cl.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return false, err
	}
	var info struct {
		Config struct {
			TTY bool `json:"tty"`
		} `json:"config"`
	}
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
		return false, cli.Failed(fmt.Errorf("read the verbose status of container %s: %w", id, err), "Compare `berthctl version`: is this daemon Berth?")
	}
	return info.Config.TTY, nil
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n atomic.Int64
}

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
}
