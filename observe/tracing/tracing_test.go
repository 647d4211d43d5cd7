package tracing

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/observe"
)

const (
	clientTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	clientSpan  = "00f067aa0ba902b7"
)

// service works when it is called, as the daemon does.
type service struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	tracer *Tracer
}

func (s service) RunPodSandbox(ctx context.Context, _ *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	ctx, end := observe.Begin(observe.With(ctx, s.tracer), observe.Work{Kind: observe.Call, Name: "RunPodSandbox"})
	defer end(nil)
	_ = observe.Do(ctx, observe.Work{Kind: observe.Verb, Name: "sandbox.run", Object: "pod"}, func(ctx context.Context) error {
		return observe.Do(ctx, observe.Work{Kind: observe.Step, Verb: "sandbox.run", Name: "network"}, func(ctx context.Context) error {
			return observe.Do(ctx, observe.Work{Kind: observe.CNI, Name: "ADD bridge"}, func(context.Context) error { return errors.New("no address") })
		})
	})
	return &runtimeapi.RunPodSandboxResponse{}, nil
}

func (s service) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{}, nil
}

// call makes the calls of a client; header is its traceparent, "" for none.
func call(t *testing.T, tracer *Tracer, header string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(tracer.ServerOption())
	runtimeapi.RegisterRuntimeServiceServer(server, service{tracer: tracer})
	go server.Serve(l)
	defer server.Stop()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := t.Context()
	if header != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", header)
	}
	c := runtimeapi.NewRuntimeServiceClient(conn)
	if _, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	server.GracefulStop()
}

func TestSpansJoinTheClientsTrace(t *testing.T) {
	memory := tracetest.NewInMemoryExporter()
	tracer := newTracer(Config{Percent: 0}, sdktrace.WithSyncer(memory))
	call(t, tracer, "00-"+clientTrace+"-"+clientSpan+"-01")
	// A client that does not trace: at 0 percent nothing is.
	call(t, tracer, "")
	spans := map[string]tracetest.SpanStub{}
	for _, s := range memory.GetSpans() {
		spans[s.Name] = s
	}
	parents := []string{"runtime.v1.RuntimeService/RunPodSandbox", "sandbox.run", "step network", "cni ADD bridge"}
	if len(memory.GetSpans()) != len(parents) {
		t.Fatalf("%d spans, want %d: %v", len(memory.GetSpans()), len(parents), spans)
	}
	parent := clientSpan
	for _, name := range parents {
		s := spans[name]
		if s.SpanContext.TraceID().String() != clientTrace || s.Parent.SpanID().String() != parent {
			t.Errorf("%s: trace %s, parent %s, want %s", name, s.SpanContext.TraceID(), s.Parent.SpanID(), parent)
		}
		parent = s.SpanContext.SpanID().String()
	}
	if d := spans["cni ADD bridge"].Status.Description; d != "no address" {
		t.Errorf("the error is lost: %q", d)
	}
}

// receiver is an OTLP receiver.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	names []string
	attrs string
}

func (r *receiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		for _, a := range rs.GetResource().GetAttributes() {
			r.attrs += a.GetKey() + "=" + a.GetValue().GetStringValue() + " "
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				r.names = append(r.names, s.GetName())
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestSpansReachAReceiver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	go server.Serve(l)
	defer server.Stop()
	tracer, err := New(t.Context(), Config{Endpoint: l.Addr().String(), Percent: 100, Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	call(t, tracer, "")
	if err := tracer.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	got := strings.Join(r.names, ", ")
	for _, want := range []string{"RunPodSandbox", "sandbox.run", "step network", "cni ADD bridge"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s did not arrive: %s", want, got)
		}
	}
	if strings.Contains(got, "Version") || !strings.Contains(r.attrs, "service.name=berthd service.version=v1") {
		t.Errorf("%s; %s", got, r.attrs)
	}
}
