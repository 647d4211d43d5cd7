package fw

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Attachment is one interface of one pod on one network.
type Attachment struct{ Network, IfName, ContainerID string }

// maxComment is the longest comment the nft program takes.
const maxComment = 128

func (a Attachment) key() string {
	return Hash(16, a.Network) + "-" + Hash(16, a.IfName+":"+a.ContainerID)
}

// comment marks the rules of an attachment, as the reference plugins do.
func (a Attachment) comment() string {
	plain := strings.NewReplacer(`"`, ``)
	text := fmt.Sprintf("%s, net: %s, if: %s, id: %s", a.key(),
		plain.Replace(a.Network), plain.Replace(a.IfName), plain.Replace(a.ContainerID))
	return text[:min(len(text), maxComment)]
}

// owner tells whether a comment is that of the attachment's rules.
func (a Attachment) owner() func(comment []byte) bool {
	key := []byte(a.key())
	return func(comment []byte) bool { return bytes.HasPrefix(comment, key) }
}

// masqTable returns the table, the chain that all packets pass on their way out,
// and the chain with a rule for each address.
func masqTable() (table *nftables.Table, post, checks *nftables.Chain) {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: "cni_plugins_masquerade"}
	return t, natChain(t, "postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource),
		&nftables.Chain{Table: t, Name: "masq_checks"}
}

// postRules are the rules of the chain on the way out: all but multicast goes on
// to the chain of addresses.
func postRules(checks string) [][]expr.Any {
	v4 := net.IPNet{IP: net.IPv4(224, 0, 0, 0).To4(), Mask: net.CIDRMask(4, 32)}
	v6 := net.IPNet{IP: net.IP{0: 0xff, 15: 0}, Mask: net.CIDRMask(8, 128)}
	out := [][]expr.Any{}
	for _, multicast := range []net.IPNet{v4, v6} {
		out = append(out, concat(matchFamily(multicast.IP.To4() != nil),
			matchNet(destination, multicast, expr.CmpOpEq), verdict(expr.VerdictReturn, "")))
	}
	return append(out, verdict(expr.VerdictGoto, checks))
}

// Masquerade hides a pod's addresses behind the node's when it talks to others
// than its own network. Rules of the attachment that are there are replaced.
func (r *Rules) Masquerade(a Attachment, nets []net.IPNet) error {
	return r.do("set up masquerading", func(conn *connection) error {
		table, post, checks := masqTable()
		stale, err := rulesWhere(conn, checks, a.owner())
		if err != nil {
			return err
		}
		conn.AddTable(table)
		conn.AddChain(checks)
		if err := ensureChain(conn, post, postRules(checks.Name)); err != nil {
			return err
		}
		for _, s := range stale {
			if err := conn.DelRule(s); err != nil {
				return err
			}
		}
		for _, n := range nets {
			conn.AddRule(&nftables.Rule{Table: table, Chain: checks, UserData: comment(a.comment()), Exprs: concat(
				matchFamily(n.IP.To4() != nil), matchNet(source, single(n.IP), expr.CmpOpEq),
				matchNet(destination, n, expr.CmpOpNeq), []expr.Any{&expr.Masq{}})})
		}
		return conn.Flush()
	})
}

// Masquerading are the rules of one attachment. The zero value is none, for sure.
type Masquerading struct {
	of         Attachment
	looked     bool
	generation uint32 // of all rules, from before these were listed
	rules      []*nftables.Rule
}

// Exists tells whether there were rules.
func (m Masquerading) Exists() bool { return len(m.rules) > 0 }

// Masqueraded finds the rules of the attachment.
func (r *Rules) Masqueraded(a Attachment) (m Masquerading, err error) {
	err = r.do("look for masquerading", func(conn *connection) (err error) {
		m = Masquerading{of: a, looked: true}
		if m.generation, err = conn.generation(); err != nil {
			return err
		}
		_, _, checks := masqTable()
		m.rules, err = rulesWhere(conn, checks, a.owner())
		return err
	})
	return m, err
}

// Unmasquerade removes the rules of an attachment. They are listed again only when
// anything has changed since they were found: their numbers may be others' then.
func (r *Rules) Unmasquerade(m Masquerading) error {
	if !m.looked {
		return nil
	}
	return r.do("remove masquerading", func(conn *connection) error {
		now, err := conn.generation()
		if err != nil {
			return err
		}
		if now == m.generation {
			if err := remove(conn, m.rules); !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
		return dropMasquerade(conn, m.of.owner())
	})
}

// MasqueradeGC removes the rules of the network that belong to none of the attachments.
func (r *Rules) MasqueradeGC(network string, valid []Attachment) error {
	ofNetwork := []byte(Hash(16, network) + "-")
	var owners []func([]byte) bool
	for _, a := range valid {
		owners = append(owners, a.owner())
	}
	return r.do("remove masquerading", func(conn *connection) error {
		return dropMasquerade(conn, func(comment []byte) bool {
			owned := func(owns func([]byte) bool) bool { return owns(comment) }
			return bytes.HasPrefix(comment, ofNetwork) && !slices.ContainsFunc(owners, owned)
		})
	})
}

func dropMasquerade(conn *connection, which func(comment []byte) bool) error {
	_, _, checks := masqTable()
	_, err := drop(conn, []*nftables.Chain{checks}, which)
	return err
}
