package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/cri/unixsock"
)

type source struct{}

func (source) Info(context.Context) (*InfoResponse, error) { return &InfoResponse{Version: "v"}, nil }
func (source) Operations() []*Operation                    { return []*Operation{{Id: "1"}} }
func (source) Config() *ConfigResponse                     { return &ConfigResponse{Toml: "t"} }

func (source) Recovery() *RecoveryResponse { return &RecoveryResponse{Settled: true} }
func (source) Reconcile(_ context.Context, dry bool) (*ReconcileResponse, error) {
	if dry {
		return &ReconcileResponse{Actions: []*ReconcileAction{{Id: "1"}}}, nil
	}
	return nil, errors.New("cannot look")
}
func (source) Quarantined() []*QuarantinedRecord { return []*QuarantinedRecord{{Name: "ops/1"}} }
func (source) DropQuarantined(_ context.Context, name string) error {
	if name != "ops/1" {
		return fmt.Errorf("drop %s: %w", name, errdefs.ErrNotFound)
	}
	return nil
}

func (source) Events(_ context.Context, r *EventsRequest, send func(*Event) error) error {
	if r.GetSince() > 2 {
		return fmt.Errorf("read events: %w", errdefs.ErrOutOfRange)
	}
	for seq := r.GetSince() + 1; seq <= 2; seq++ {
		if err := send(&Event{Seq: seq}); err != nil {
			return err
		}
	}
	return nil
}

func (source) PullImage(_ context.Context, r *PullImageRequest, send func(*PullImageEvent) error) error {
	if r.GetImage() == "no" {
		return status.Error(codes.NotFound, "no such image")
	}
	return errors.Join(send(&PullImageEvent{Progress: &PullProgress{Image: r.GetImage()}}), send(&PullImageEvent{ImageRef: "id"}))
}
func (source) WatchPulls(_ context.Context, send func(*WatchPullsResponse) error) error {
	return send(&WatchPullsResponse{Pulls: []*PullProgress{{Image: "a"}}})
}

