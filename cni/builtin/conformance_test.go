package builtin

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"
)

// chain is a network configuration of the suite.
type chain struct {
	name, version string
	plugins       string // %s is the address directory
	ports         []portMapping
	v4, v6, masq  bool
	noFilter      bool // bridged packets do not pass the node's rules
	noCheck       bool // the reference's own check fails: sbr moved the routes
	dropForward   bool // the node passes on only what rules accept
	dad           bool // pods look for duplicates of their addresses, which takes seconds
}

const (
	v4Range = `"ranges":[[{"subnet":"10.77.0.0/24"}]]`
	v4Loose = `"subnet":"10.77.0.0/24","rangeStart":"10.77.0.9","rangeEnd":"10.77.0.20","gateway":"10.77.0.3"`
	dual    = `"ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd00:77::/64"}]]`
	routes  = `"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`
	portmap = `{"type":"portmap","capabilities":{"portMappings":true}%s}`
)

func chains() []chain {
	ports := []portMapping{
		{HostPort: 8081, ContainerPort: 80, Protocol: "tcp"},
		{HostPort: 8082, ContainerPort: 80, Protocol: "udp"},
		{HostPort: 8083, ContainerPort: 80, Protocol: "tcp", HostIP: nodeV4},
		{HostPort: 8084, ContainerPort: 80, Protocol: "tcp", HostIP: nodeV6},
		{HostPort: 8085, ContainerPort: 80, Protocol: "tcp", HostIP: "0.0.0.0"},
		{HostPort: 8086, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"},
	}
	bridge := func(fields, ipam string) string {
		return `{"type":"bridge","bridge":"cnitest0",` + fields + `,"ipam":{"type":"host-local","dataDir":%q,` + ipam + `}}`
	}
	ptp := func(fields, ipam string) string {
		return `{"type":"ptp",` + fields + `,"ipam":{"type":"host-local","dataDir":%q,` + ipam + `}}`
	}
	return []chain{
		{name: "default-gateway", version: "1.0.0", v4: true, masq: true, ports: ports,
			plugins: `{"type":"loopback"},` + bridge(`"isDefaultGateway":true,"ipMasq":true`, v4Range) + "," + fmt.Sprintf(portmap, "")},
		{name: "dual-stack", version: "1.1.0", v4: true, v6: true, masq: true, ports: ports,
			plugins: bridge(`"isGateway":true,"ipMasq":true,"hairpinMode":true`, dual+","+routes) + "," + fmt.Sprintf(portmap, "")},
		{name: "nftables-asked-for", version: "0.4.0", v4: true, v6: true, masq: true, ports: ports,
			plugins: bridge(`"isDefaultGateway":true,"ipMasq":true,"ipMasqBackend":"nftables","mtu":1400`, dual) + "," + fmt.Sprintf(portmap, `,"backend":"nftables"`)},
		{name: "nftables-collected", version: "1.1.0", v4: true, v6: true, masq: true,
			plugins: bridge(`"isDefaultGateway":true,"ipMasq":true,"ipMasqBackend":"nftables"`, dual)},
		{name: "ptp-collected", version: "1.1.0", v4: true, masq: true,
			plugins: ptp(`"ipMasq":true,"ipMasqBackend":"nftables"`, v4Range+","+routes)},
		{name: "without-bridge-filter", version: "1.0.0", v4: true, v6: true, ports: ports[:2], noFilter: true,
			plugins: bridge(`"isDefaultGateway":true,"hairpinMode":true`, dual) + "," + fmt.Sprintf(portmap, "")},
		{name: "no-masquerading", version: "0.3.1", v4: true, dad: true,
			plugins: bridge(`"isGateway":true,"enabledad":true,"portIsolation":false`, v4Loose+`,"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.88.0.0/16","gw":"10.77.0.5"}]`)},
		{name: "isolated", version: "0.3.0", v4: true, plugins: bridge(`"isDefaultGateway":true,"portIsolation":true`, v4Range)},
		{name: "link-only", version: "0.3.1", plugins: `{"type":"bridge","bridge":"cnitest0"}`},
		{name: "ipv6-only", version: "1.1.0", v6: true, masq: true, ports: ports[:2],
			plugins: bridge(`"isDefaultGateway":true,"ipMasq":true`, `"ranges":[[{"subnet":"fd00:77::/64"}]]`) + "," + fmt.Sprintf(portmap, `,"snat":true`)},
		{name: "no-snat", version: "1.0.0", v4: true, masq: true, ports: ports[:1],
			plugins: bridge(`"isDefaultGateway":true,"ipMasq":true`, v4Range) + "," + fmt.Sprintf(portmap, `,"snat":false`)},
		{name: "firewall", version: "1.0.0", v4: true, v6: true, masq: true, ports: ports[:2], dropForward: true,
			plugins: bridge(`"isDefaultGateway":true,"ipMasq":true`, dual) + "," + fmt.Sprintf(portmap, "") + `,{"type":"firewall"}`},
		{name: "firewall-iptables", version: "0.4.0", v4: true, dropForward: true,
			plugins: bridge(`"isDefaultGateway":true`, v4Range) + `,{"type":"firewall","backend":"iptables","iptablesAdminChainName":"MINE"}`},
		{name: "ptp", version: "1.0.0", v4: true, v6: true, masq: true, ports: ports[:4],
			plugins: ptp(`"ipMasq":true,"mtu":1400`, dual+","+routes) + "," + fmt.Sprintf(portmap, "")},
		{name: "ptp-old", version: "0.3.1", v4: true, plugins: ptp(`"dns":{"nameservers":["192.0.2.53"]}`, v4Range+","+routes)},
		{name: "bandwidth-set", version: "1.1.0", v4: true,
			plugins: bridge(`"isDefaultGateway":true`, v4Range) + `,{"type":"bandwidth","ingressRate":8000000,"ingressBurst":1600000,"egressRate":4000000,"egressBurst":800000}`},
		{name: "bandwidth-asked-for", version: "0.4.0", v4: true,
			plugins: ptp(`"mtu":1400`, v4Range+","+routes) + `,{"type":"bandwidth","capabilities":{"bandwidth":true}}`},
		{name: "tuning", version: "1.0.0", v4: true,
			plugins: bridge(`"isDefaultGateway":true`, v4Range) + `,{"type":"tuning","dataDir":%q,"mtu":1300,"promisc":true,"allmulti":true,"txQLen":77,` +
				`"mac":"02:11:22:33:44:55","sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1","net.core.somaxconn":"500"}}`},
		{name: "sbr", version: "1.0.0", v4: true, v6: true,
			plugins: bridge(`"isDefaultGateway":true,"ipMasq":true`, dual) + `,{"type":"sbr"}`, masq: true, noCheck: true},
		{name: "sbr-table", version: "0.4.0", v4: true, plugins: bridge(`"isDefaultGateway":true`, v4Range) + `,{"type":"sbr","table":200}`},
	}
}

func (c chain) list(t *testing.T, dataDir string) *libcni.NetworkConfigList {
	t.Helper()
	plugins := strings.ReplaceAll(c.plugins, "%q", strconv.Quote(dataDir))
	l, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"suite","plugins":[%s]}`, c.version, plugins))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// side of the suite: who adds and who deletes.
type way struct {
	name     string
	add, del func(t testing.TB) *seam
}

func ways() []way {
	ref := func(t testing.TB) *seam { return newSeam(t) }
	ours := func(t testing.TB) *seam { return newSeam(t, Types()...) }
	return []way{{"reference", ref, ref}, {"in-process", ours, ours}, {"reference-then-in-process", ref, ours}, {"in-process-then-reference", ours, ref}}
}

// seen is all that the suite compares.
type seen struct {
	Results []string
	State   string
	Packets []string
	Status  string
	Left    string
}

func TestIntegrationConformance(t *testing.T) {
	bin := pluginDir(t)
	for _, c := range chains() {
		t.Run(c.name, func(t *testing.T) {
			var want seen
			for _, w := range ways() {
				ok := t.Run(w.name, func(t *testing.T) {
					got := c.run(t, bin, w)
					if w.name == "reference" {
						want = got
						t.Log(strings.Join(got.Packets, "\n"))
					} else if d := cmp.Diff(want, got); d != "" {
						t.Errorf("-reference +%s:\n%s", w.name, d)
					}
				})
				if !ok && w.name == "reference" {
					return
				}
			}
		})
	}
}

func (c chain) run(t *testing.T, bin string, way way) (s seen) {
	w := newWorld(t)
	adder, deleter := way.add(t), way.del(t)
	if c.noFilter {
		w.sh("for f in /proc/sys/net/bridge/bridge-nf-call-*; do echo 0 >$f; done")
	} else {
		w.sh("for f in /proc/sys/net/bridge/bridge-nf-call-*; do echo 1 >$f; done")
	}
	if c.dropForward {
		w.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
	}
	data := filepath.Join(w.dir, "ipam")
	list := c.list(t, data)
	pods := []string{w.pod("a"), w.pod("b")}
	for _, p := range pods {
		if !c.dad {
			w.in(p, "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
		}
	}
	lib := func(e *seam) *libcni.CNIConfig {
		return libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(w.dir, "cache"), e)
	}
	conf := func(i int) *libcni.RuntimeConf {
		rt := &libcni.RuntimeConf{ContainerID: "suite-pod-" + string(rune('a'+i)), NetNS: pods[i], IfName: "eth0",
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "p"}}, CapabilityArgs: map[string]any{}}
		if i == 0 {
			rt.CapabilityArgs["portMappings"] = c.ports
			rt.CapabilityArgs["bandwidth"] = map[string]int{"ingressRate": 8000000, "ingressBurst": 1600000, "egressRate": 4000000, "egressBurst": 800000}
		}
		return rt
	}
	var ips []string
	for i := range pods {
		res, err := lib(adder).AddNetworkList(t.Context(), list, conf(i))
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(res)
		if err != nil {
			t.Fatal(err)
		}
		s.Results = append(s.Results, normal(string(b)))
		if i == 0 {
			ips = ipsOf(t, c, b)
		}
	}
	if strings.HasPrefix(way.name, "in-process") && len(adder.used) > 0 {
		t.Errorf("programs were used: %v", adder.used)
	}
	s.State = w.describe(pods...)
	if c.dropForward {
		s.State += w.sh("iptables -S; ip6tables -S")
	}
	s.Packets = c.packets(w, pods, ips)
	if ok, _ := version.GreaterThanOrEqualTo(c.version, "0.4.0"); ok && !c.noCheck {
		for _, e := range []*seam{adder, deleter} {
			if way.add(t).set.Serves("portmap") && !e.set.Serves("portmap") && len(c.ports) > 0 && c.name != "nftables-asked-for" {
				continue // the program looks only where its own default puts rules
			}
			if err := lib(e).CheckNetworkList(t.Context(), list, conf(0)); err != nil {
				t.Errorf("check: %v", err)
			}
		}
	}
	if ok, _ := version.GreaterThanOrEqualTo(c.version, "1.1.0"); ok {
		s.Status = fmt.Sprint(lib(deleter).GetStatusNetworkList(t.Context(), list))
		c.collect(t, w, collection{lib(deleter), list, pods, data, s.State, deleter.set.Serves("host-local")})
	}
	for range 2 {
		for i := range pods {
			if err := lib(deleter).DelNetworkList(context.Background(), list, conf(i)); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
	}
	if slices.Contains(deleter.used, "firewall") && deleter.set.Serves("firewall") {
		t.Error("the rules of the firewall's program were not known")
	}
	s.Left = c.left(t, w, pods, data)
	return s
}

// collection is what is known of a network whose garbage is collected.
type collection struct {
	lib    *libcni.CNIConfig
	list   *libcni.NetworkConfigList
	pods   []string
	data   string
	state  string // before
	served bool   // in-process
}

// collect spares all, and changes nothing, then the first pod only. The
// reference programs answer GC and leave everything (v1.9.1), so that there is
// nothing to compare with.
func (c chain) collect(t *testing.T, w *world, g collection) {
	gc := func(ids ...string) {
		args := &libcni.GCArgs{}
		for _, id := range ids {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: "eth0"})
		}
		if err := g.lib.GCNetworkList(t.Context(), g.list, args); err != nil {
			t.Errorf("garbage collection: %v", err)
		}
	}
	gc("suite-pod-a", "suite-pod-b")
	if n := c.held(t, g.data); n != 2*c.families() {
		t.Errorf("a garbage collection that spares all left %d addresses", n)
	}
	if all := w.describe(g.pods...); all != g.state {
		t.Errorf("a garbage collection that spares all: %s", cmp.Diff(g.state, all))
	}
	// As after a power cut, nothing is cached of the second pod.
	if err := os.RemoveAll(filepath.Join(w.dir, "cache")); err != nil {
		t.Fatal(err)
	}
	gc("suite-pod-a")
	if n := c.held(t, g.data); g.served && n != c.families() {
		t.Errorf("a garbage collection that spares one left %d addresses", n)
	}
	if rules := w.sh("nft list ruleset | grep masquerade || true"); g.served && strings.Contains(rules, "suite-pod-b") {
		t.Errorf("a garbage collection that spares one left rules:\n%s", rules)
	}
}

func (c chain) families() (n int) {
	for _, has := range []bool{c.v4, c.v6} {
		if has {
			n++
		}
	}
	return n
}

// held counts the addresses in use.
func (c chain) held(t *testing.T, data string) (n int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(data, "suite"))
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if net.ParseIP(e.Name()) != nil {
			n++
		}
	}
	return n
}

func ipsOf(t *testing.T, c chain, result []byte) (ips []string) {
	t.Helper()
	var r struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal(result, &r); err != nil {
		t.Fatal(err)
	}
	for _, a := range r.IPs {
		ip, _, err := net.ParseCIDR(a.Address)
		if err != nil {
			t.Fatal(err)
		}
		if !ip.IsLoopback() {
			ips = append(ips, ip.String())
		}
	}
	return ips
}

// packets tries everything that should, and should not, get through.
func (c chain) packets(w *world, pods, ips []string) (out []string) {
	if len(ips) == 0 {
		return nil
	}
	w.serve(pods[0], 80)
	w.serve(w.outside, 80)
	var dials []func() string
	try := func(from, ns, network, host string, port int) {
		dials = append(dials, func() string {
			return fmt.Sprintf("%s to %s %s %d: %s", from, network, host, port, dial(ns, network, net.JoinHostPort(host, strconv.Itoa(port))))
		})
	}
	from := []struct{ name, ns string }{{"node", ""}, {"neighbour", pods[1]}, {"itself", pods[0]}, {"outside", w.outside}}
	for _, ip := range ips {
		for _, f := range from[:3] {
			try(f.name, f.ns, "tcp", ip, 80)
		}
		if net.ParseIP(ip).To4() != nil {
			try("pod", pods[0], "tcp", outsideV4, 80)
		} else {
			try("pod", pods[0], "tcp", outsideV6, 80)
		}
	}
	for _, p := range c.ports {
		for _, host := range []string{nodeV4, nodeV6, "127.0.0.1"} {
			for _, f := range from {
				if host == "127.0.0.1" && f.ns != "" || net.ParseIP(host).To4() != nil && !c.v4 || host == nodeV6 && !c.v6 {
					continue
				}
				try(f.name, f.ns, p.Protocol, host, p.HostPort)
			}
		}
	}
	// At once: those that must not get through are waited for.
	out = make([]string, len(dials))
	var all sync.WaitGroup
	for i, d := range dials {
		all.Go(func() { out[i] = d() })
	}
	all.Wait()
	return out
}

// left describes what is there after DEL.
func (c chain) left(t *testing.T, w *world, pods []string, data string) string {
	var out []string
	for _, p := range pods {
		out = append(out, normal(w.in(p, "ip -o link 2>/dev/null; ip route; ip -6 route")))
	}
	out = append(out, w.sh("ip -o link 2>/dev/null | sed -E 's/^[0-9]+: ([^:@]+).*/\\1/' | grep -v up0"))
	if rules := w.sh("nft list ruleset"); strings.Contains(rules, "suite-pod") || strings.Contains(rules, "10.77.0.") || strings.Contains(rules, "fd00:77::") {
		t.Errorf("rules left:\n%s", rules)
	}
	if notes, err := filepath.Glob(filepath.Join(data, "*.json")); err != nil || len(notes) > 0 {
		t.Errorf("notes of tuning left: %v %v", notes, err)
	}
	entries, err := os.ReadDir(filepath.Join(data, "suite"))
	if err != nil && len(c.plugins) > 60 {
		t.Error(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(data, "suite", e.Name()))
		if err != nil {
			t.Error(err)
		}
		if net.ParseIP(e.Name()) != nil {
			t.Errorf("address %s is still reserved", e.Name())
		}
		out = append(out, e.Name()+" "+string(b))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
