package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/chunk"
	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri"
	"github.com/berth-dev/berth/cri/unixsock"
	"github.com/berth-dev/berth/store"
)

// many is how many pods, containers and images the long lists have, and heavy
// what each of them carries: together more than a message takes.
const (
	many  = 5000
	heavy = 4 << 10
)

// longLists serves a store with many records behind the real edge. Nothing is
// recovered, so the records stay as they are. The containers share one control group.
func longLists(t *testing.T) (runtimeapi.RuntimeServiceClient, runtimeapi.ImageServiceClient) {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-lists")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := config.Default()
	c.Paths.Root, c.Paths.Run, c.NRI.Enable = filepath.Join(dir, "root"), filepath.Join(dir, "run"), false
	c.CNI.ConfDir, c.CNI.BinDirs = filepath.Join(dir, "net.d"), []string{filepath.Join(dir, "bin")}
	if c.Paths.Shim, err = os.Executable(); err != nil { // no container is made
		t.Fatal(err)
	}
	p, err := build(settings{cfg: c}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	group := "/berth-lists-" + strconv.Itoa(os.Getpid())
	if err := p.cgroups.Create(group); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cgroups.Remove(group) })
	fill(t, p, group)

	edge, err := cri.New(cri.Config{Socket: filepath.Join(dir, "lists.sock")}, cri.Services{Runtime: p.runtime, Image: p.images})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- edge.Serve() }()
	conn, err := grpc.NewClient("passthrough:///b", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return unixsock.Dial(ctx, filepath.Join(dir, "lists.sock"))
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cri.MaxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		if err := errors.Join(edge.Shutdown(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	})
	return runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
}

