package builtin

import (
	"fmt"
	"net"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// attachment is one interface of one pod on one network.
type attachment struct{ network, ifName, containerID string }

// maxComment is the longest comment the nft program takes.
const maxComment = 128

func (a attachment) key() string {
	return hash(16, a.network) + "-" + hash(16, a.ifName+":"+a.containerID)
}

// comment marks the rules of an attachment, as the reference plugins do.
func (a attachment) comment() string {
	plain := strings.NewReplacer(`"`, ``)
	text := fmt.Sprintf("%s, net: %s, if: %s, id: %s", a.key(),
		plain.Replace(a.network), plain.Replace(a.ifName), plain.Replace(a.containerID))
	return text[:min(len(text), maxComment)]
}

// masqTable returns the table and the chain with a rule for each address.
func masqTable() (*nftables.Table, *nftables.Chain) {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: "cni_plugins_masquerade"}
	return t, &nftables.Chain{Table: t, Name: "masq_checks"}
}

// masquerade hides a pod's addresses behind the node's when it talks to others
// than its own network.
func (s *Set) masquerade(a attachment, nets []net.IPNet) error {
	s.rules.Lock()
	defer s.rules.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("set up masquerading: %w", err)
	}
	table, checks := masqTable()
	stale, err := rulesWhere(conn, checks, func(c string) bool { return strings.HasPrefix(c, a.key()) })
	if err != nil {
		return err
	}
	conn.AddTable(table)
	conn.AddChain(checks)
	post := conn.AddChain(natChain(table, "postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource))
	conn.FlushChain(post)
	for _, cidr := range []string{"224.0.0.0/4", "ff00::/8"} {
		_, multicast, err := net.ParseCIDR(cidr)
		if err != nil {
			return fmt.Errorf("set up masquerading: %w", err)
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: concat(matchFamily(multicast.IP.To4() != nil),
			matchNet(destination, *multicast, expr.CmpOpEq), verdict(expr.VerdictReturn, ""))})
	}
	conn.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: verdict(expr.VerdictGoto, checks.Name)})
	for _, r := range stale {
		if err := conn.DelRule(r); err != nil {
			return fmt.Errorf("set up masquerading: %w", err)
		}
	}
	for _, n := range nets {
		conn.AddRule(&nftables.Rule{Table: table, Chain: checks, UserData: comment(a.comment()), Exprs: concat(
			matchFamily(n.IP.To4() != nil), matchNet(source, single(n.IP), expr.CmpOpEq),
			matchNet(destination, n, expr.CmpOpNeq), []expr.Any{&expr.Masq{}})})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set up masquerading: %w", err)
	}
	return nil
}

// masqueraded tells whether there are rules for the attachment.
func (s *Set) masqueraded(a attachment) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("look for masquerading: %w", err)
	}
	_, checks := masqTable()
	rules, err := rulesWhere(conn, checks, func(c string) bool { return strings.HasPrefix(c, a.key()) })
	return len(rules) > 0, err
}

func (s *Set) unmasquerade(a attachment) error {
	return s.dropMasquerade(func(c string) bool { return strings.HasPrefix(c, a.key()) })
}

// masqueradeGC removes the rules of the network that belong to none of the attachments.
func (s *Set) masqueradeGC(network string, valid []types.GCAttachment) error {
	keep := map[string]bool{}
	for _, v := range valid {
		keep[attachment{network, v.IfName, v.ContainerID}.comment()] = true
	}
	return s.dropMasquerade(func(c string) bool { return strings.HasPrefix(c, hash(16, network)+"-") && !keep[c] })
}

func (s *Set) dropMasquerade(which func(comment string) bool) error {
	s.rules.Lock()
	defer s.rules.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("remove masquerading: %w", err)
	}
	_, checks := masqTable()
	rules, err := rulesWhere(conn, checks, which)
	if err != nil {
		return err
	}
	return deleteRules(conn, rules)
}
