package fw

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

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
	c.asks.Seq++
	req.Seq = c.asks.Seq
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(chain.Table.Family), Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(chain.Table.Name)))
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain.Name)))
	if err := c.asks.Socket.Send(req); err != nil {
		return nil, err
	}
	interrupted := false
	for done := false; !done; {
		b, err := c.receive()
		if err != nil {
			return nil, err
		}
		for len(b) > 0 && !done {
			var m message
			if m, b, err = next(b); err != nil {
				return nil, err
			}
			if m.seq != req.Seq {
				continue // of a request before, which failed
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := m.failure(); err != nil {
					return nil, err
				}
				done = true
			case subsystem | unix.NFT_MSG_NEWRULE:
				attrs := m.data[min(len(m.data), nl.SizeofNfgenmsg):]
				handle := attribute(attrs, unix.NFTA_RULE_HANDLE)
				if len(handle) == 8 && want(commentIn(attribute(attrs, unix.NFTA_RULE_USERDATA))) {
					out = append(out, &nftables.Rule{Table: chain.Table, Chain: chain, Handle: binary.BigEndian.Uint64(handle)})
				}
			}
		}
	}
	if interrupted {
		return nil, nl.ErrDumpInterrupted
	}
	return out, nil
}

// listBuffer is the size of a buffer for what the kernel sends at once of a list, at
// most 32 KiB.
const listBuffer = 32 << 10

// receive returns the next messages, until it is called again. The library's
// function of that name copies them.
func (c *connection) receive() ([]byte, error) {
	if c.buf == nil {
		c.buf = make([]byte, listBuffer)
	}
	for {
		n, from, err := unix.Recvfrom(c.asks.Socket.GetFd(), c.buf, 0)
		switch {
		case err == nil:
			if at, ok := from.(*unix.SockaddrNetlink); ok && at.Pid == nl.PidKernel {
				return c.buf[:n], nil
			}
		case errors.Is(err, unix.EAGAIN): // the kernel answers at once, but need not
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(c.asks.Socket.GetFd()), Events: unix.POLLIN}}, -1)
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}

// message is one of netlink.
type message struct {
	kind, flags uint16
	seq         uint32
	data        []byte
}

// next splits the first message off. Pure.
func next(b []byte) (m message, rest []byte, err error) {
	const align = 4
	if len(b) < unix.NLMSG_HDRLEN {
		return m, nil, fmt.Errorf("netlink message of %d bytes: %w", len(b), unix.EBADMSG)
	}
	size := int(native.Uint32(b))
	if size < unix.NLMSG_HDRLEN || size > len(b) {
		return m, nil, fmt.Errorf("netlink message of %d bytes in %d: %w", size, len(b), unix.EBADMSG)
	}
	m = message{kind: native.Uint16(b[4:]), flags: native.Uint16(b[6:]), seq: native.Uint32(b[8:]), data: b[unix.NLMSG_HDRLEN:size]}
	return m, b[min(len(b), (size+align-1)&^(align-1)):], nil
}

// failure is the error in a message that ends an answer.
func (m message) failure() error {
	if len(m.data) < 4 {
		return nil
	}
	if no := int32(native.Uint32(m.data)); no != 0 {
		return syscall.Errno(-no)
	}
	return nil
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
