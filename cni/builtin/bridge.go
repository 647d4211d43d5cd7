package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// bridgeConf is the configuration of the bridge plugin, as far as served.
type bridgeConf struct {
	common
	bridgeLink
	bridgeModes
	DNS     types.DNS       `json:"dns"`
	IPAM    json.RawMessage `json:"ipam"`
	Runtime map[string]any  `json:"runtimeConfig"`

	ipam string // plugin type; "" for a network without addresses
}

// bridgeLink is about interfaces.
type bridgeLink struct {
	Bridge       string `json:"bridge"`
	MTU          int    `json:"mtu"`
	Hairpin      bool   `json:"hairpinMode"`
	Isolation    bool   `json:"portIsolation"`
	DAD          bool   `json:"enabledad"`
	Gateway      bool   `json:"isGateway"`
	DefaultGW    bool   `json:"isDefaultGateway"`
	ForceAddress bool   `json:"forceAddress"`
	Masquerade   bool   `json:"ipMasq"`
	MasqBackend  string `json:"ipMasqBackend"`
}

// bridgeModes are served only when they are off.
type bridgeModes struct {
	Promisc      bool            `json:"promiscMode"`
	VLAN         int             `json:"vlan"`
	VLANTrunk    json.RawMessage `json:"vlanTrunk"`
	KeepVLAN     bool            `json:"preserveDefaultVlan"`
	MACSpoofing  bool            `json:"macspoofchk"`
	NoPodAddress bool            `json:"disableContainerInterface"`
}

func (c *call) bridgeConf() (*bridgeConf, error) {
	conf := &bridgeConf{bridgeLink: bridgeLink{Bridge: "cni0"}}
	if err := decode(c.stdin, conf); err != nil {
		return nil, err
	}
	if err := c.plainArgs(conf.common); err != nil {
		return nil, err
	}
	trunk := string(conf.VLANTrunk)
	for _, m := range []struct {
		what string
		on   bool
	}{
		{"promiscMode", conf.Promisc},
		{"vlan", conf.VLAN != 0},
		{"vlanTrunk", trunk != "" && trunk != "null" && trunk != "[]"},
		{"macspoofchk", conf.MACSpoofing},
		{"disableContainerInterface", conf.NoPodAddress},
		{"ipMasqBackend " + conf.MasqBackend, conf.MasqBackend != "" && conf.MasqBackend != "nftables"},
		{"a MAC", conf.Runtime["mac"] != nil},
	} {
		if m.on {
			return nil, refuse("the configuration asks for %s", m.what)
		}
	}
	var err error
	if conf.ipam, err = ipamType(conf.IPAM); err != nil {
		return nil, err
	}
	conf.Gateway = conf.Gateway || conf.DefaultGW
	return conf, nil
}

func (s *Set) bridgeAdd(ctx context.Context, c *call) (res *types100.Result, err error) {
	conf, err := c.bridgeConf()
	if err != nil {
		return nil, err
	}
	node, err := openNode()
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	defer node.Close()
	pod, err := openPod(c.netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	br, err := ensureBridge(node, conf)
	if err != nil {
		return nil, fmt.Errorf("failed to create bridge %q: %w", conf.Bridge, err)
	}
	pair, err := addPair(node, pod, vethSpec{pod: c.ifName, mtu: conf.MTU, master: br.Index})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo(context.WithoutCancel(ctx), c, conf.ipam, pod, true))
		}
	}()
	if err := setPort(node, pair.node, conf); err != nil {
		return nil, err
	}
	res = &types100.Result{Interfaces: []*types100.Interface{{Name: br.Name}, {Name: pair.node.Attrs().Name},
		{Name: c.ifName, Mac: pair.pod.Attrs().HardwareAddr.String(), Sandbox: c.netns}}}
	if conf.ipam == "" {
		err = pod.LinkSetUp(pair.pod)
	} else {
		err = s.bridgeAddresses(ctx, c, conf, bridgeWork{node: node, pod: pod, br: br, inside: pair.pod, res: res})
	}
	if err != nil {
		return nil, err
	}
	if dnsIsSet(conf.DNS) {
		res.DNS = conf.DNS
	}
	return res, finish(ctx, node, res)
}

// bridgeWork is what an ADD under way has in hand.
type bridgeWork struct {
	node, pod *netlink.Handle
	br        *netlink.Bridge
	inside    netlink.Link
	res       *types100.Result
}

// bridgeAddresses gets addresses and makes them work.
func (s *Set) bridgeAddresses(ctx context.Context, c *call, conf *bridgeConf, w bridgeWork) error {
	ipam, err := s.ipamAdd(ctx, c, conf.ipam)
	if err != nil {
		return err
	}
	w.res.IPs, w.res.Routes, w.res.DNS = ipam.IPs, ipam.Routes, ipam.DNS
	gateways := gatewaysOf(w.res, conf.Gateway, conf.DefaultGW)
	v4, v6 := familiesOf(w.res)
	if err := prepareInside(c.netns, c.ifName, conf.DAD, v6); err != nil {
		return err
	}
	// The bridge's addresses come first: the pod's routes need no answer from
	// them, but its first packet does.
	for _, gw := range gateways {
		if err := ensureAddress(w.node, w.br, gw, conf.ForceAddress); err != nil {
			return fmt.Errorf("failed to set bridge addr: %w", err)
		}
	}
	if err := configure(w.pod, w.inside, w.res); err != nil {
		return err
	}
	if conf.Gateway {
		if err := enableForwarding(v4, v6); err != nil {
			return err
		}
	}
	if conf.Masquerade {
		return s.rules.Masquerade(c.attachment(), networks(w.res))
	}
	return nil
}

// gatewaysOf completes the addresses' gateways, adds default routes when asked
// to, and returns the addresses that the bridge gets.
func gatewaysOf(res *types100.Result, isGateway, isDefault bool) []net.IPNet {
	var gateways []net.IPNet
	routed := map[bool]bool{} // by "is IPv4"
	for _, ip := range res.IPs {
		ip.Interface = types100.Int(2)
		v4 := ip.Address.IP.To4() != nil
		if ip.Gateway == nil && isGateway {
			ip.Gateway = firstHost(ip.Address)
		}
		if isDefault && !routed[v4] {
			routed[v4] = true
			if all := allOf(v4); !hasDefault(res.Routes, all) {
				res.Routes = append(res.Routes, &types.Route{Dst: all, GW: ip.Gateway})
			}
		}
		if isGateway {
			gateways = append(gateways, net.IPNet{IP: ip.Gateway, Mask: ip.Address.Mask})
		}
	}
	return gateways
}

func allOf(v4 bool) net.IPNet {
	if v4 {
		return net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	}
	return net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func hasDefault(routes []*types.Route, all net.IPNet) bool {
	for _, r := range routes {
		if r.GW != nil && r.Dst.String() == all.String() {
			return true
		}
	}
	return false
}

func firstHost(n net.IPNet) net.IP {
	ip := n.IP.Mask(n.Mask)
	for i := len(ip) - 1; i >= 0; i-- {
		if ip[i]++; ip[i] != 0 {
			break
		}
	}
	return ip
}
