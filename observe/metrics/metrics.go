// Package metrics turns what the daemon's observer hears, and what its parts
// can be asked for, into metrics of Prometheus. It has a registry of its own;
// nothing is registered anywhere else.
package metrics

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/observe"
)

// Figure is a number that is read when the metrics are asked for.
type Figure struct {
	Name    string // with the unit, and "_total" for a counter
	Help    string
	Labels  []string
	Read    func(set func(value float64, labels ...string))
	Counter bool
}

// Config says what is known besides the work that is observed.
type Config struct {
	Version string
	Figures []Figure
}

// Metrics is an observer, and answers with what it has heard.
type Metrics struct {
	registry *prometheus.Registry
	inFlight prometheus.Gauge
	calls    *prometheus.CounterVec
	latency  map[observe.Kind]*prometheus.HistogramVec
	failures *prometheus.CounterVec // of steps
	recovery *prometheus.CounterVec
	repairs  *prometheus.CounterVec
}

var _ observe.Observer = (*Metrics)(nil)

// durations are the upper bounds of histograms in seconds: from what a look
// into memory takes to what a pull may take.
func durations() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
}

// New makes the metrics.
func New(cfg Config) (*Metrics, error) {
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: durations()}, labels)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "berth_rpc_in_flight", Help: "Calls of the CRI under way, streams included."}),
		calls:    counter("berth_rpc_calls_total", "Calls of the CRI that have ended, by gRPC code.", "method", "code"),
		failures: counter("berth_step_failures_total", "Steps of verbs that failed.", "verb", "step"),
		recovery: counter("berth_recoveries_total", "Interrupted verbs that were finished or undone; result is ok or error.", "verb", "result"),
		repairs:  counter("berth_leaks_total", "Things that no record knows, or records that lost what they stand for, by what was done about them.", "action", "result"),
		latency: map[observe.Kind]*prometheus.HistogramVec{
			observe.Call:     histogram("berth_rpc_duration_seconds", "Time of calls of the CRI; streams are left out.", "method"),
			observe.Verb:     histogram("berth_verb_duration_seconds", "Time of verbs on pods, containers and images; result is ok or error.", "verb", "result"),
			observe.Step:     histogram("berth_step_duration_seconds", "Time of the steps of verbs; journal and commit are writes to the database.", "verb", "step"),
			observe.Undo:     histogram("berth_step_undo_duration_seconds", "Time to undo steps of verbs that failed or were interrupted.", "verb", "step"),
			observe.Wait:     histogram("berth_lock_wait_duration_seconds", "Time calls waited for another call on the same object."),
			observe.CNI:      histogram("berth_cni_call_duration_seconds", "Time of calls of network plugins; result is ok or error.", "command", "plugin", "result"),
			observe.Registry: histogram("berth_registry_request_duration_seconds", "Time until a registry's answer began; result is ok when there was one, of whatever status.", "method", "object", "result"),
			observe.Shim:     histogram("berth_shim_request_duration_seconds", "Time of requests to shims, with the OCI runtime's part in them; result is ok or error.", "operation", "result"),
			observe.Exec:     histogram("berth_exec_duration_seconds", "Time of commands run in containers; kind is sync or stream, result is ok or error.", "kind", "result"),
		},
	}
	all := []prometheus.Collector{m.inFlight, m.calls, m.failures, m.recovery, m.repairs,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), figures(cfg.Figures)}
	for _, h := range m.latency {
		all = append(all, h)
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "berth_build_info", Help: "Always 1; the version is a label."}, []string{"version"})
	build.WithLabelValues(cfg.Version).Set(1)
	for _, c := range append(all, build) {
		if err := m.registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metric: %w", err)
		}
	}
	return m, nil
}

// Begin hears of work.
func (m *Metrics) Begin(ctx context.Context, w observe.Work) (context.Context, observe.End) {
	if w.Kind == observe.Call {
		m.inFlight.Inc()
	}
	began := time.Now()
	return ctx, func(err error) {
		if w.Kind == observe.Call {
			m.inFlight.Dec()
			m.calls.WithLabelValues(w.Name, status.Code(err).String()).Inc()
		}
		m.count(w, err)
		if h := m.latency[w.Kind]; h != nil && !endless(w) {
			h.WithLabelValues(labels(w, err)...).Observe(time.Since(began).Seconds())
		}
	}
}

// endless is work whose time says nothing: a stream lasts as its client likes.
func endless(w observe.Work) bool {
	return w.Kind == observe.Call && (strings.HasPrefix(w.Name, "Stream") || w.Name == "GetContainerEvents")
}

func (m *Metrics) count(w observe.Work, err error) {
	switch w.Kind {
	case observe.Recovery:
		m.recovery.WithLabelValues(w.Name, result(err)).Inc()
	case observe.Repair:
		m.repairs.WithLabelValues(w.Name, result(err)).Inc()
	case observe.Step:
		if err != nil {
			m.failures.WithLabelValues(w.Verb, w.Name).Inc()
		}
	}
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// labels are the values for the histogram of a kind of work.
func labels(w observe.Work, err error) []string {
	switch w.Kind {
	case observe.Call:
		return []string{w.Name}
	case observe.Step, observe.Undo:
		return []string{w.Verb, w.Name}
	case observe.CNI, observe.Registry:
		what, which, _ := strings.Cut(w.Name, " ")
		return []string{what, which, result(err)}
	case observe.Wait:
		return nil
	}
	return []string{w.Name, result(err)}
}

// Handler serves the metrics, in the format the client asks for.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4})
}

// Text returns the metrics in the text format.
func (m *Metrics) Text() ([]byte, error) {
	p := page{header: http.Header{}, status: http.StatusOK}
	m.Handler().ServeHTTP(&p, &http.Request{Method: http.MethodGet, Header: http.Header{}})
	if p.status != http.StatusOK {
		return nil, fmt.Errorf("gather metrics: %s: %w", bytes.TrimSpace(p.body.Bytes()), errdefs.ErrInternal)
	}
	return p.body.Bytes(), nil
}

// page takes what a handler writes.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *page) Header() http.Header         { return p.header }
func (p *page) WriteHeader(status int)      { p.status = status }
func (p *page) Write(b []byte) (int, error) { return p.body.Write(b) }

// figures collects what is read when it is asked for.
type figures []Figure

func (f Figure) desc() *prometheus.Desc { return prometheus.NewDesc(f.Name, f.Help, f.Labels, nil) }

// Describe tells the names.
func (fs figures) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range fs {
		ch <- f.desc()
	}
}

// Collect reads.
func (fs figures) Collect(ch chan<- prometheus.Metric) {
	for _, f := range fs {
		kind := prometheus.GaugeValue
		if f.Counter {
			kind = prometheus.CounterValue
		}
		f.Read(func(v float64, labels ...string) {
			m, err := prometheus.NewConstMetric(f.desc(), kind, v, labels...)
			if err != nil {
				m = prometheus.NewInvalidMetric(f.desc(), err)
			}
			ch <- m
		})
	}
}
