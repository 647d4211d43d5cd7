package builtin

import (
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// hash shortens a text the way the reference plugins do for names of rules.
func hash(length int, text string) string {
	sum := sha512.Sum512([]byte(text))
	return hex.EncodeToString(sum[:])[:length]
}

func comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }

func commentOf(r *nftables.Rule) string {
	text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return text
}

// rulesWhere lists the rules of a chain whose comment is wanted; a table or
// chain that does not exist has none.
func rulesWhere(conn *nftables.Conn, chain *nftables.Chain, want func(comment string) bool) ([]*nftables.Rule, error) {
	rules, err := conn.GetRules(chain.Table, chain)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules of chain %s: %w", chain.Name, err)
	}
	return slices.DeleteFunc(rules, func(r *nftables.Rule) bool { return !want(commentOf(r)) }), nil
}

// deleteRules removes rules in one transaction.
func deleteRules(conn *nftables.Conn, rules []*nftables.Rule) error {
	if len(rules) == 0 {
		return nil
	}
	for _, r := range rules {
		if err := conn.DelRule(r); err != nil {
			return fmt.Errorf("delete rule: %w", err)
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete rules: %w", err)
	}
	return nil
}

// match helpers: each returns expressions that go on when the packet matches.

func concat(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func matchMeta(key expr.MetaKey, value ...byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

func matchFamily(v4 bool) []expr.Any {
	if v4 {
		return matchMeta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4)
	}
	return matchMeta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6)
}

// side says which address of a packet is meant.
type side bool

const (
	source      side = false
	destination side = true
)

// matchNet compares an address of the packet with a network, or with a single
// address when the mask is full.
func matchNet(which side, n net.IPNet, op expr.CmpOp) []expr.Any {
	ip, offset := n.IP.To4(), uint32(12)
	if ip == nil {
		ip, offset = n.IP.To16(), 8
	}
	size := uint32(len(ip))
	if which == destination {
		offset += size
	}
	out := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}}
	mask := n.Mask[len(n.Mask)-len(ip):]
	if ones, bits := mask.Size(); ones < bits {
		out = append(out, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)})
	}
	return append(out, &expr.Cmp{Op: op, Register: 1, Data: ip.Mask(mask)})
}

func single(ip net.IP) net.IPNet {
	if v4 := ip.To4(); v4 != nil {
		ip = v4
	}
	return net.IPNet{IP: ip, Mask: net.CIDRMask(len(ip)*8, len(ip)*8)}
}

func matchPort(protocol byte, port uint16) []expr.Any {
	return append(matchMeta(expr.MetaKeyL4PROTO, protocol),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)})
}

// matchLocal matches packets to an address of the node.
func matchLocal() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
}

// natChain describes a chain where addresses are translated.
func natChain(t *nftables.Table, name string, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	return &nftables.Chain{Table: t, Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: prio}
}

// byIPTables refuses when a chain of that name may exist among the rules that
// the iptables programs keep: only they can remove it. Those of the older
// programs cannot be looked at, so that their table alone is reason enough.
func byIPTables(chain string) error {
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for iptables rules: %w", err)
		}
		if slices.Contains(strings.Fields(string(b)), "nat") {
			return refuse("rules of the pod may be in the tables of iptables")
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("look for iptables rules: %w", err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		chains, err := conn.ListChainsOfTableFamily(family)
		if err != nil {
			return fmt.Errorf("look for iptables rules: %w", err)
		}
		for _, c := range chains {
			if c.Table.Name == "nat" && c.Name == chain {
				return refuse("rules of the pod are in the tables of iptables")
			}
		}
	}
	return nil
}
