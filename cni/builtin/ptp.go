package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// ptpConf is the configuration of the ptp plugin, as far as served.
type ptpConf struct {
	common
	MTU         int             `json:"mtu"`
	Masquerade  bool            `json:"ipMasq"`
	MasqBackend string          `json:"ipMasqBackend"`
	DNS         types.DNS       `json:"dns"`
	IPAM        json.RawMessage `json:"ipam"`
	Runtime     json.RawMessage `json:"runtimeConfig"` // is for the address plugin

	ipam string // plugin type
}

func (c *call) ptpConf() (*ptpConf, error) {
	conf := &ptpConf{}
	if err := decode(c.stdin, conf); err != nil {
		return nil, err
	}
	if err := c.plainArgs(conf.common); err != nil {
		return nil, err
	}
	if conf.MasqBackend != "" && conf.MasqBackend != "nftables" {
		return nil, refuse("the configuration asks for ipMasqBackend %s", conf.MasqBackend)
	}
	var err error
	if conf.ipam, err = ipamType(conf.IPAM); err == nil && conf.ipam == "" {
		return nil, refuse("the configuration lacks ipam")
	}
	return conf, err
}

func (s *Set) ptpAdd(ctx context.Context, c *call) (res *types100.Result, err error) {
	conf, err := c.ptpConf()
	if err != nil {
		return nil, err
	}
	pod, err := openPod(c.netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	node, err := openNode()
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	defer node.Close()
	if res, err = s.ipamAdd(ctx, c, conf.ipam); err != nil {
		return nil, err
	}
	made := false
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo(context.WithoutCancel(ctx), c, conf.ipam, pod, made))
		}
	}()
	if err := enableForwarding(familiesOf(res)); err != nil {
		return nil, err
	}
	pair, err := addPair(node, pod, vethSpec{pod: c.ifName, mtu: conf.MTU})
	if err != nil {
		return nil, err
	}
	made = true
	res.Interfaces = []*types100.Interface{{Name: pair.node.Attrs().Name, Mac: pair.node.Attrs().HardwareAddr.String()},
		{Name: c.ifName, Mac: pair.pod.Attrs().HardwareAddr.String(), Sandbox: c.netns}}
	for _, ip := range res.IPs {
		ip.Interface = types100.Int(1)
		if ip.Gateway == nil {
			return nil, fmt.Errorf("address %s has no gateway", ip.Address.String())
		}
	}
	if err := connect(c, node, pod, pair, res); err != nil {
		return nil, err
	}
	if conf.Masquerade {
		if err := s.rules.Masquerade(c.attachment(), networks(res)); err != nil {
			return nil, err
		}
	}
	if dnsIsSet(conf.DNS) {
		res.DNS = conf.DNS
	}
	return res, nil
}

// connect gives both ends their addresses and routes: all packets of the pod go
// to the node, also those to its own subnet.
func connect(c *call, node, pod *netlink.Handle, pair vethPair, res *types100.Result) error {
	if _, v6 := familiesOf(res); v6 {
		if err := enableIPv6(c.netns, c.ifName); err != nil {
			return err
		}
	}
	if err := configure(pod, pair.pod, res); err != nil {
		return err
	}
	for _, ip := range res.IPs {
		inside, outside := pair.pod.Attrs().Index, pair.node.Attrs().Index
		subnet := net.IPNet{IP: ip.Address.IP.Mask(ip.Address.Mask), Mask: ip.Address.Mask}
		gateway, self := hostNet(ip.Gateway), hostNet(ip.Address.IP)
		if err := pod.RouteDel(&netlink.Route{LinkIndex: inside, Dst: &subnet, Scope: netlink.SCOPE_NOWHERE}); err != nil {
			return fmt.Errorf("failed to delete route to %s: %w", subnet.String(), err)
		}
		for _, r := range []netlink.Route{
			{LinkIndex: inside, Dst: &gateway, Scope: netlink.SCOPE_LINK, Src: ip.Address.IP},
			{LinkIndex: inside, Dst: &subnet, Scope: netlink.SCOPE_UNIVERSE, Gw: ip.Gateway, Src: ip.Address.IP},
		} {
			if err := pod.RouteAdd(&r); err != nil {
				return fmt.Errorf("failed to add route %s: %w", r, err)
			}
		}
		if err := node.AddrAdd(pair.node, &netlink.Addr{IPNet: &gateway}); err != nil {
			return fmt.Errorf("failed to add address %s on host: %w", gateway.String(), err)
		}
		// The address may be that of a pod that has just gone, with its interface
		// still on its way out.
		if err := node.RouteReplace(&netlink.Route{LinkIndex: outside, Scope: netlink.SCOPE_HOST, Dst: &self}); err != nil {
			return fmt.Errorf("failed to add route on host: %w", err)
		}
	}
	return nil
}

func hostNet(ip net.IP) net.IPNet {
	if v4 := ip.To4(); v4 != nil {
		ip = v4
	}
	return net.IPNet{IP: ip, Mask: net.CIDRMask(len(ip)*8, len(ip)*8)}
}

// ptpDel disconnects a pod. It does as much as it can and repeats well.
func (s *Set) ptpDel(ctx context.Context, c *call) error {
	conf, err := c.ptpConf()
	if err != nil {
		return err
	}
	masqueraded, err := s.masqueraded(c, conf.Masquerade, true)
	if err != nil {
		return err
	}
	if s.cfg.KeepLinks {
		if err := disconnect(c); err != nil {
			return err
		}
	}
	if err := release(c.netns, c.ifName, s.cfg.KeepLinks); err != nil {
		return err
	}
	if _, err := s.delegate(ctx, c, conf.ipam); err != nil {
		return err
	}
	return s.rules.Unmasquerade(masqueraded)
}

// disconnect takes the routes to the pod and the addresses off the node's end,
// which stays until the pod's namespace ends.
func disconnect(c *call) error {
	pod, inside, err := openPodLink(c.netns, c.ifName)
	if err != nil || pod == nil {
		return err
	}
	defer pod.Close()
	node, err := openNode()
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer node.Close()
	port, err := node.LinkByIndex(inside.Attrs().ParentIndex)
	if err != nil || port.Type() != "veth" || port.Attrs().ParentIndex != inside.Attrs().Index {
		return nil // the pod's interface is not one of ours
	}
	inPod, err := addresses(pod, inside, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %q: %w", c.ifName, err)
	}
	for _, a := range inPod {
		self := hostNet(a.IP)
		err := node.RouteDel(&netlink.Route{LinkIndex: port.Attrs().Index, Scope: netlink.SCOPE_NOWHERE, Dst: &self})
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", a.IP, err)
		}
	}
	return removeAddresses(node, port)
}

// ptpCheck compares a pod with the result of its ADD.
func (s *Set) ptpCheck(ctx context.Context, c *call) error {
	conf, err := c.ptpConf()
	if err != nil {
		return err
	}
	if _, err := s.delegate(ctx, c, conf.ipam); err != nil {
		return err
	}
	res, err := c.previous(conf.PrevResult)
	if err != nil {
		return err
	}
	if res == nil {
		return errors.New("ptp: Required prevResult missing")
	}
	pod, err := openPod(c.netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	inside, err := podInterface(pod, c, res)
	if err != nil {
		return err
	}
	return checkAddresses(pod, inside, res)
}
