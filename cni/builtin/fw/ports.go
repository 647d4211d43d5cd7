package fw

import (
	"errors"
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

// Port leads a port of the node to a port of a pod.
type Port struct {
	Protocol  byte // unix.IPPROTO_...
	Host, Pod uint16
	HostIP    net.IP // nil or unspecified: every address of the node
}

// Applies tells whether the mapping is for a family.
func (p Port) Applies(v4 bool) bool { return p.HostIP == nil || (p.HostIP.To4() != nil) == v4 }

// Forwarding is what makes the ports of a pod reachable.
type Forwarding struct {
	ContainerID string
	Ports       []Port
	SNAT        bool // let the node itself and the pod itself use the ports
	// Neighbours lets pods on the pod's own network use the ports where the answer
	// would reach them directly, past the node.
	Neighbours bool
}

// ensure makes the table and what does not depend on pods.
func (t portTable) ensure(conn *connection, snat bool) error {
	conn.AddTable(t.Table)
	conn.AddChain(t.chain("hostports"))
	conn.AddChain(t.chain("hostip_hostports"))
	all := t.chain("hostports_all")
	err := ensureChain(conn, all, [][]expr.Any{verdict(expr.VerdictJump, "hostip_hostports"), verdict(expr.VerdictJump, "hostports")})
	for name, hook := range map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput,
	} {
		c := natChain(t.Table, name, hook, nftables.ChainPriorityNATDest)
		err = errors.Join(err, ensureChain(conn, c, [][]expr.Any{concat(matchLocal(), verdict(expr.VerdictJump, all.Name))}))
	}
	if snat {
		conn.AddChain(natChain(t.Table, "masquerading", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
	}
	return err
}

// Forward adds the mappings of a pod for one of its addresses, which comes with
// the pod's network.
func (r *Rules) Forward(f Forwarding, pod net.IPNet) error {
	t := portTableOf(pod.IP.To4() != nil)
	return r.do(fmt.Sprintf("map ports of %s", pod.IP), func(conn *connection) error {
		if err := t.ensure(conn, f.SNAT); err != nil {
			return err
		}
		for _, p := range f.Ports {
			if p.Applies(t.v4) {
				t.add(conn, "hostports", f, p.match(), translate(pod.IP, p.Pod))
			}
		}
		if f.SNAT {
			t.masquerade(conn, f, pod)
		}
		return conn.Flush()
	})
}

func (t portTable) add(conn *connection, chain string, f Forwarding, exprs ...[]expr.Any) {
	conn.AddRule(&nftables.Rule{Table: t.Table, Chain: t.chain(chain), UserData: comment(f.ContainerID), Exprs: concat(exprs...)})
}

// masquerade makes the node the sender where the answer would not come back.
func (t portTable) masquerade(conn *connection, f Forwarding, pod net.IPNet) {
	masq := []expr.Any{&expr.Masq{}}
	self := matchNet(destination, single(pod.IP), expr.CmpOpEq)
	t.add(conn, "masquerading", f, matchNet(source, single(pod.IP), expr.CmpOpEq), self, masq)
	if t.v4 {
		t.add(conn, "masquerading", f, matchNet(source, single(net.IPv4(127, 0, 0, 1)), expr.CmpOpEq), self, masq)
	}
	if f.Neighbours {
		t.add(conn, "masquerading", f, matchNet(source, pod, expr.CmpOpEq), self, matchTranslated(), masq)
	}
}

// match matches packets to the port of the node.
func (p Port) match() (to []expr.Any) {
	if p.HostIP != nil && !p.HostIP.IsUnspecified() {
		to = matchNet(destination, single(p.HostIP), expr.CmpOpEq)
	}
	return concat(to, matchPort(p.Protocol, p.Host))
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

// Unforward removes the mappings of a pod and tells whether there were any.
func (r *Rules) Unforward(id string) (found bool, err error) {
	err = r.do("unmap ports", func(conn *connection) error {
		var chains []*nftables.Chain
		for _, v4 := range []bool{true, false} {
			for _, chain := range []string{"hostports", "hostip_hostports", "masquerading"} {
				chains = append(chains, portTableOf(v4).chain(chain))
			}
		}
		n, err := drop(conn, chains, func(c []byte) bool { return string(c) == id })
		found = n > 0
		return err
	})
	return found, err
}

// Forwarded checks that the mappings of a pod are there, in one family. An error
// tells which chain lacks rules.
func (r *Rules) Forwarded(f Forwarding, v4 bool) error {
	want := map[string]int{}
	for _, p := range f.Ports {
		if p.Applies(v4) {
			want["hostports"]++
		}
	}
	if f.SNAT {
		want["masquerading"] = 1
	}
	return r.do("check ports", func(conn *connection) error {
		for chain, n := range want {
			rules, err := rulesWhere(conn, portTableOf(v4).chain(chain), func(c []byte) bool { return string(c) == f.ContainerID })
			if err != nil {
				return err
			}
			if len(rules) < n {
				return fmt.Errorf("missing hostport rules in %q chain", chain)
			}
		}
		return nil
	})
}
