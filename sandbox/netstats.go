package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/store"
)

// Interface is a network interface of a pod with its counters since it was made.
type Interface struct {
	Name   string
	Rx, Tx Traffic
}

// Traffic counts one direction.
type Traffic struct {
	Bytes, Packets, Errors, Drops uint64
}

// Interfaces returns the interfaces inside the pod's network namespace but
// loopback, the pod's default one, eth0, first. A pod on the node's network
// has none of its own.
func (m *Manager) Interfaces(s store.Sandbox) ([]Interface, error) {
	if hostNetwork(s.Config) {
		return nil, nil
	}
	var text []byte
	err := netns.Do(m.at.pin(s.ID, netns.Net), func() (err error) {
		// One file for all interfaces, and its counters are the same 64-bit
		// ones that netlink reports.
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read interfaces of sandbox %s: %w", s.ID, err)
	}
	return parseNetDev(string(text)), nil
}

// Columns of /proc/net/dev after the name; eight per direction.
const (
	colBytes, colPackets, colErrors, colDrops = 0, 1, 2, 3
	colTx                                     = 8
	columns                                   = 16
)

// parseNetDev reads /proc/net/dev; lines that look otherwise, such as the two
// of its head, are skipped.
func parseNetDev(text string) (out []Interface) {
	for line := range strings.Lines(text) {
		// A name may hold a colon (an old alias); no figure does.
		i := strings.LastIndexByte(line, ':')
		if i < 0 {
			continue
		}
		name := strings.TrimSpace(line[:i])
		var n [columns]uint64
		f := strings.Fields(line[i+1:])
		if name == "" || name == "lo" || len(f) < columns || !allNumbers(f, n[:]) {
			continue
		}
		in := Interface{Name: name, Rx: traffic(n[:]), Tx: traffic(n[colTx:])}
		if name == "eth0" {
			out = append([]Interface{in}, out...)
			continue
		}
		out = append(out, in)
	}
	return out
}

func allNumbers(fields []string, into []uint64) bool {
	for i := range into {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return false
		}
		into[i] = n
	}
	return true
}

func traffic(n []uint64) Traffic {
	return Traffic{Bytes: n[colBytes], Packets: n[colPackets], Errors: n[colErrors], Drops: n[colDrops]}
}
