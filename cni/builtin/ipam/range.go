// Package ipam keeps addresses of pods in files, in the layout of the reference
// address plugin host-local, so that both can work on them by turns.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// ErrMapped is for an IPv4 subnet that is written as an IPv6 one.
var ErrMapped = errors.New("an IPv4 address is written as IPv6")

// Range is a range of addresses of one subnet. All but the subnet has defaults:
// the gateway is the first address, the range is the whole subnet but its
// network address and, in IPv4, its broadcast address.
type Range struct {
	Start     string `json:"rangeStart"`
	End       string `json:"rangeEnd"`
	Subnet    string `json:"subnet"`
	GatewayIP string `json:"gateway"`

	subnet               netip.Prefix
	first, last, gateway netip.Addr
}

// Complete parses sets of ranges, fills in the defaults, and refuses ranges that
// overlap. It returns how many sets are IPv4 and how many IPv6.
func Complete(sets [][]Range) (v4, v6 int, err error) {
	if len(sets) == 0 {
		return 0, 0, errors.New("no IP ranges specified")
	}
	var all []Range
	for i, set := range sets {
		if len(set) == 0 {
			return 0, 0, fmt.Errorf("invalid range set %d: empty range set", i)
		}
		for j := range set {
			if err := set[j].complete(); err != nil {
				return 0, 0, fmt.Errorf("invalid range set %d: %w", i, err)
			}
			if set[j].first.Is4() != set[0].first.Is4() {
				return 0, 0, fmt.Errorf("invalid range set %d: mixed address families", i)
			}
			if k := slices.IndexFunc(all, set[j].overlaps); k >= 0 {
				return 0, 0, fmt.Errorf("range %s overlaps with %s", set[j], all[k])
			}
			all = append(all, set[j])
		}
		if set[0].first.Is4() {
			v4++
		} else {
			v6++
		}
	}
	return v4, v6, nil
}

// String returns the first and the last address.
func (r Range) String() string { return r.first.String() + "-" + r.last.String() }

// Contains tells whether an address is in the range.
func (r Range) Contains(ip netip.Addr) bool {
	return ip.Is4() == r.first.Is4() && r.first.Compare(ip) <= 0 && ip.Compare(r.last) <= 0
}

// Bits is the length of the subnet's prefix.
func (r Range) Bits() int { return r.subnet.Bits() }

// Gateway is the address that leads out of the subnet.
func (r Range) Gateway() netip.Addr { return r.gateway }

func (r Range) overlaps(o Range) bool {
	return r.Contains(o.first) || r.Contains(o.last) || o.Contains(r.first) || o.Contains(r.last)
}

func (r *Range) complete() (err error) {
	if r.subnet, err = netip.ParsePrefix(r.Subnet); err != nil {
		return err
	}
	if r.subnet.Addr().Is4In6() {
		return fmt.Errorf("subnet %s: %w", r.Subnet, ErrMapped)
	}
	if bits := r.subnet.Bits(); bits > r.subnet.Addr().BitLen()-2 {
		return fmt.Errorf("Network %s too small to allocate from", r.subnet)
	}
	if r.subnet != r.subnet.Masked() {
		return fmt.Errorf("Network has host bits set. For a subnet mask of length %d the network address is %s",
			r.subnet.Bits(), r.subnet.Masked().Addr())
	}
	firstIP := r.subnet.Addr().Next()
	lastIP := lastOf(r.subnet)
	if lastIP.Is4() {
		lastIP = lastIP.Prev()
	}
	for _, f := range []struct {
		what, text string
		inSubnet   bool
		to         *netip.Addr
		otherwise  netip.Addr
	}{
		{"Gateway", r.GatewayIP, false, &r.gateway, firstIP},
		{"RangeStart", r.Start, true, &r.first, firstIP},
		{"RangeEnd", r.End, true, &r.last, lastIP},
	} {
		if *f.to = f.otherwise; f.text == "" {
			continue
		}
		ip, err := netip.ParseAddr(f.text)
		if err != nil {
			return err
		}
		*f.to = ip.Unmap()
		if f.inSubnet && !r.subnet.Contains(*f.to) {
			return fmt.Errorf("%s %s not in network %s", f.what, *f.to, r.subnet)
		}
	}
	if r.last.Less(r.first) {
		return fmt.Errorf("RangeEnd %s not in network %s from %s on", r.last, r.subnet, r.first)
	}
	return nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip
}

// candidates yields the addresses of a set in the order they are tried: from
// the one after last, once around, never a gateway.
func candidates(set []Range, last netip.Addr, yield func(netip.Addr, Range) bool) {
	at, ip := 0, set[0].first
	for i, r := range set {
		if last.IsValid() && r.Contains(last) {
			at, ip = next(set, i, last)
		}
	}
	start := ip
	for first := true; first || ip != start; first = false {
		r := set[at]
		if ip != r.gateway && !yield(ip, r) {
			return
		}
		at, ip = next(set, at, ip)
	}
}

func next(set []Range, at int, ip netip.Addr) (int, netip.Addr) {
	if ip != set[at].last {
		return at, ip.Next()
	}
	at = (at + 1) % len(set)
	return at, set[at].first
}
