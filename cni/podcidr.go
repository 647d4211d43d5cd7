package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/template"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// templateFile is the name of the configuration that is made of a template. It
// sorts like that of other runtimes, before what most networks install.
const templateFile = "10-berth-net.conflist"

// maxTemplate bounds a template, in bytes.
const maxTemplate = 1 << 20

// podCIDR is what the client said about the node's pod addresses.
type podCIDR struct {
	mu  sync.Mutex
	all []netip.Prefix // nil: not read yet
}

// SetPodCIDR takes the subnets of the node's pods, separated by commas: plugins
// with the capability ipRanges get them from now on, after a restart too, and a
// network configuration is made of the template, if there is one and pods have no
// network yet. InvalidArgument for what is not a list of subnets,
// FailedPrecondition when the template makes no configuration.
func (m *Manager) SetPodCIDR(ctx context.Context, text string) error {
	cidrs, err := parseCIDRs(text)
	if err != nil || len(cidrs) == 0 {
		return err
	}
	m.cidr.mu.Lock()
	m.cidr.all = cidrs
	err = m.storeCIDRs(cidrs)
	m.cidr.mu.Unlock()
	if err != nil || m.cfg.Template == "" {
		return err
	}
	if m.def.current().network != nil || m.Status(ctx).Err == nil {
		m.cfg.Logger.Info("pods have a network, the template is not used", "template", m.cfg.Template)
		return nil
	}
	file := filepath.Join(m.cfg.ConfDir, templateFile)
	if err := fill(m.cfg.Template, file, cidrs); err != nil {
		return fmt.Errorf("make network configuration %s of template %s: %w", file, m.cfg.Template, err)
	}
	m.cfg.Logger.Info("network configuration made of the template", "file", file, "template", m.cfg.Template, "cidrs", text)
	m.def.look()
	return nil
}

func parseCIDRs(text string) (out []netip.Prefix, err error) {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			return nil, fmt.Errorf("pod CIDR %q is not a subnet: %w", part, errdefs.ErrInvalidArgument)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// fill writes the configuration. The template knows the fields of containerd's.
func fill(from, to string, cidrs []netip.Prefix) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if st.Size() > maxTemplate {
		return fmt.Errorf("it is larger than %d bytes: %w", maxTemplate, errdefs.ErrFailedPrecondition)
	}
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t, err := template.New(filepath.Base(from)).Option("missingkey=error").Parse(string(raw))
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	data := struct {
		PodCIDR       string // the first
		PodCIDRRanges []string
		Routes        []string // a default route for each family
	}{PodCIDR: cidrs[0].String()}
	routed := map[string]bool{}
	for _, c := range cidrs {
		data.PodCIDRRanges = append(data.PodCIDRRanges, c.String())
		route := "::/0"
		if c.Addr().Is4() {
			route = "0.0.0.0/0"
		}
		if !routed[route] {
			routed[route] = true
			data.Routes = append(data.Routes, route)
		}
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if _, err := checked(libcni.NetworkConfFromBytes(out.Bytes())); err != nil {
		return fmt.Errorf("what comes of it is no network configuration: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return replace(to, out.Bytes(), 0o644) // readable, as others that install networks leave it
}

func (m *Manager) cidrFile() string { return filepath.Join(m.cfg.CacheDir, "pod-cidr") }

func (m *Manager) storeCIDRs(cidrs []netip.Prefix) error {
	b, err := json.Marshal(cidrs)
	if err == nil {
		err = os.MkdirAll(m.cfg.CacheDir, 0o700)
	}
	if err == nil {
		err = replace(m.cidrFile(), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("note pod CIDR: %w", err)
	}
	return nil
}

// ipRange is an entry of the "ipRanges" capability argument.
type ipRange struct {
	Subnet string `json:"subnet"`
}

// ipRanges are the node's pod subnets, one set each, as told last.
func (m *Manager) ipRanges() [][]ipRange {
	m.cidr.mu.Lock()
	defer m.cidr.mu.Unlock()
	if m.cidr.all == nil {
		m.cidr.all = []netip.Prefix{}
		b, err := os.ReadFile(m.cidrFile())
		if err == nil {
			err = json.Unmarshal(b, &m.cidr.all)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.cfg.Logger.Warn("the noted pod CIDR cannot be read", "error", err)
		}
	}
	var out [][]ipRange
	for _, p := range m.cidr.all {
		out = append(out, []ipRange{{p.String()}})
	}
	return out
}
