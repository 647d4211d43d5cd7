package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/observe/metrics"
)

// everyMetric returns the daemon's metrics with at least one series each.
func everyMetric(t *testing.T) *metrics.Metrics {
	t.Helper()
	figures := (&parts{}).figures("")
	for i, f := range figures {
		figures[i].Read = func(set func(float64, ...string)) { set(1, f.Labels...) }
	}
	m, err := metrics.New(metrics.Config{Version: "v", Figures: figures})
	if err != nil {
		t.Fatal(err)
	}
	for kind, name := range map[observe.Kind]string{
		observe.Call: "Status", observe.Verb: "sandbox.run", observe.Step: "network", observe.Undo: "network", observe.Recovery: "sandbox.run",
		observe.Repair: "remove files", observe.Wait: "", observe.CNI: "ADD bridge", observe.Registry: "GET blobs",
		observe.Shim: "create", observe.Exec: "sync",
	} {
		for _, err := range []error{nil, status.Error(codes.NotFound, "x"), errors.New("x")} {
			_ = observe.Do(observe.With(t.Context(), m), observe.Work{Kind: kind, Verb: "sandbox.run", Name: name, Object: "unbounded", Pod: "unbounded"},
				func(context.Context) error { return err })
		}
	}
	return m
}

func TestMetricNames(t *testing.T) {
	text, err := everyMetric(t).Text()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if bytes.Contains(text, []byte("unbounded")) {
		t.Error("an ID has become a label")
	}
	for _, want := range []string{
		`berth_rpc_calls_total{code="NotFound",method="Status"} 1`, `berth_rpc_calls_total{code="OK",method="Status"} 1`,
		`berth_step_failures_total{step="network",verb="sandbox.run"} 2`, `berth_recoveries_total{result="error",verb="sandbox.run"} 2`,
		`berth_leaks_total{action="remove files",result="ok"} 1`, "berth_rpc_in_flight 0",
		`berth_cni_call_duration_seconds_count{command="ADD",plugin="bridge",result="ok"} 1`,
		`berth_registry_request_duration_seconds_count{method="GET",object="blobs",result="error"} 2`, "go_goroutines", "process_resident_memory_bytes",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%s is missing", want)
		}
	}
}

// The reference page is the code's.
func TestMetricsPage(t *testing.T) {
	all, err := everyMetric(t).Reference()
	if err != nil {
		t.Fatal(err)
	}
	text, err := everyMetric(t).Text()
	if err != nil {
		t.Fatal(err)
	}
	exported := slices.Sorted(exportedNames(text))
	var listed []string
	for _, e := range all {
		listed = append(listed, e.Name)
	}
	if d := cmp.Diff(exported, listed); d != "" {
		t.Errorf("exported and listed names differ:\n%s", d)
	}
	const path = "../../docs/metrics.md"
	if os.Getenv("BERTH_REWRITE") != "" {
		if err := os.WriteFile(path, []byte(metrics.Page(all)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(metrics.Page(all), string(b)); d != "" {
		t.Errorf("%s is stale; run BERTH_REWRITE=1 go test ./cmd/berthd -run TestMetricsPage\n%s", path, d)
	}
}

// exportedNames are Berth's own families, by their TYPE lines.
func exportedNames(text []byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for line := range bytes.Lines(text) {
			if f := strings.Fields(string(line)); len(f) == 4 && f[1] == "TYPE" && strings.HasPrefix(f[2], "berth_") && !yield(f[2]) {
				return
			}
		}
	}
}

// Dashboard and alert rules ask only for what is exported, labels included.
func TestDashboardAndAlerts(t *testing.T) {
	all, err := everyMetric(t).Reference()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string][]string{}
	for _, e := range all {
		labels[e.Name] = e.Labels
	}
	name := regexp.MustCompile(`\b((?:berth|go|process)_[a-z_]+)(?:\{([^}]*)\})?`)
	label := regexp.MustCompile(`([a-z_]+)\s*(?:=|!=|=~|!~)`)
	text, err := everyMetric(t).Text()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, path := range []string{"../../deploy/prometheus/dashboard.json", "../../deploy/prometheus/alerts.yaml"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".json") && !json.Valid(b) {
			t.Errorf("%s is not JSON", path)
		}
		found := name.FindAllStringSubmatch(strings.ReplaceAll(string(b), `\"`, `"`), -1)
		if len(found) < 5 {
			t.Errorf("%s asks for %d metrics", path, len(found))
		}
		for _, f := range found {
			base := f[1]
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if _, ok := labels[base]; !ok {
					base = strings.TrimSuffix(base, suffix)
				}
			}
			have, ok := labels[base]
			if !ok && !bytes.Contains(text, []byte("# TYPE "+base+" ")) {
				t.Errorf("%s asks for %s, which is not exported", path, f[1])
			}
			used[base] = true
			for _, l := range label.FindAllStringSubmatch(f[2], -1) {
				if ok && !slices.Contains(have, l[1]) && l[1] != "instance" && l[1] != "job" && l[1] != "le" {
					t.Errorf("%s asks for label %s of %s, which has %v", path, l[1], base, have)
				}
			}
		}
	}
	for _, want := range []string{"berth_leaks_total", "berth_container_logs_failing", "berth_journal_oldest_seconds", "berth_rpc_calls_total",
		"berth_container_log_lost_bytes_total", "berth_pull_bytes_total", "berth_pull_layers_total", "berth_registry_host_failures_total"} {
		if !used[want] {
			t.Errorf("neither dashboard nor alerts look at %s", want)
		}
	}
}
