package builtin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// ensureBridge returns the bridge, made when it is missing, and up.
func ensureBridge(h *netlink.Handle, conf *bridgeConf) (*netlink.Bridge, error) {
	link, err := h.LinkByName(conf.Bridge)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = conf.Bridge, conf.MTU
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, syscall.EEXIST) {
			return nil, fmt.Errorf("could not add %q: %w", conf.Bridge, err)
		}
		ignore(setSysctl("net/ipv6/conf/"+conf.Bridge+"/accept_ra", "0")) // its routes are ours
		link, err = h.LinkByName(conf.Bridge)
	}
	if err != nil {
		return nil, fmt.Errorf("could not lookup %q: %w", conf.Bridge, err)
	}
	br, ok := link.(*netlink.Bridge)
	if !ok {
		return nil, fmt.Errorf("%q already exists but is not a bridge", conf.Bridge)
	}
	if br.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(br); err != nil {
			return nil, fmt.Errorf("bring %q up: %w", conf.Bridge, err)
		}
	}
	return br, nil
}

// vethSpec describes a pair of interfaces: one in the pod, one on the node.
type vethSpec struct {
	pod    string // name inside; the one on the node is made up
	mtu    int
	master int // index of a bridge for the node's end; 0: none
}

type vethPair struct{ node, pod netlink.Link }

// addPair makes the pair from inside, so that the pod's end never shows up on the node.
func addPair(node, pod *netlink.Handle, spec vethSpec) (vethPair, error) {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return vethPair{}, fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	for range 10 {
		random := make([]byte, 4)
		_, _ = rand.Read(random) // never fails
		peer := fmt.Sprintf("veth%x", random)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = spec.pod, spec.mtu
		err = pod.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: netlink.NsFd(int(own.Fd()))})
		if errors.Is(err, syscall.EEXIST) {
			if _, lookErr := pod.LinkByName(spec.pod); lookErr == nil {
				return vethPair{}, fmt.Errorf("container veth name (%q) already exists", spec.pod)
			}
			continue
		}
		if err != nil {
			return vethPair{}, fmt.Errorf("failed to make veth pair: %w", err)
		}
		pair, err := bringUp(node, pod, spec, peer)
		if err != nil {
			if link, e := pod.LinkByName(spec.pod); e == nil {
				err = errors.Join(err, pod.LinkDel(link))
			}
		}
		return pair, err
	}
	return vethPair{}, fmt.Errorf("failed to find a unique veth name: %w", err)
}

func bringUp(node, pod *netlink.Handle, spec vethSpec, peer string) (p vethPair, err error) {
	if p.pod, err = pod.LinkByName(spec.pod); err != nil {
		return p, fmt.Errorf("failed to lookup %q: %w", spec.pod, err)
	}
	if p.node, err = node.LinkByName(peer); err != nil {
		return p, fmt.Errorf("failed to lookup %q: %w", peer, err)
	}
	ignore(setSysctl("net/ipv6/conf/"+peer+"/accept_ra", "0"))
	if spec.master != 0 {
		if err := node.LinkSetMasterByIndex(p.node, spec.master); err != nil {
			return p, fmt.Errorf("failed to connect %q to its bridge: %w", peer, err)
		}
	}
	if err := node.LinkSetUp(p.node); err != nil {
		return p, fmt.Errorf("failed to set %q up: %w", peer, err)
	}
	return p, nil
}

// setPort sets a bridge port's modes; both are off on a new port.
func setPort(h *netlink.Handle, port netlink.Link, conf *bridgeConf) error {
	if conf.Hairpin {
		if err := h.LinkSetHairpin(port, true); err != nil {
			return fmt.Errorf("failed to setup hairpin mode for %s: %w", port.Attrs().Name, err)
		}
	}
	if conf.Isolation {
		if err := h.LinkSetIsolated(port, true); err != nil {
			return fmt.Errorf("failed to set isolated on for %s: %w", port.Attrs().Name, err)
		}
	}
	return nil
}

// ensureAddress gives the bridge a gateway address. Another address of the same
// network is an error, or removed with force.
func ensureAddress(h *netlink.Handle, br netlink.Link, want net.IPNet, force bool) error {
	family := netlink.FAMILY_V6
	if want.IP.To4() != nil {
		family = netlink.FAMILY_V4
	}
	have, err := addresses(h, br, family)
	if err != nil {
		return fmt.Errorf("could not get list of IP addresses: %w", err)
	}
	for _, a := range have {
		if a.IPNet.String() == want.String() {
			return nil
		}
	}
	for _, a := range have {
		if family == netlink.FAMILY_V6 && !a.IPNet.Contains(want.IP) && !want.Contains(a.IP) {
			continue // a bridge may have several IPv6 networks
		}
		if !force {
			return fmt.Errorf("%q already has an IP address different from %s (it has %s)", br.Attrs().Name, want.String(), a.IPNet)
		}
		if err := h.AddrDel(br, &netlink.Addr{IPNet: a.IPNet}); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("could not remove IP address from %q: %w", br.Attrs().Name, err)
		}
	}
	if err := h.AddrAdd(br, &netlink.Addr{IPNet: &want}); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("could not add IP address %s to %q: %w", want.String(), br.Attrs().Name, err)
	}
	// A bridge takes the lowest MAC of its ports until one is set for good.
	if err := h.LinkSetHardwareAddr(br, br.Attrs().HardwareAddr); err != nil {
		return fmt.Errorf("could not set bridge's mac: %w", err)
	}
	return nil
}

// finish waits for the port to forward and notes the final MAC addresses.
func finish(ctx context.Context, h *netlink.Handle, res *types100.Result) error {
	for wait := time.Millisecond; ; wait *= 2 {
		port, err := h.LinkByName(res.Interfaces[1].Name)
		if err != nil {
			return fmt.Errorf("look up bridge port: %w", err)
		}
		if state := port.Attrs().OperState; state != netlink.OperUp {
			if wait > 2*time.Second {
				return fmt.Errorf("bridge port in error state: %s", state)
			}
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
				return fmt.Errorf("bridge port is %s: %w", state, context.Cause(ctx))
			}
		}
		res.Interfaces[1].Mac = port.Attrs().HardwareAddr.String()
		br, err := h.LinkByName(res.Interfaces[0].Name)
		if err != nil {
			return fmt.Errorf("look up bridge: %w", err)
		}
		res.Interfaces[0].Mac = br.Attrs().HardwareAddr.String()
		return nil
	}
}
