package metrics

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Entry is a metric of Berth's own, for the reference page.
type Entry struct {
	Name, Help string
	Labels     []string
}

// descText is how a Desc writes itself; the library offers no other access.
var descText = regexp.MustCompile(`fqName: "([^"]*)", help: "((?:[^"\\]|\\.)*)", .*variableLabels: \{([^}]*)\}`)

// Reference lists Berth's own metrics by name. Those of the Go runtime and of
// the process are what every program with this library has.
func (m *Metrics) Reference() ([]Entry, error) {
	ch := make(chan *prometheus.Desc)
	go func() { m.registry.Describe(ch); close(ch) }()
	var out []Entry
	var bad error
	for d := range ch {
		p := descText.FindStringSubmatch(d.String())
		if p == nil {
			bad = fmt.Errorf("description %q is of another form", d)
			continue
		}
		if !strings.HasPrefix(p[1], "berth_") {
			continue
		}
		e := Entry{Name: p[1], Help: p[2]}
		if p[3] != "" {
			e.Labels = strings.Split(p[3], ",")
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, bad
}

// Page is docs/metrics.md.
func Page(all []Entry) string {
	var b strings.Builder
	b.WriteString(`# Metrics

Generated from the code by ` + "`BERTH_REWRITE=1 go test ./cmd/berthd -run TestMetricsPage`" + `. ` + "`berthctl metrics`" + ` shows them at any time.
For Prometheus, set ` + "`[metrics] address`" + ` (see [configuration.md](configuration.md)) and scrape ` + "`/metrics`" + `; OpenMetrics is spoken to who asks for it.
[deploy/prometheus/alerts.yaml](../deploy/prometheus/alerts.yaml) has alert rules and
[deploy/prometheus/dashboard.json](../deploy/prometheus/dashboard.json) a dashboard for Grafana. Histograms have ` + "`_bucket`, `_sum` and `_count`" + `.
No label holds an ID or a name that users choose. The metrics of pods and containers are another matter: the kubelet reads them over the CRI.

| metric | labels | meaning |
| --- | --- | --- |
`)
	for _, e := range all {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", e.Name, strings.Join(e.Labels, ", "), e.Help)
	}
	b.WriteString("\nBesides, `go_*` and `process_*` are of the Go runtime and the daemon's process, as every program with Prometheus' library has them.\n")
	return b.String()
}
