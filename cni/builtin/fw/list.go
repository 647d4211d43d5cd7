package fw

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// rulesWhere lists the rules of a chain whose comment is wanted, all of one and
// the same moment, with nothing but table, chain and handle; a table or chain that
// does not exist has none. A node has some rules for each of its pods, and each
// pod that comes or goes looks through them: the library's list, which has all
// expressions, costs about twenty times as much.
func rulesWhere(conn *connection, chain *nftables.Chain, want func(comment []byte) bool) ([]*nftables.Rule, error) {
	for range listTries {
		rules, err := conn.dump(chain, want)
		switch {
		case err == nil:
			return rules, nil
		case missing(err):
			return nil, nil
		case !errors.Is(err, nl.ErrDumpInterrupted):
			return nil, fmt.Errorf("list rules of chain %s: %w", chain.Name, err)
		}
	}
	return nil, fmt.Errorf("list rules of chain %s: they change all the time, %d attempts were interrupted: %w", chain.Name, listTries, unix.EINTR)
}

// dump reads the rules once. nl.ErrDumpInterrupted: the list may lack some, or
// have some twice.
func (c *connection) dump(chain *nftables.Chain, want func(comment []byte) bool) (out []*nftables.Rule, err error) {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8
	req := nl.NewNetlinkRequest(subsystem|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: &c.asks}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(chain.Table.Family), Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(chain.Table.Name)))
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain.Name)))
	err = req.ExecuteIter(unix.NETLINK_NETFILTER, subsystem|unix.NFT_MSG_NEWRULE, func(msg []byte) bool {
		attrs := msg[min(len(msg), nl.SizeofNfgenmsg):]
		handle := attribute(attrs, unix.NFTA_RULE_HANDLE)
		if len(handle) == 8 && want(commentIn(attribute(attrs, unix.NFTA_RULE_USERDATA))) {
			out = append(out, &nftables.Rule{Table: chain.Table, Chain: chain, Handle: binary.BigEndian.Uint64(handle)})
		}
		return true
	})
	return out, err
}

// native is asked for before there are goroutines: the library finds it out at the
// first call, without a lock.
var native = nl.NativeEndian()

// attribute finds the value of a netlink attribute; nil when there is none. Pure.
func attribute(b []byte, kind uint16) []byte {
	const header, align, kinds = 4, 4, 0x3fff
	for len(b) >= header {
		size := int(native.Uint16(b))
		if size < header || size > len(b) {
			return nil
		}
		if native.Uint16(b[2:])&kinds == kind {
			return b[header:size]
		}
		b = b[min(len(b), (size+align-1)&^(align-1)):]
	}
	return nil
}

// commentIn finds the comment in a rule's user data, a list of kind, size and
// value; nil when there is none. Pure.
func commentIn(b []byte) []byte {
	for len(b) >= 2 {
		kind, size := userdata.Type(b[0]), int(b[1])
		if size > len(b)-2 {
			return nil
		}
		if kind == userdata.TypeComment {
			return bytes.TrimSuffix(b[2:2+size], []byte{0})
		}
		b = b[2+size:]
	}
	return nil
}
