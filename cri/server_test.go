package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/unixsock"
)

// fake answers by the value of a field; it is the service behind the edge.
type fake struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	entered chan struct{}
	release chan struct{}
}

func (f *fake) Version(_ context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	switch r.GetVersion() {
	case "panic":
		panic("on purpose")
	case "missing":
		return nil, fmt.Errorf("find pod x: %w", errdefs.ErrNotFound)
	case "status":
		return nil, fmt.Errorf("wrapped: %w", status.Error(codes.OutOfRange, "far"))
	case "slow":
		close(f.entered)
		<-f.release
	}
	return &runtimeapi.VersionResponse{RuntimeName: strings.Repeat("b", len(r.GetVersion()))}, nil
}

func (f *fake) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	if err := s.Send(&runtimeapi.ContainerEventResponse{}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func serve(t *testing.T) (*Server, *fake, runtimeapi.RuntimeServiceClient, *syncBuffer) {
	t.Helper()
	f := &fake{entered: make(chan struct{}), release: make(chan struct{})}
	log := &syncBuffer{}
	path := filepath.Join(t.TempDir(), "run", "berth.sock")
	s, err := New(Config{Socket: path, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))},
		Services{Runtime: f, Image: f})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	conn, err := grpc.NewClient("passthrough:///berth", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return unixsock.Dial(ctx, path) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage+1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = s.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, f, runtimeapi.NewRuntimeServiceClient(conn), log
}

func TestErrorsAndPanics(t *testing.T) {
	_, _, c, log := serve(t)
	ctx := context.Background()
	for in, want := range map[string]codes.Code{
		"missing": codes.NotFound, "status": codes.OutOfRange, "panic": codes.Internal, "fine": codes.OK,
	} {
		_, err := c.Version(ctx, &runtimeapi.VersionRequest{Version: in})
		if status.Code(err) != want {
			t.Errorf("%s: %v, want code %v", in, err, want)
		}
	}
	_, err := c.Version(ctx, &runtimeapi.VersionRequest{Version: "missing"})
	if got := status.Convert(err).Message(); got != "find pod x: not found" {
		t.Errorf("message %q", got)
	}
	for _, want := range []string{"call panicked", "interceptors.go", "code=NotFound", "duration=", "/runtime.v1.RuntimeService/Version"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q", want)
		}
	}
}

func TestMessageLimit(t *testing.T) {
	_, _, c, _ := serve(t)
	big := strings.Repeat("x", MaxMessage-1024)
	r, err := c.Version(context.Background(), &runtimeapi.VersionRequest{Version: big})
	if err != nil || len(r.GetRuntimeName()) != len(big) {
		t.Errorf("just below the limit: %v", err)
	}
	_, err = c.Version(context.Background(), &runtimeapi.VersionRequest{Version: big + strings.Repeat("x", 2048)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("above the limit: %v", err)
	}
}

func TestShutdownDrains(t *testing.T) {
	s, f, c, _ := serve(t)
	events, err := c.GetContainerEvents(context.Background(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Recv(); err != nil {
		t.Fatal(err)
	}
	slow := make(chan error, 1)
	go func() {
		_, err := c.Version(context.Background(), &runtimeapi.VersionRequest{Version: "slow"})
		slow <- err
	}()
	<-f.entered
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(context.Background()) }()
	if _, err := events.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream ended with %v", err)
	}
	close(f.release)
	if err := <-slow; err != nil {
		t.Errorf("call in flight: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestShutdownGivesUp(t *testing.T) {
	s, f, c, _ := serve(t)
	go func() { _, _ = c.Version(context.Background(), &runtimeapi.VersionRequest{Version: "slow"}) }()
	<-f.entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	close(f.release)
}

func TestToStatus(t *testing.T) {
	for _, m := range errorTable() {
		err := fmt.Errorf("start container x: %w", fmt.Errorf("inner: %w", m.sentinel))
		if got := status.Code(toStatus(err)); got != m.code {
			t.Errorf("%v: code %v, want %v", m.sentinel, got, m.code)
		}
	}
	if toStatus(nil) != nil {
		t.Error("nil is an error")
	}
	if got := status.Code(toStatus(errors.New("x"))); got != codes.Unknown {
		t.Errorf("plain error: %v", got)
	}
	both := fmt.Errorf("%w: %w", context.Canceled, errdefs.ErrInvalidArgument)
	if got := status.Code(toStatus(both)); got != codes.InvalidArgument {
		t.Errorf("two sentinels: %v", got)
	}
}

// Every sentinel of errdefs has a row: a new one in a later version must be decided on.
func TestErrorTableIsComplete(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/containerd/errdefs").Output()
	if err != nil {
		t.Skipf("go list does not work here: %v", err)
	}
	src := filepath.Join(strings.TrimSpace(string(out)), "errors.go")
	file, err := parser.ParseFile(token.NewFileSet(), src, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		v, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for _, name := range v.Names {
			if strings.HasPrefix(name.Name, "Err") && name.IsExported() {
				n++
				if !bytes.Contains(mine, []byte("errdefs."+name.Name+",")) {
					t.Errorf("errdefs.%s has no row", name.Name)
				}
			}
		}
		return false
	})
	if n < 10 {
		t.Errorf("found only %d sentinels in %s", n, src)
	}
}

// Every list of the CRI that can be streamed is known with the call that does it.
func TestStreamOf(t *testing.T) {
	streams := map[string]bool{}
	for _, d := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		for _, s := range d.Streams {
			streams[s.StreamName] = s.StreamName != "GetContainerEvents"
		}
		for _, m := range d.Methods {
			if of := streamOf(m.MethodName); of != "" {
				if !streams[of] {
					t.Errorf("%s names %s, which is no call or another list's", m.MethodName, of)
				}
				delete(streams, of)
			}
		}
	}
	for name, list := range streams {
		if list {
			t.Errorf("no list names %s", name)
		}
	}
	large := &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: strings.Repeat("c", MaxMessage)}}}
	if err := tooLarge("/runtime.v1.RuntimeService/ListContainers", large); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "StreamContainers") {
		t.Error(err)
	}
	if err := tooLarge("/runtime.v1.RuntimeService/Version", large); err != nil {
		t.Error("an answer that no stream gives:", err)
	}
}