// pulls calls what has to do with pulls.
func pulls(t *testing.T, c AdminClient) {
	t.Helper()
	s, err := c.PullImage(t.Context(), &PullImageRequest{Image: "a"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Recv()
	last, err2 := s.Recv()
	if errors.Join(err, err2) != nil || first.GetProgress().GetImage() != "a" || last.GetImageRef() != "id" {
		t.Errorf("pull: %v, %v, %v, %v", first, last, err, err2)
	}
	if s, err = c.PullImage(t.Context(), &PullImageRequest{Image: "no"}); err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.NotFound {
		t.Errorf("pull of nothing: %v", err)
	}
	w, err := c.WatchPulls(t.Context(), &WatchPullsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := w.Recv(); err != nil || len(r.GetPulls()) != 1 {
		t.Errorf("watch: %v, %v", r, err)
	}
}

// repairs calls what has to do with repair.
func repairs(t *testing.T, c AdminClient) {
	t.Helper()
	if r, err := c.Recovery(t.Context(), &RecoveryRequest{}); err != nil || !r.GetSettled() {
		t.Errorf("recovery: %v, %v", r, err)
	}
	if r, err := c.Reconcile(t.Context(), &ReconcileRequest{DryRun: true}); err != nil || len(r.GetActions()) != 1 {
		t.Errorf("reconcile: %v, %v", r, err)
	}
	if _, err := c.Reconcile(t.Context(), &ReconcileRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("a reconciliation that fails: %v", err)
	}
	if r, err := c.Quarantine(t.Context(), &QuarantineRequest{}); err != nil || len(r.GetRecords()) != 1 {
		t.Errorf("quarantine: %v, %v", r, err)
	}
	for name, want := range map[string]codes.Code{"ops/1": codes.OK, "ops/2": codes.NotFound} {
		if _, err := c.DropQuarantined(t.Context(), &DropQuarantinedRequest{Name: name}); status.Code(err) != want {
			t.Errorf("drop %s: %v", name, err)
		}
	}
}

func (source) Signal(_ context.Context, id, signal string) error {
	switch {
	case id != "c":
		return fmt.Errorf("signal container %s: %w", id, errdefs.ErrNotFound)
	case signal != "HUP":
		return fmt.Errorf("signal container %s: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (source) AwaitAttached(ctx context.Context, id string) error {
	if id == "c" {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// signals calls what has to do with signals.
func signals(t *testing.T, c AdminClient) {
	t.Helper()
	for r, want := range map[[2]string]codes.Code{{"c", "HUP"}: codes.OK, {"d", "HUP"}: codes.NotFound, {"c", "NOPE"}: codes.InvalidArgument} {
		if _, err := c.SignalContainer(t.Context(), &SignalContainerRequest{ContainerId: r[0], Signal: r[1]}); status.Code(err) != want {
			t.Errorf("signal %v: %v", r, err)
		}
	}
	if _, err := c.AwaitAttached(t.Context(), &AwaitAttachedRequest{ContainerId: "c"}); err != nil {
		t.Errorf("await: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.AwaitAttached(ctx, &AwaitAttachedRequest{ContainerId: "d"}); status.Code(err) != codes.Canceled {
		t.Errorf("await that is given up: %v", err)
	}
}

func (source) Metrics() ([]byte, error) { return []byte("m 1\n"), nil }

func (source) Explain(pod string) (*ExplainResponse, error) {
	if pod != "p" {
		return nil, fmt.Errorf("explain pod %s: %w", pod, errdefs.ErrNotFound)
	}
	return &ExplainResponse{Pods: []*PodTimeline{{Id: pod}}}, nil
}

func TestServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	s, err := New(Config{Socket: path}, Sources{Source: source{}, Repairer: source{}, Quarantiner: source{}, Insight: source{}, Puller: source{}, Signaller: source{}, Attachments: source{}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != SocketMode {
		t.Errorf("socket: %v, %v", info, err)
	}
	conn, err := grpc.NewClient("passthrough:///a", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return unixsock.Dial(ctx, path) }))
	if err != nil {
		t.Fatal(err)
	}
	c := NewAdminClient(conn)
	if r, err := c.Info(t.Context(), &InfoRequest{}); err != nil || r.GetVersion() != "v" {
		t.Errorf("info: %v, %v", r, err)
	}
	if r, err := c.Operations(t.Context(), &OperationsRequest{}); err != nil || len(r.GetOperations()) != 1 {
		t.Errorf("operations: %v, %v", r, err)
	}
	if r, err := c.Config(t.Context(), &ConfigRequest{}); err != nil || r.GetToml() != "t" {
		t.Errorf("config: %v, %v", r, err)
	}
	repairs(t, c)
	pulls(t, c)
	signals(t, c)
	if r, err := c.Metrics(t.Context(), &MetricsRequest{}); err != nil || string(r.GetText()) != "m 1\n" {
		t.Errorf("metrics: %v, %v", r, err)
	}
	for pod, want := range map[string]codes.Code{"p": codes.OK, "q": codes.NotFound} {
		if _, err := c.Explain(t.Context(), &ExplainRequest{Pod: pod}); status.Code(err) != want {
			t.Errorf("explain %s: %v", pod, err)
		}
	}
	for since, want := range map[uint64]int{0: 2, 1: 1, 2: 0} {
		if n, err := events(t, c, since); n != want || err != nil {
			t.Errorf("%d events after %d, %v", n, since, err)
		}
	}
	if _, err := events(t, c, 3); status.Code(err) != codes.OutOfRange {
		t.Errorf("events that are gone: %v", err)
	}
	for name, want := range map[string]codes.Code{"heap": codes.OK, "nonsense": codes.InvalidArgument, "cpu": codes.InvalidArgument} {
		b, err := profile(t, c, name)
		if status.Code(err) != want || (want == codes.OK) != bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
			t.Errorf("profile %s: %v, %d bytes", name, err, len(b))
		}
	}
	_ = conn.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("socket is left: %v", err)
	}
}

func profile(t *testing.T, c AdminClient, name string) ([]byte, error) {
	t.Helper()
	stream, err := c.Profile(t.Context(), &ProfileRequest{Name: name})
	if err != nil {
		return nil, err
	}
	var all []byte
	for {
		chunk, err := stream.Recv()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, chunk.GetData()...)
	}
}

func events(t *testing.T, c AdminClient, since uint64) (n int, err error) {
	t.Helper()
	stream, err := c.Events(t.Context(), &EventsRequest{Since: since})
	if err != nil {
		t.Fatal(err)
	}
	for ; ; n++ {
		if _, err := stream.Recv(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}
