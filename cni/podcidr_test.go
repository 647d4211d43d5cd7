package cni

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// As containerd's documentation shows it.
const podTemplate = `{"cniVersion":"1.0.0","name":"k8s-pod-network","plugins":[{"type":"fake","first":"{{.PodCIDR}}","ipam":{"type":"host-local",
"ranges":[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
"routes":[{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}`

func TestPodCIDRFillsTemplate(t *testing.T) {
	b := newBench(t, nil, addOK)
	b.cfg.Template = filepath.Join(t.TempDir(), "template")
	write(t, b.cfg.Template, podTemplate, 0o644)
	for _, bad := range []string{"10.1.0.0", "10.1.0.0/16,nothing"} {
		if err := b.SetPodCIDR(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := b.SetPodCIDR(t.Context(), ""); err != nil { // the kubelet knows none yet
		t.Error(err)
	}
	if files, _ := os.ReadDir(b.conf); len(files) != 0 {
		t.Errorf("files were made of nothing: %v", files)
	}
	if err := b.SetPodCIDR(t.Context(), "10.1.0.0/16, fd01::/64,10.2.0.0/16"); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(b.conf, templateFile))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Plugins []struct {
			First string
			IPAM  struct {
				Ranges [][]struct{ Subnet string }
				Routes []struct{ Dst string }
			}
		}
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	p := got.Plugins[0]
	if p.First != "10.1.0.0/16" || len(p.IPAM.Ranges) != 3 || p.IPAM.Ranges[1][0].Subnet != "fd01::/64" ||
		len(p.IPAM.Routes) != 2 || p.IPAM.Routes[0].Dst != "0.0.0.0/0" || p.IPAM.Routes[1].Dst != "::/0" {
		t.Errorf("%s", raw)
	}
	if _, err := b.Attach(t.Context(), requestOf("a")); err != nil {
		t.Errorf("attach to what was made: %v", err)
	}
	// A network that is there is nobody's to overwrite.
	if err := b.SetPodCIDR(t.Context(), "10.9.0.0/16"); err != nil {
		t.Error(err)
	}
	if now, _ := os.ReadFile(filepath.Join(b.conf, templateFile)); string(now) != string(raw) {
		t.Errorf("a second time: %s", now)
	}
}

func TestBadTemplates(t *testing.T) {
	for name, text := range map[string]string{
		"syntax": "{{", "unknown field": `{"name":"{{.Nobody}}"}`, "not a configuration": `{{.PodCIDR}}`, "no name": `{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}`,
	} {
		b := newBench(t, nil, "")
		b.cfg.Template = filepath.Join(t.TempDir(), "template")
		write(t, b.cfg.Template, text, 0o644)
		err := b.SetPodCIDR(t.Context(), "10.1.0.0/16")
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), b.cfg.Template) {
			t.Errorf("%s: %v", name, err)
		}
		if files, _ := os.ReadDir(b.conf); len(files) != 0 {
			t.Errorf("%s: made %v", name, files)
		}
	}
	b := newBench(t, nil, "")
	b.cfg.Template = filepath.Join(t.TempDir(), "missing")
	if err := b.SetPodCIDR(t.Context(), "10.1.0.0/16"); err == nil || !strings.Contains(err.Error(), b.cfg.Template) {
		t.Errorf("missing: %v", err)
	}
}

// Every capability argument that Berth knows reaches a plugin that declares it,
// and none other; the pod CIDR also after a restart.
func TestCapabilities(t *testing.T) {
	all := `{"cniVersion":"1.0.0","name":"net-a","plugins":[{"type":"fake","capabilities":{"portMappings":true,"bandwidth":true,"ipRanges":true,` +
		`"dns":true,"cgroupPath":true,"labels":true,"io.kubernetes.cri.pod-annotations":true,"mac":true}}]}`
	b := newBench(t, map[string]string{"10-a.conflist": all}, addOK)
	if err := b.SetPodCIDR(t.Context(), "10.1.0.0/16,fd01::/64"); err != nil {
		t.Fatal(err)
	}
	again, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := request()
	r.Config.PortMappings[0].HostPort = 40080
	r.Config.Annotations = map[string]string{annotationIngress: "8M", "note": "x"}
	r.Config.Labels = map[string]string{"app": "web"}
	r.Config.DnsConfig = dnsConfig()
	if _, err := again.Attach(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.ReadFile(filepath.Join(b.bin, "fake.stdin.ADD"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ RuntimeConfig map[string]any }
	if err := json.Unmarshal(stdin, &got); err != nil {
		t.Fatal(err)
	}
	type m = map[string]any
	want := m{
		"portMappings":                      []any{m{"hostPort": 40080.0, "containerPort": 8080.0, "protocol": "udp", "hostIP": "127.0.0.1"}},
		"bandwidth":                         m{"ingressRate": 8e6, "ingressBurst": 2147483647.0, "egressRate": 0.0, "egressBurst": 0.0},
		"ipRanges":                          []any{[]any{m{"subnet": "10.1.0.0/16"}}, []any{m{"subnet": "fd01::/64"}}},
		"dns":                               m{"servers": []any{"192.0.2.53"}, "searches": []any{"example.org"}, "options": []any{"ndots:2"}},
		"cgroupPath":                        "/pod",
		"labels":                            m{"app": "web"},
		"io.kubernetes.cri.pod-annotations": m{annotationIngress: "8M", "note": "x"},
	}
	if d := cmp.Diff(want, got.RuntimeConfig); d != "" {
		t.Error(d)
	}
	b2 := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	if _, err := b2.Attach(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if stdin, _ = os.ReadFile(filepath.Join(b2.bin, "fake.stdin.ADD")); strings.Contains(string(stdin), "cgroupPath") {
		t.Errorf("a plugin without the capability got %s", stdin)
	}
}
