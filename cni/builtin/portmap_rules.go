package builtin

import (
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// portTable is the table of the reference plugin. Its chains, by name:
//
//	prerouting, output   a packet to the node itself: hostports_all
//	hostports_all        hostip_hostports (of old versions), hostports
//	hostports            a rule for each mapping of each pod, with its ID as comment
//	masquerading         the sender must become the node for the answer to come back
type portTable struct {
	*nftables.Table
	v4 bool
}

func portTableOf(v4 bool) portTable {
	family := nftables.TableFamilyIPv6
	if v4 {
		family = nftables.TableFamilyIPv4
	}
	return portTable{&nftables.Table{Family: family, Name: "cni_hostport"}, v4}
}

func (t portTable) chain(name string) *nftables.Chain {
	return &nftables.Chain{Table: t.Table, Name: name}
}

// ensure makes the table and what does not depend on pods.
func (t portTable) ensure(conn *nftables.Conn, snat bool) {
	conn.AddTable(t.Table)
	conn.AddChain(t.chain("hostports"))
	conn.AddChain(t.chain("hostip_hostports"))
	all := conn.AddChain(t.chain("hostports_all"))
	conn.FlushChain(all)
	for _, to := range []string{"hostip_hostports", "hostports"} {
		conn.AddRule(&nftables.Rule{Table: t.Table, Chain: all, Exprs: verdict(expr.VerdictJump, to)})
	}
	for name, hook := range map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput,
	} {
		c := conn.AddChain(natChain(t.Table, name, hook, nftables.ChainPriorityNATDest))
		conn.FlushChain(c)
		conn.AddRule(&nftables.Rule{Table: t.Table, Chain: c, Exprs: concat(matchLocal(), verdict(expr.VerdictJump, all.Name))})
	}
	if snat {
		conn.AddChain(natChain(t.Table, "masquerading", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
	}
}

// forward adds the mappings of a pod for one of its addresses.
func (s *Set) forward(id string, conf *portmapConf, pod net.IPNet) error {
	s.rules.Lock()
	defer s.rules.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("map ports: %w", err)
	}
	t := portTableOf(pod.IP.To4() != nil)
	t.ensure(conn, conf.snat())
	add := func(chain string, exprs ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: t.Table, Chain: t.chain(chain), UserData: comment(id), Exprs: concat(exprs...)})
	}
	for _, p := range conf.Runtime.Ports {
		if !p.applies(t.v4) {
			continue
		}
		var to []expr.Any
		if ip := net.ParseIP(p.HostIP); ip != nil && !ip.IsUnspecified() {
			to = matchNet(destination, single(ip), expr.CmpOpEq)
		}
		add("hostports", to, matchPort(p.number(), uint16(p.HostPort)), translate(pod.IP, uint16(p.ContainerPort)))
	}
	if conf.snat() {
		masq := []expr.Any{&expr.Masq{}}
		self := matchNet(destination, single(pod.IP), expr.CmpOpEq)
		add("masquerading", matchNet(source, single(pod.IP), expr.CmpOpEq), self, masq)
		if t.v4 {
			add("masquerading", matchNet(source, single(net.IPv4(127, 0, 0, 1)), expr.CmpOpEq), self, masq)
		}
		// A neighbour on the pod's own network may get the answer directly, past the
		// node, unless the node is the one who asks. The reference plugin's nftables
		// backend does not care, so neither do we when that was asked for by name.
		if conf.Backend == "" {
			add("masquerading", matchNet(source, pod, expr.CmpOpEq), self, matchTranslated(), masq)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("map ports of %s: %w", pod.IP, err)
	}
	return nil
}

// translate leads a packet to a pod's port.
func translate(ip net.IP, port uint16) []expr.Any {
	family, addr := uint32(unix.NFPROTO_IPV4), []byte(ip.To4())
	if addr == nil {
		family, addr = unix.NFPROTO_IPV6, ip.To16()
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: addr},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

// matchTranslated matches connections whose destination was changed.
func matchTranslated() []expr.Any {
	const dnat = 1 << 5 // IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dnat), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// unforward removes the mappings of a pod and tells whether there were any.
func (s *Set) unforward(id string) (found bool, err error) {
	s.rules.Lock()
	defer s.rules.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("unmap ports: %w", err)
	}
	var all []*nftables.Rule
	for _, v4 := range []bool{true, false} {
		for _, chain := range []string{"hostports", "hostip_hostports", "masquerading"} {
			rules, err := rulesWhere(conn, portTableOf(v4).chain(chain), func(c string) bool { return c == id })
			if err != nil {
				return false, err
			}
			all = append(all, rules...)
		}
	}
	return len(all) > 0, deleteRules(conn, all)
}

// forwarded checks that the mappings of a pod are there.
func (s *Set) forwarded(id string, conf *portmapConf, v4 bool) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("check ports: %w", err)
	}
	want := map[string]int{}
	for _, p := range conf.Runtime.Ports {
		if p.applies(v4) {
			want["hostports"]++
		}
	}
	if conf.snat() {
		want["masquerading"] = 1
	}
	for chain, n := range want {
		rules, err := rulesWhere(conn, portTableOf(v4).chain(chain), func(c string) bool { return c == id })
		if err != nil {
			return err
		}
		if len(rules) < n {
			return fmt.Errorf("missing hostport rules in %q chain", chain)
		}
	}
	return nil
}
