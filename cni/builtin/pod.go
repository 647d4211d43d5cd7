package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/cni/netns"
)

var errNoNamespace = fmt.Errorf("network namespace is gone: %w", errdefs.ErrNotFound)

// dumpTries bounds how often a listing that changed under way is repeated.
const dumpTries = 20

// openPod opens a netlink socket inside a network namespace. The socket stays
// there whatever thread uses it. Close it.
func openPod(path string) (*netlink.Handle, error) {
	if path == "" {
		return nil, errNoNamespace
	}
	var h *netlink.Handle
	err := netns.Do(path, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: %w", errNoNamespace, err)
	}
	return h, err
}

// openPodLink opens a pod's network namespace and finds an interface there. The
// handle is nil when one of them is gone; else close it.
func openPodLink(path, name string) (*netlink.Handle, netlink.Link, error) {
	h, err := openPod(path)
	if errors.Is(err, errNoNamespace) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	link, err := h.LinkByName(name)
	if err == nil {
		return h, link, nil
	}
	h.Close()
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil, nil
	}
	return nil, nil, fmt.Errorf("look up %q: %w", name, err)
}

// openNode opens a netlink socket in the daemon's own network namespace.
func openNode() (*netlink.Handle, error) { return netlink.NewHandle(unix.NETLINK_ROUTE) }

// dump repeats a listing that changed under way.
func dump[T any](list func() (T, error)) (all T, err error) {
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}

func addresses(h *netlink.Handle, l netlink.Link, family int) ([]netlink.Addr, error) {
	return dump(func() ([]netlink.Addr, error) { return h.AddrList(l, family) })
}

// deleteLink removes an interface; one that is gone is no error.
func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete %q: %w", name, err)
	}
	return removeLink(h, link)
}

// removeLink is deleteLink for an interface that was there a moment ago.
func removeLink(h *netlink.Handle, link netlink.Link) error {
	if err := h.LinkDel(link); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("delete %q: %w", link.Attrs().Name, err)
	}
	return nil
}

func removeAddresses(h *netlink.Handle, link netlink.Link) error {
	addrs, err := addresses(h, link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %q: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		err := h.AddrDel(link, &a)
		if err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.ENODEV) {
			return fmt.Errorf("remove address %s from %q: %w", a.IPNet, link.Attrs().Name, err)
		}
	}
	return nil
}

// setSysctl writes a value unless it is there already. The thread's network
// namespace decides which one "net/..." means.
func setSysctl(name, value string) error {
	path := "/proc/sys/" + name
	if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}

// prepareInside sets what has to be set before addresses come, inside the pod.
// Kernels without IPv6 lack some of it.
func prepareInside(path, ifName string, duplicateDetection, v6 bool) error {
	return netns.Do(path, func() error {
		dad := "0"
		if duplicateDetection {
			dad = "1"
			ignore(setSysctl("net/ipv6/conf/"+ifName+"/enhanced_dad", "1"))
		}
		ignore(setSysctl("net/ipv6/conf/"+ifName+"/accept_dad", dad))
		ignore(setSysctl("net/ipv4/conf/"+ifName+"/arp_notify", "1"))
		if !v6 {
			return nil
		}
		return allowIPv6(ifName)
	})
}

// enableIPv6 makes IPv6 addresses possible inside the pod.
func enableIPv6(path, ifName string) error {
	return netns.Do(path, func() error { return allowIPv6(ifName) })
}

func allowIPv6(ifName string) error {
	for _, name := range []string{loopbackName, ifName} {
		err := setSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("enable IPv6 on %q: %w", name, err)
		}
	}
	if err := setSysctl("net/ipv6/conf/"+ifName+"/keep_addr_on_down", "1"); err != nil {
		return fmt.Errorf("keep addresses of %q when it is down: %w", ifName, err)
	}
	return nil
}

// ignore marks an error that has no consequence.
func ignore(error) {}

// configure gives a pod's interface its addresses, brings it up and adds routes.
func configure(h *netlink.Handle, link netlink.Link, res *types100.Result) error {
	for _, ip := range res.IPs {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: &ip.Address}); err != nil {
			return fmt.Errorf("add address %s to %q: %w", ip.Address.String(), link.Attrs().Name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %q up: %w", link.Attrs().Name, err)
	}
	if slices.ContainsFunc(res.IPs, func(ip *types100.IPConfig) bool { return ip.Gateway != nil && ip.Gateway.To4() == nil }) {
		if err := settle(h, link); err != nil {
			return err
		}
	}
	for _, r := range res.Routes {
		route := netlink.Route{Dst: &r.Dst, LinkIndex: link.Attrs().Index, Gw: r.GW, Priority: r.Priority}
		for _, ip := range res.IPs {
			sameFamily := (ip.Gateway.To4() != nil) == (r.Dst.IP.To4() != nil)
			if route.Gw == nil && ip.Gateway != nil && sameFamily {
				route.Gw = ip.Gateway
			}
		}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = netlink.Scope(*r.Scope)
		}
		if err := h.RouteAddEcmp(&route); err != nil {
			return fmt.Errorf("add route %s via %s to %q: %w", r.Dst.String(), route.Gw, link.Attrs().Name, err)
		}
	}
	return nil
}

// settle waits until IPv6 addresses are no longer tentative. Without duplicate
// address detection that is a matter of a fraction of a millisecond.
func settle(h *netlink.Handle, link netlink.Link) error {
	pause := 50 * time.Microsecond
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(pause) {
		pause = min(2*pause, 10*time.Millisecond)
		addrs, err := addresses(h, link, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("settle addresses of %q: %w", link.Attrs().Name, err)
		}
		tentative := false
		for _, a := range addrs {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("link %q has address %s in duplicate address detection failed state", link.Attrs().Name, a.IPNet)
			}
			tentative = tentative || a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0
		}
		if !tentative {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("link %q still has tentative addresses after 5 s", link.Attrs().Name)
		}
	}
}

// release takes a pod's interface away, or with keep only its addresses. One
// that is gone is no error.
func release(path, ifName string, keep bool) error {
	h, link, err := openPodLink(path, ifName)
	if err != nil || h == nil {
		return err
	}
	defer h.Close()
	if keep {
		return removeAddresses(h, link)
	}
	return removeLink(h, link)
}

// enableForwarding lets the node pass packets on for the families in use.
func enableForwarding(v4, v6 bool) error {
	if v4 {
		if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
			return fmt.Errorf("enable IPv4 forwarding: %w", err)
		}
	}
	if v6 {
		if err := setSysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
			return fmt.Errorf("enable IPv6 forwarding: %w", err)
		}
	}
	return nil
}
