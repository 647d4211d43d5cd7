package doctor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
)

// links lists the node's ends of pods' links: those on a bridge of our networks
// whose other end is in a pinned namespace of ours, or in none that anybody
// pinned.
func (n *Node) links() []Thing {
	bridges := map[string]bool{}
	for _, c := range n.confs() {
		for _, p := range c.plugins() {
			if p.Type == "bridge" {
				bridges[p.Bridge] = true
			}
		}
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	names := map[int]string{}
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	owners, others := n.netNamespaces()
	var out []Thing
	for _, l := range all {
		a := l.Attrs()
		if l.Type() != "veth" || !bridges[names[a.MasterIndex]] || a.MasterIndex == 0 || others[a.NetNsID] {
			continue
		}
		t := Thing{Kind: "interface", Name: a.Name, Owner: owners[a.NetNsID], Class: OfSandbox, Remedy: "ip link del " + a.Name}
		if t.Owner == "" {
			t.Class = OfNobody
		}
		out = append(out, t)
	}
	return out
}

// netNamespaces maps the numbers by which this namespace knows others: to the
// sandbox that pinned one, and those that somebody else pinned.
func (n *Node) netNamespaces() (owners map[int]string, others map[int]bool) {
	owners, others = map[int]string{}, map[int]bool{}
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		left, right, _ := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if len(f) < 5 || !strings.HasPrefix(right, "nsfs ") || !strings.HasPrefix(f[3], "net:") {
			continue
		}
		number, err := namespaceNumber(f[4])
		if err != nil || number < 0 {
			continue
		}
		if id := idIn(f[4]); strings.HasPrefix(f[4], n.run("ns")+"/") && id != "" {
			owners[number] = id
		} else {
			others[number] = true
		}
	}
	return owners, others
}

func namespaceNumber(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return -1, err
	}
	defer func() { _ = f.Close() }()
	return netlink.GetNetNsIdByFd(int(f.Fd()))
}

// nftRules lists the rules of plugins that name a pod in their comment.
func nftRules() []Thing {
	conn, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil
	}
	var out []Thing
	for _, c := range chains {
		if !strings.HasPrefix(c.Table.Name, "cni_") {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			continue
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			if id := ruleOwner(strings.TrimRight(comment, "\x00")); id != "" {
				out = append(out, Thing{Kind: "packet filter rule", Name: fmt.Sprintf("%s %s handle %d", c.Table.Name, c.Name, r.Handle),
					Owner: id, Class: OfSandbox, Shared: true,
					Remedy: fmt.Sprintf("nft delete rule %s %s %s handle %d", family(c.Table.Family), c.Table.Name, c.Name, r.Handle)})
			}
		}
	}
	return out
}

func family(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	default:
		return "inet"
	}
}

// iptablesRules lists what plugin programs leave in the nat tables of iptables.
func iptablesRules(ctx context.Context) []Thing {
	var out []Thing
	for _, program := range []string{"iptables", "ip6tables"} {
		text, err := exec.CommandContext(ctx, program+"-save", "-t", "nat").Output()
		if err == nil {
			out = append(out, parseIPTables(program, text)...)
		}
	}
	return out
}

// parseIPTables finds the rules that name a pod, and the plugins' chains of one
// pod that nothing jumps to. Pure.
func parseIPTables(program string, save []byte) []Thing {
	perPod := regexp.MustCompile(`^:(CNI-(?:[DS]N-)?[0-9a-f]{16,})`)
	var out []Thing
	for line := range strings.Lines(string(save)) {
		line = strings.TrimSpace(line)
		if id := ruleOwner(line); id != "" {
			out = append(out, Thing{Kind: "packet filter rule", Name: program + " " + line, Owner: id, Class: OfSandbox, Shared: true,
				Remedy: program + " -t nat " + strings.Replace(line, "-A", "-D", 1)})
		}
		m := perPod.FindStringSubmatch(line)
		if m != nil && !bytes.Contains(save, []byte("-j "+m[1])) {
			out = append(out, Thing{Kind: "packet filter chain", Name: program + " " + m[1], Class: OfNobody,
				Remedy: fmt.Sprintf("%[1]s -t nat -F %[2]s; %[1]s -t nat -X %[2]s", program, m[1])})
		}
	}
	return out
}
