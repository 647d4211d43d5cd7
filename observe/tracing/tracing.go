// Package tracing sends what the daemon's observer hears as spans to an
// OpenTelemetry receiver, joined to the trace of the client that called.
package tracing

import (
	"context"
	"crypto/tls"
	"fmt"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"

	"github.com/berth-dev/berth/observe"
)

// Config says where spans go.
type Config struct {
	Endpoint string // HOST:PORT of an OTLP receiver over gRPC
	TLS      bool
	Percent  int // of the calls whose client has not decided
	Version  string
}

// Tracer is an observer that makes spans.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

var _ observe.Observer = (*Tracer)(nil)

// New makes a tracer that sends in the background. A receiver that is not there
// costs spans, and nothing else.
func New(ctx context.Context, cfg Config) (*Tracer, error) {
	opts := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(cfg.Endpoint)}
	if cfg.TLS {
		opts = append(opts, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})))
	} else {
		opts = append(opts, otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("trace to %s: %w", cfg.Endpoint, err)
	}
	return newTracer(cfg, sdktrace.WithBatcher(exporter)), nil
}

func newTracer(cfg Config, to sdktrace.TracerProviderOption) *Tracer {
	provider := sdktrace.NewTracerProvider(to,
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(float64(cfg.Percent)/100))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "berthd"), attribute.String("service.version", cfg.Version))))
	return &Tracer{provider: provider, tracer: provider.Tracer("github.com/berth-dev/berth")}
}

// ServerOption makes a gRPC server begin a span for each call, in the trace of
// its client. The daemon's calls to itself are left out.
func (t *Tracer) ServerOption() grpc.ServerOption {
	return grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider),
		otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(func(i *stats.RPCTagInfo) bool { return i.FullMethodName != "/runtime.v1.RuntimeService/Version" }),
	))
}

// Begin makes a span of the work. A call has one already, by ServerOption.
func (t *Tracer) Begin(ctx context.Context, w observe.Work) (context.Context, observe.End) {
	if w.Kind == observe.Call {
		trace.SpanFromContext(ctx).SetAttributes(attributes(w)...)
		return ctx, func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, spanName(w), trace.WithAttributes(attributes(w)...))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

func spanName(w observe.Work) string {
	if w.Kind == observe.Verb {
		return w.Name
	}
	return string(w.Kind) + " " + w.Name
}

func attributes(w observe.Work) (out []attribute.KeyValue) {
	for key, value := range map[string]string{"berth.verb": w.Verb, "berth.object": w.Object, "berth.pod": w.Pod} {
		if value != "" {
			out = append(out, attribute.String(key, value))
		}
	}
	return out
}

// Close sends what is left and ends.
func (t *Tracer) Close(ctx context.Context) error {
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last spans: %w", err)
	}
	return nil
}
