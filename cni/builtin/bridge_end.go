package builtin

import (
	"context"
	"errors"
	"fmt"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/berth-dev/berth/cni/builtin/fw"
)

// bridgeDel disconnects a pod. It does as much as it can and repeats well.
func (s *Set) bridgeDel(ctx context.Context, c *call) error {
	conf, err := c.bridgeConf()
	if err != nil {
		return err
	}
	masqueraded, err := s.masqueraded(c, conf.Masquerade, conf.ipam != "")
	if err != nil {
		return err
	}
	if err := release(c.netns, c.ifName, s.cfg.KeepLinks); err != nil {
		return err
	}
	if conf.ipam != "" {
		if _, err := s.delegate(ctx, c, conf.ipam); err != nil {
			return err
		}
	}
	return s.rules.Unmasquerade(masqueraded)
}

// masqueraded finds a pod's masquerading, where it is configured, for the end of a
// DEL: they are looked for once, as there are rules of all pods to look through. It
// leaves the call to the program when that may have set up the masquerading with
// iptables, as it may have done for a pod with addresses.
func (s *Set) masqueraded(c *call, configured, addresses bool) (m fw.Masquerading, err error) {
	if !configured {
		return m, nil
	}
	m, err = s.rules.Masqueraded(c.attachment())
	if err != nil || m.Exists() || !addresses || c.netns == "" {
		return m, err
	}
	return m, s.refuseIPTables("CNI-" + fw.Hash(24, c.name+c.containerID))
}

// refuseIPTables leaves the call to the program when that may have made a chain.
func (s *Set) refuseIPTables(chain string) error {
	why, err := s.rules.ByIPTables(chain)
	if err == nil && why != "" {
		return refuse("%s", why)
	}
	return err
}

// bridgeGC removes the rules and addresses of attachments that are no more.
func (s *Set) bridgeGC(ctx context.Context, c *call) error {
	conf, err := c.bridgeConf()
	if err != nil {
		return err
	}
	return s.collect(ctx, c, conf.ipam)
}

func (s *Set) ptpGC(ctx context.Context, c *call) error {
	conf, err := c.ptpConf()
	if err != nil {
		return err
	}
	return s.collect(ctx, c, conf.ipam)
}

// collect removes the addresses and the masquerading of attachments of a network
// that are no more.
func (s *Set) collect(ctx context.Context, c *call, ipam string) error {
	valid, err := c.validAttachments()
	if err != nil {
		return err
	}
	if ipam != "" {
		if _, err := s.delegate(ctx, c, ipam); err != nil {
			return err
		}
	}
	var keep []fw.Attachment
	for _, v := range valid {
		keep = append(keep, fw.Attachment{Network: c.name, IfName: v.IfName, ContainerID: v.ContainerID})
	}
	return s.rules.MasqueradeGC(c.name, keep)
}

// bridgeCheck compares a pod with the result of its ADD.
func (s *Set) bridgeCheck(ctx context.Context, c *call) error {
	conf, err := c.bridgeConf()
	if err != nil {
		return err
	}
	if conf.ipam != "" {
		if _, err := s.delegate(ctx, c, conf.ipam); err != nil {
			return err
		}
	}
	res, err := c.previous(conf.PrevResult)
	if err != nil {
		return err
	}
	if res == nil {
		return errors.New("Required prevResult missing")
	}
	node, err := openNode()
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer node.Close()
	pod, err := openPod(c.netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	inside, err := podInterface(pod, c, res)
	if err != nil {
		return err
	}
	if err := checkBridge(node, conf.Bridge, inside, res); err != nil {
		return err
	}
	return checkAddresses(pod, inside, res)
}

// podInterface returns the pod's interface when it is the one of the result.
func podInterface(pod *netlink.Handle, c *call, res *types100.Result) (netlink.Link, error) {
	for _, i := range res.Interfaces {
		if i.Name != c.ifName || i.Sandbox == "" {
			continue
		}
		if i.Sandbox != c.netns {
			return nil, fmt.Errorf("Sandbox in prevResult %s doesn't match configured netns: %s", i.Sandbox, c.netns)
		}
		link, err := pod.LinkByName(c.ifName)
		if err != nil {
			return nil, fmt.Errorf("Interface name %s not found: %w", c.ifName, err)
		}
		if link.Type() != "veth" {
			return nil, fmt.Errorf("container interface %s not of type veth", c.ifName)
		}
		if mac := link.Attrs().HardwareAddr.String(); i.Mac != "" && i.Mac != mac {
			return nil, fmt.Errorf("Interface %s Mac %s doesn't match container Mac: %s", c.ifName, i.Mac, mac)
		}
		return link, nil
	}
	return nil, fmt.Errorf("CNI created interface in container %s not found", c.ifName)
}

// checkBridge looks for the bridge and the port that is the pod's peer.
func checkBridge(node *netlink.Handle, name string, inside netlink.Link, res *types100.Result) error {
	br, err := node.LinkByName(name)
	if err != nil {
		return fmt.Errorf("CNI created bridge %s in host namespace was not found: %w", name, err)
	}
	if _, ok := br.(*netlink.Bridge); !ok {
		return fmt.Errorf("Interface %s does not have link type of bridge", name)
	}
	for _, i := range res.Interfaces {
		if i.Name == name && i.Mac != "" && i.Mac != br.Attrs().HardwareAddr.String() {
			return fmt.Errorf("Bridge interface %s Mac doesn't match: %s", name, i.Mac)
		}
	}
	port, err := node.LinkByIndex(inside.Attrs().ParentIndex)
	if err != nil || port.Attrs().MasterIndex != br.Attrs().Index || port.Attrs().ParentIndex != inside.Attrs().Index {
		return fmt.Errorf("CNI veth created for bridge %s was not found", name)
	}
	return nil
}

// checkAddresses looks for every address and route of the result.
func checkAddresses(pod *netlink.Handle, inside netlink.Link, res *types100.Result) error {
	have, err := addresses(pod, inside, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("Cannot obtain List of IP Addresses: %w", err)
	}
	for _, ip := range res.IPs {
		found := false
		for _, a := range have {
			found = found || a.IPNet.String() == ip.Address.String()
		}
		if !found {
			return fmt.Errorf("Failed to match addr %s on interface %s", ip.Address.String(), inside.Attrs().Name)
		}
	}
	for _, r := range res.Routes {
		if err := checkRoute(pod, netlink.Route{Dst: &r.Dst, Gw: r.GW}); err != nil {
			return err
		}
	}
	return nil
}

func checkRoute(pod *netlink.Handle, want netlink.Route) error {
	family := netlink.FAMILY_V6
	if want.Dst.IP.To4() != nil {
		family = netlink.FAMILY_V4
	}
	mask := netlink.RT_FILTER_DST
	if want.Gw != nil {
		mask |= netlink.RT_FILTER_GW
	}
	for range dumpTries {
		got, err := pod.RouteListFiltered(family, &want, mask)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return fmt.Errorf("Expected Route %s not route table lookup error: %w", want.Dst, err)
		}
		if len(got) > 0 {
			return nil
		}
		break
	}
	return fmt.Errorf("Expected Route %s not found in routing table", want.Dst)
}