func fill(t *testing.T, p *parts, group string) {
	t.Helper()
	now, notes := time.Now(), map[string]string{"note": strings.Repeat("n", heavy)}
	for from := 0; from < many; from += 1000 {
		var c store.Change
		for i := from; i < from+1000; i++ {
			pod, id := fmt.Sprintf("%064x", i), fmt.Sprintf("%064x", many+i)
			c.PutSandboxes = append(c.PutSandboxes, store.Sandbox{ID: pod,
				Config: &runtimeapi.PodSandboxConfig{Annotations: notes, Labels: map[string]string{"tenth": strconv.Itoa(i / 10)},
					Metadata: &runtimeapi.PodSandboxMetadata{Name: "p" + strconv.Itoa(i), Namespace: "n", Uid: pod}},
				Facts: store.SandboxFacts{CreatedAt: now, BootID: p.bootID, CgroupParent: group}})
			c.PutContainers = append(c.PutContainers, store.Container{ID: id, SandboxID: pod,
				Config: &runtimeapi.ContainerConfig{Annotations: notes, Metadata: &runtimeapi.ContainerMetadata{Name: "c"}},
				Facts:  store.ContainerFacts{CreatedAt: now, StartedAt: now, BootID: p.bootID, CgroupPath: group}})
			c.PutImages = append(c.PutImages, store.Image{ID: "sha256:" + id,
				RepoTags: []string{"localhost/" + strings.Repeat("n", heavy) + strconv.Itoa(i) + ":v1"}})
		}
		if err := p.db.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

// receiver is the client's end of a stream.
type receiver[M any] interface {
	grpc.ClientStream
	Recv() (M, error)
}

// drain reads a stream to its end: every object must come once, and no message
// may be larger than the rest of the object that begins it allows.
func drain[M, T proto.Message](t *testing.T, open func(context.Context) (receiver[M], error), items func(M) []T, id func(T) string) {
	t.Helper()
	s, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen, largest, messages := map[string]bool{}, 0, 0
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		messages, largest = messages+1, max(largest, proto.Size(m))
		for _, item := range items(m) {
			if seen[id(item)] {
				t.Errorf("%s comes twice", id(item))
			}
			seen[id(item)] = true
		}
	}
	t.Logf("%d objects in %d messages, the largest of %d bytes", len(seen), messages, largest)
	if len(seen) != many {
		t.Errorf("%d objects, want %d", len(seen), many)
	}
	if limit := chunk.Bytes + chunk.Bytes/8; largest > limit { // what frames the objects comes on top
		t.Errorf("a message has %d bytes, more than %d", largest, limit)
	}
}

// opened makes a stub's call one of drain's.
func opened[R any, M any](call func(context.Context, *R, ...grpc.CallOption) (grpc.ServerStreamingClient[M], error)) func(context.Context) (receiver[*M], error) {
	return func(ctx context.Context) (receiver[*M], error) { return call(ctx, new(R)) }
}

func TestIntegrationLongLists(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	r, i := longLists(t)
	t.Run("StreamPodSandboxes", func(t *testing.T) {
		drain(t, opened(r.StreamPodSandboxes), (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, (*runtimeapi.PodSandbox).GetId)
	})
	t.Run("StreamContainers", func(t *testing.T) {
		drain(t, opened(r.StreamContainers), (*runtimeapi.StreamContainersResponse).GetContainers, (*runtimeapi.Container).GetId)
	})
	t.Run("StreamContainerStats", func(t *testing.T) {
		drain(t, opened(r.StreamContainerStats), (*runtimeapi.StreamContainerStatsResponse).GetContainerStats,
			func(s *runtimeapi.ContainerStats) string { return s.GetAttributes().GetId() })
	})
	t.Run("StreamPodSandboxStats", func(t *testing.T) {
		drain(t, opened(r.StreamPodSandboxStats), (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats,
			func(s *runtimeapi.PodSandboxStats) string { return s.GetAttributes().GetId() })
	})
	t.Run("StreamPodSandboxMetrics", func(t *testing.T) {
		drain(t, opened(r.StreamPodSandboxMetrics), (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, (*runtimeapi.PodSandboxMetrics).GetPodSandboxId)
	})
	t.Run("StreamImages", func(t *testing.T) {
		drain(t, opened(i.StreamImages), (*runtimeapi.StreamImagesResponse).GetImages, (*runtimeapi.Image).GetId)
	})
	t.Run("unary", func(t *testing.T) { refusedWhole(t, r, i) })
	t.Run("memory", func(t *testing.T) { readerPauses(t, r) })
}

// refusedWhole asks for the lists in one message: the error names the call that
// works. With a filter the same calls answer.
func refusedWhole(t *testing.T, r runtimeapi.RuntimeServiceClient, i runtimeapi.ImageServiceClient) {
	ctx := t.Context()
	for stream, call := range map[string]func() error{
		"StreamPodSandboxes":   func() error { _, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); return err },
		"StreamContainers":     func() error { _, err := r.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); return err },
		"StreamContainerStats": func() error { _, err := r.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{}); return err },
		"StreamImages":         func() error { _, err := i.ListImages(ctx, &runtimeapi.ListImagesRequest{}); return err },
	} {
		if err := call(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "call "+stream+", which sends it in parts") {
			t.Errorf("%s: %v", stream, err)
		}
	}
	few, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"tenth": "7"}}})
	if err != nil || len(few.GetItems()) != 10 {
		t.Errorf("%d of 10 pods, %v", len(few.GetItems()), err)
	}
}

// readerPauses leaves streams alone after their first message: what is held
// for them is a small part of the whole.
func readerPauses(t *testing.T, r runtimeapi.RuntimeServiceClient) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := liveHeap()
	var open []grpc.ClientStream
	for range 8 {
		s, err := r.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	held := int64(liveHeap()) - int64(before)
	t.Logf("%d streams that pause hold %d bytes; each list has %d", len(open), held, many*heavy)
	if limit := int64(len(open)) * many * heavy / 2; held > limit {
		t.Errorf("%d streams that pause hold %d bytes, more than %d", len(open), held, limit)
	}
	runtime.KeepAlive(open)
}

func liveHeap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
