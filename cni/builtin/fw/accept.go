package fw

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// ErrIPTables is for what is left to a plugin's program, because another packet
// filter manager than the newer iptables programs is at work.
var ErrIPTables = errors.New("the packet filter is managed by another program")

// filterTable is the table of the newer iptables programs. A packet that one
// table drops is not saved by another, so that rules which let pods' packets
// pass have to be where the node's administrator drops them, in the very form
// that the iptables programs write: both can read and remove them. Its chains:
//
//	FORWARD        passed-on packets; leads to CNI-FORWARD
//	CNI-FORWARD    leads to the administrator's chain, then accepts for each pod
//	CNI-ADMIN      the administrator's rules; another name may be configured
type filterTable struct{ *nftables.Table }

const (
	acceptChain  = "CNI-FORWARD"
	acceptNote   = "CNI firewall plugin rules"
	overrideNote = "CNI firewall plugin admin overrides"
)

func filterTableOf(v4 bool) filterTable {
	family := nftables.TableFamilyIPv6
	if v4 {
		family = nftables.TableFamilyIPv4
	}
	return filterTable{&nftables.Table{Family: family, Name: "filter"}}
}

func (t filterTable) chain(name string) *nftables.Chain {
	return &nftables.Chain{Table: t.Table, Name: name}
}

// forward names no policy: a new chain accepts, and that of one that is there is
// the administrator's.
func (t filterTable) forward() *nftables.Chain {
	return &nftables.Chain{Table: t.Table, Name: "FORWARD", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}
}

// jump is a rule with a comment that leads to a chain.
func jump(note, chain string) []expr.Any {
	text := xt.Comment(note)
	return []expr.Any{&expr.Match{Name: "comment", Info: &text}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// acceptRules are the rules for one address: answers to it, and all from it.
func acceptRules(ip net.IP) [][]expr.Any {
	const established, related = 1 << 1, 1 << 2
	state := &xt.ConntrackMtinfo3{ConntrackMtinfo2: xt.ConntrackMtinfo2{
		ConntrackMtinfoBase: xt.ConntrackMtinfoBase{MatchFlags: uint16(xt.ConntrackState)},
		StateMask:           established | related,
	}}
	accept := []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}
	return [][]expr.Any{
		concat(matchNet(destination, single(ip), expr.CmpOpEq), []expr.Any{&expr.Match{Name: "conntrack", Rev: 3, Info: state}}, accept),
		concat(matchNet(source, single(ip), expr.CmpOpEq), accept),
	}
}

// sameRule compares rules by what they are in the kernel, but for counts.
func (t filterTable) sameRule(have *nftables.Rule, want []expr.Any) bool {
	if len(have.Exprs) != len(want) {
		return false
	}
	for i := range want {
		if _, ok := want[i].(*expr.Counter); ok {
			if _, ok := have.Exprs[i].(*expr.Counter); !ok {
				return false
			}
			continue
		}
		a, errA := expr.Marshal(byte(t.Family), have.Exprs[i])
		b, errB := expr.Marshal(byte(t.Family), want[i])
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			return false
		}
	}
	return true
}

func (t filterTable) find(rules []*nftables.Rule, want []expr.Any) *nftables.Rule {
	i := slices.IndexFunc(rules, func(r *nftables.Rule) bool { return t.sameRule(r, want) })
	if i < 0 {
		return nil
	}
	return rules[i]
}

func (t filterTable) rules(conn *connection, chain string) ([]*nftables.Rule, error) {
	return rulesOf(conn, t.chain(chain))
}

// manager reports ErrIPTables when others than the newer iptables programs, or
// firewalld unless iptables was asked for, keep the table.
func manager(conn *connection, firewalldToo bool) error {
	old, err := oldTable("filter")
	if err != nil {
		return err
	}
	if old {
		return fmt.Errorf("tables of the older iptables exist: %w", ErrIPTables)
	}
	if !firewalldToo {
		return nil
	}
	tables, err := steady(conn, conn.ListTables)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == "firewalld" }) {
		return fmt.Errorf("firewalld is at work: %w", ErrIPTables)
	}
	return nil
}

// Accept describes whose packets are let pass.
type Accept struct {
	IPs       []net.IP
	Admin     string // chain of the administrator's rules
	Firewalld bool   // it would be asked, were it there
}

func (a Accept) families() (out map[bool][]net.IP) {
	out = map[bool][]net.IP{}
	for _, ip := range a.IPs {
		out[ip.To4() != nil] = append(out[ip.To4() != nil], ip)
	}
	return out
}

