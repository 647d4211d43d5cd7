package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// States of sockets, as the kernel numbers them.
const (
	stateUnconnected = 7 // a UDP socket without a peer
	stateListening   = 10
)

// portsFree reports the first host port that a process of the node serves, as
// FailedPrecondition. The plugins would lead its clients to the pod instead.
func portsFree(ports []*runtimeapi.PortMapping) error {
	for _, p := range ports {
		if p.GetHostPort() <= 0 || p.GetProtocol() == runtimeapi.Protocol_SCTP {
			continue
		}
		for _, addr := range hostAddresses(p.GetHostIp()) {
			at := netip.AddrPortFrom(addr, uint16(p.GetHostPort()))
			udp := p.GetProtocol() == runtimeapi.Protocol_UDP
			if bindable(at, udp) {
				continue
			}
			if who := server(at, udp); who != "" {
				return fmt.Errorf("host port %d/%s is served by %s of the node: stop that, or take another port: %w",
					p.GetHostPort(), strings.ToLower(p.GetProtocol().String()), who, errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// hostAddresses are the addresses that a host port is taken on.
func hostAddresses(hostIP string) []netip.Addr {
	if ip, err := netip.ParseAddr(hostIP); err == nil {
		return []netip.Addr{ip.Unmap()}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

// bindable tries the address. What fails for another reason than that somebody
// has it does not count.
func bindable(at netip.AddrPort, udp bool) bool {
	kind, family := unix.SOCK_STREAM, unix.AF_INET6
	if udp {
		kind = unix.SOCK_DGRAM
	}
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if at.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	if family == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if !udp { // connections that are over do not hold a port
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	return !errors.Is(unix.Bind(fd, sa), unix.EADDRINUSE)
}

// server describes who serves an address, "" when that is nobody: a client may
// have the port too, by chance.
func server(at netip.AddrPort, udp bool) string {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, state := netlink.SocketDiagTCP, uint8(stateListening)
		if udp {
			list, state = netlink.SocketDiagUDP, stateUnconnected
		}
		sockets, err := list(family)
		for tries := 0; tries < 5 && errors.Is(err, netlink.ErrDumpInterrupted); tries++ {
			sockets, err = list(family)
		}
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return "a process" // it cannot be told which
		}
		for _, s := range sockets {
			if s.State != state || s.ID.SourcePort != at.Port() || !covers(s.ID.Source, at.Addr()) {
				continue
			}
			return fmt.Sprintf("%s (%s)", processOf(s.INode), net.JoinHostPort(s.ID.Source.String(), fmt.Sprint(at.Port())))
		}
	}
	return ""
}

// covers tells whether two addresses are one, or one of them is any.
func covers(bound net.IP, want netip.Addr) bool {
	return bound.IsUnspecified() || want.IsUnspecified() || bound.Equal(want.AsSlice())
}

// processOf names the process that has a socket.
func processOf(inode uint32) string {
	link := fmt.Sprintf("socket:[%d]", inode)
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != link {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err == nil {
			return fmt.Sprintf("process %s %q", pid, strings.TrimSpace(string(name)))
		}
	}
	return "a process"
}
