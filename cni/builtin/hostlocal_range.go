package builtin

import (
	"fmt"
	"net"
	"net/netip"
)

func ipNet(ip netip.Addr, bits int) net.IPNet {
	return net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, ip.BitLen())}
}

// complete parses the range and fills in the defaults: the gateway is the first
// address, the range is the whole subnet but its network address and, in IPv4,
// its broadcast address.
func (r *ipRange) complete() (err error) {
	if r.subnet, err = netip.ParsePrefix(r.Subnet); err != nil {
		return err
	}
	if r.subnet.Addr().Is4In6() {
		return refuse("subnet %s is an IPv4 address written as IPv6", r.Subnet)
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
		{"Gateway", r.Gateway, false, &r.gateway, firstIP},
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
func candidates(set []ipRange, last netip.Addr, yield func(netip.Addr, ipRange) bool) {
	at, ip := 0, set[0].first
	for i, r := range set {
		if last.IsValid() && r.contains(last) {
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

func next(set []ipRange, at int, ip netip.Addr) (int, netip.Addr) {
	if ip != set[at].last {
		return at, ip.Next()
	}
	at = (at + 1) % len(set)
	return at, set[at].first
}