// Let lets packets pass. ErrIPTables: nothing was done.
func (r *Rules) Let(a Accept) error {
	return r.do("let packets pass", func(conn *connection) error {
		if err := manager(conn, a.Firewalld); err != nil {
			return err
		}
		for v4, ips := range a.families() {
			if err := filterTableOf(v4).let(conn, a.Admin, ips); err != nil {
				return err
			}
		}
		return conn.Flush()
	})
}

func (t filterTable) let(conn *connection, admin string, ips []net.IP) error {
	conn.AddTable(t.Table)
	for _, way := range []struct {
		from *nftables.Chain
		rule []expr.Any
	}{{t.forward(), jump(acceptNote, acceptChain)}, {t.chain(acceptChain), jump(overrideNote, admin)}} {
		have, err := t.rules(conn, way.from.Name)
		if err != nil {
			return err
		}
		if t.find(have, way.rule) != nil {
			continue
		}
		if len(have) == 0 {
			conn.AddChain(way.from)
		}
		// The order matters to the kernel: where to jump to has to be there.
		to := acceptChain
		if way.from.Name == acceptChain {
			to = admin
		}
		conn.AddChain(t.chain(to))
		conn.InsertRule(&nftables.Rule{Table: t.Table, Chain: way.from, Exprs: way.rule})
	}
	have, err := t.rules(conn, acceptChain)
	if err != nil {
		return err
	}
	for _, ip := range ips {
		for _, rule := range acceptRules(ip) {
			if t.find(have, rule) == nil {
				conn.AddRule(&nftables.Rule{Table: t.Table, Chain: t.chain(acceptChain), Exprs: rule})
			}
		}
	}
	return nil
}

// Unlet takes back what Let did. ErrIPTables: all was removed that can be, but
// there may be rules in a form or place that only a program knows.
func (r *Rules) Unlet(a Accept) error {
	return r.do("let packets pass no more", func(conn *connection) (err error) {
		odd := false
		for range dropTries {
			odd = false
			for v4, ips := range a.families() {
				other, err := filterTableOf(v4).unlet(conn, ips)
				if err != nil {
					return err
				}
				odd = odd || other
			}
			// When one rule is gone, the transaction as a whole is refused.
			if err = conn.Flush(); !errors.Is(err, unix.ENOENT) {
				break
			}
		}
		if err == nil && odd {
			err = fmt.Errorf("rules of another form name the pod: %w", ErrIPTables)
		}
		return cmp.Or(err, manager(conn, a.Firewalld))
	})
}

// unlet tells whether rules in another form than ours are left.
func (t filterTable) unlet(conn *connection, ips []net.IP) (odd bool, err error) {
	have, err := t.rules(conn, acceptChain)
	if err != nil {
		return false, err
	}
	for _, ip := range ips {
		for _, rule := range acceptRules(ip) {
			for r := t.find(have, rule); r != nil; r = t.find(have, rule) {
				if err := conn.DelRule(r); err != nil {
					return false, err
				}
				have = slices.DeleteFunc(have, func(o *nftables.Rule) bool { return o == r })
			}
		}
		odd = odd || slices.ContainsFunc(have, mentions(ip))
	}
	return odd, nil
}

// mentions finds rules that compare something with an address.
func mentions(ip net.IP) func(*nftables.Rule) bool {
	raw := ip.To4()
	if raw == nil {
		raw = ip.To16()
	}
	return func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			c, ok := e.(*expr.Cmp)
			return ok && bytes.Equal(c.Data, raw)
		})
	}
}

// Lets checks that packets are let pass.
func (r *Rules) Lets(a Accept) error {
	return r.do("check that packets pass", func(conn *connection) error {
		if err := manager(conn, a.Firewalld); err != nil {
			return err
		}
		for v4, ips := range a.families() {
			t := filterTableOf(v4)
			want := map[string][][]expr.Any{"FORWARD": {jump(acceptNote, acceptChain)}, acceptChain: {jump(overrideNote, a.Admin)}}
			for _, ip := range ips {
				want[acceptChain] = append(want[acceptChain], acceptRules(ip)...)
			}
			for chain, rules := range want {
				have, err := t.rules(conn, chain)
				if err != nil {
					return err
				}
				for _, rule := range rules {
					if t.find(have, rule) == nil {
						return fmt.Errorf("expected rule not found in chain %s", chain)
					}
				}
			}
		}
		return nil
	})
}
