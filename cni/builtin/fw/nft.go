// Package fw keeps the packet filter rules of the standard network plugins, with
// nftables and without any program: translation of pods' addresses and host
// ports in the tables of the reference plugins' nftables backend, and what lets
// pods' packets pass in the table that the iptables programs use.
package fw

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Rules are the packet filter rules of the network namespace that the first call
// is made in. The zero value is ready. Safe for concurrent use.
type Rules struct {
	mu   sync.Mutex // one transaction at a time
	conn *connection
}

// do calls fn with a connection that nobody else uses meanwhile. It is kept open
// for the next call: the kernel waits, when a connection is closed, until the
// rules deleted before are out of use everywhere, which takes some 10 ms. After
// a failure it is not known what is still to be read from it.
func (r *Rules) do(what string, fn func(*connection) error) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		if r.conn, err = connect(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if err = fn(r.conn); err != nil {
		err = errors.Join(fmt.Errorf("%s: %w", what, err), r.conn.close())
		r.conn = nil
	}
	return err
}

// connection is one to nftables, and one that only asks what the library does not.
type connection struct {
	*nftables.Conn
	asks nl.SocketHandle
	buf  []byte // for lists; made when it is needed
}

func connect() (*connection, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, err
	}
	c := &connection{Conn: conn}
	if c.asks.Socket, err = nl.Subscribe(unix.NETLINK_NETFILTER); err != nil {
		return nil, errors.Join(err, conn.CloseLasting())
	}
	return c, nil
}

func (c *connection) close() error {
	c.asks.Close()
	return c.CloseLasting()
}

// Hash shortens a text the way the reference plugins do for names of rules.
func Hash(length int, text string) string {
	sum := sha512.Sum512([]byte(text))
	return hex.EncodeToString(sum[:])[:length]
}

func comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }

// listTries bounds how often a list is read again that somebody has changed
// while it was read: it may lack rules then, or have some twice.
const listTries = 20

// steady calls a function that lists rules, chains or tables until no change has
// come between.
func steady[T any](c *connection, list func() (T, error)) (out T, err error) {
	before, err := c.generation()
	for range listTries {
		if err != nil {
			return out, err
		}
		if out, err = list(); err != nil {
			return out, err
		}
		var after uint32
		if after, err = c.generation(); err == nil && after == before {
			return out, nil
		}
		before = after
	}
	if err == nil {
		err = fmt.Errorf("packet filter rules change all the time, %d attempts to list them were interrupted: %w", listTries, unix.EINTR)
	}
	return out, err
}

// rulesOf lists the rules of a chain, all of one and the same moment, with their
// expressions; a table or chain that does not exist has none.
func rulesOf(conn *connection, c *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := steady(conn, func() ([]*nftables.Rule, error) { return conn.GetRules(c.Table, c) })
	if err != nil && missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules of chain %s: %w", c.Name, err)
	}
	return rules, nil
}

// nftMsgGetGen and nftaGenID are NFT_MSG_GETGEN and NFTA_GEN_ID of
// linux/netfilter/nf_tables.h.
const (
	nftMsgGetGen = 16
	nftaGenID    = 1
)

// generation is a number that each change of nftables rules in the network
// namespace changes. The kernel marks lists that a change has interrupted, but
// the library does not pass that on.
func (c *connection) generation() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|nftMsgGetGen, 0)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: &c.asks}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("read the generation of packet filter rules: %w", err)
	}
	for _, m := range msgs {
		if id := attribute(m[min(len(m), nl.SizeofNfgenmsg):], nftaGenID); len(id) >= 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errors.New("read the generation of packet filter rules: the kernel does not tell it")
}

// ensureChain makes a chain that has exactly these rules. One that has them
// already is left alone: to replace a rule costs much more than to read it.
func ensureChain(conn *connection, c *nftables.Chain, want [][]expr.Any) error {
	have, err := rulesOf(conn, c)
	if err != nil {
		return err
	}
	same := func(r *nftables.Rule, exprs []expr.Any) bool { return reflect.DeepEqual(r.Exprs, exprs) }
	if len(want) > 0 && slices.EqualFunc(have, want, same) {
		return nil
	}
	conn.AddChain(c)
	if len(have) > 0 {
		conn.FlushChain(c)
	}
	for _, exprs := range want {
		conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: exprs})
	}
	return nil
}

// missing knows the error for a table or a chain that does not exist, which the
// library passes on as text only.
func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || strings.HasSuffix(err.Error(), unix.ENOENT.Error())
}

// dropTries bounds how often rules are looked for again that somebody else
// deletes at the same time.
const dropTries = 10

// drop removes the rules of chains whose comment is wanted, in one transaction,
// and tells how many there were.
func drop(conn *connection, chains []*nftables.Chain, want func(comment []byte) bool) (n int, err error) {
	for range dropTries {
		var rules []*nftables.Rule
		for _, c := range chains {
			some, err := rulesWhere(conn, c, want)
			if err != nil {
				return n, err
			}
			rules = append(rules, some...)
		}
		n = max(n, len(rules))
		if err = remove(conn, rules); !errors.Is(err, unix.ENOENT) {
			return n, err
		}
	}
	return n, err
}

// remove deletes rules in one transaction, which is refused as a whole, with
// ENOENT, when one of them is gone.
func remove(conn *connection, rules []*nftables.Rule) error {
	if len(rules) == 0 {
		return nil
	}
	for _, r := range rules {
		if err := conn.DelRule(r); err != nil {
			return fmt.Errorf("delete rule: %w", err)
		}
	}
	return conn.Flush()
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

// ByIPTables tells why the iptables programs may know a chain of that name in
// the nat table, or nothing when they do not: only they can remove it. The tables
// of the older programs cannot be looked at, so that theirs alone is reason
// enough.
func (r *Rules) ByIPTables(chain string) (why string, err error) {
	old, err := oldTable("nat")
	if err != nil || old {
		return "rules of the pod may be in the tables of iptables", err
	}
	err = r.do("look for iptables rules", func(conn *connection) error {
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			chains, err := steady(conn, func() ([]*nftables.Chain, error) { return conn.ListChainsOfTableFamily(family) })
			if err != nil {
				return err
			}
			for _, c := range chains {
				if c.Table.Name == "nat" && c.Name == chain {
					why = "rules of the pod are in the tables of iptables"
				}
			}
		}
		return nil
	})
	return why, err
}

// oldTable tells whether the older iptables programs have made a table.
func oldTable(name string) (bool, error) {
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("look for iptables rules: %w", err)
		}
		if slices.Contains(strings.Fields(string(b)), name) {
			return true, nil
		}
	}
	return false, nil
}
