package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"syscall"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// firstTable is where the search for a free routing table begins.
const firstTable = 100

// sbrConf is the configuration of the plugin for routing by source address.
type sbrConf struct {
	common
	Table   *int            `json:"table"`
	IPAM    json.RawMessage `json:"ipam"`
	DNS     json.RawMessage `json:"dns"`
	Runtime json.RawMessage `json:"runtimeConfig"` // has nothing for the plugin
}

func sbrAdd(_ context.Context, c *call) (*types100.Result, error) {
	conf := &sbrConf{}
	if err := decode(c.stdin, conf); err != nil {
		return nil, err
	}
	prev, err := c.previous(conf.PrevResult)
	if err != nil {
		return nil, err
	}
	if prev == nil {
		return nil, errors.New("This plugin must be called as chained plugin")
	}
	if len(prev.IPs) == 0 {
		return nil, fmt.Errorf("No IP addresses supplied on interface: %s", c.ifName)
	}
	ips := ipsOn(prev, c.ifName)
	pod, err := openPod(c.netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	if conf.Table == nil {
		return prev, routeBySource(pod, c.ifName, ips)
	}
	for _, ip := range ips {
		if err := ruleFrom(pod, ip, *conf.Table); err != nil {
			return nil, err
		}
	}
	return prev, nil
}

// ipsOn returns the addresses that a result does not give to another interface.
func ipsOn(res *types100.Result, ifName string) (ips []*types100.IPConfig) {
	for _, ip := range res.IPs {
		if i := ip.Interface; i == nil || *i < 0 || *i >= len(res.Interfaces) || res.Interfaces[*i].Name == ifName {
			ips = append(ips, ip)
		}
	}
	return ips
}

// ruleFrom makes packets from an address look into a table.
func ruleFrom(h *netlink.Handle, ip *types100.IPConfig, table int) error {
	src := hostNet(ip.Address.IP)
	rule := netlink.NewRule()
	rule.Table, rule.Src = table, &src
	if err := h.RuleAdd(rule); err != nil {
		return fmt.Errorf("Failed to add rule for %s: %w", src.String(), err)
	}
	return nil
}

// routeBySource moves the interface's routes to tables, one for each address,
// that only packets from that address look into.
func routeBySource(h *netlink.Handle, ifName string, ips []*types100.IPConfig) error {
	link, err := h.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("Cannot find network interface %s: %w", ifName, err)
	}
	used, err := usedTables(h)
	if err != nil {
		return err
	}
	routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("Unable to list routes: %w", err)
	}
	table := firstTable
	for _, ip := range ips {
		for slices.Contains(used, table) {
			table++
		}
		if err := ruleFrom(h, ip, table); err != nil {
			return err
		}
		if ip.Gateway != nil {
			all := allOf(ip.Address.IP.To4() != nil)
			if err := h.RouteAdd(&netlink.Route{Dst: &all, Gw: ip.Gateway, Table: table, LinkIndex: link.Attrs().Index}); err != nil {
				return fmt.Errorf("Failed to add default route to %s: %w", ip.Gateway, err)
			}
		}
		for _, r := range routes {
			if !ip.Address.Contains(r.Src) && !ip.Address.Contains(r.Gw) && (r.Src != nil || r.Gw != nil) {
				continue
			}
			r.Table, r.Flags = table, 0
			if err := h.RouteReplace(&r); err != nil {
				return fmt.Errorf("Failed to readd route: %w", err)
			}
		}
		table++
	}
	// Only now: a gateway is reached over one of these.
	for _, r := range routes {
		if err := h.RouteDel(&r); err != nil {
			return fmt.Errorf("Failed to delete route: %w", err)
		}
	}
	return nil
}

// usedTables lists the tables that rules lead to. Routes are looked at in the
// main table only, by the reference plugin too.
func usedTables(h *netlink.Handle) (used []int, err error) {
	rules, err := dump(func() ([]netlink.Rule, error) { return h.RuleList(netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("Failed to list all rules: %w", err)
	}
	for _, r := range rules {
		used = append(used, r.Table)
	}
	return used, nil
}

// sbrDel removes the rules; routes go with the interface.
func sbrDel(_ context.Context, c *call) error {
	conf := &sbrConf{}
	if err := decode(c.stdin, conf); err != nil {
		return err
	}
	pod, link, err := openPodLink(c.netns, c.ifName)
	if err != nil || pod == nil {
		return err
	}
	defer pod.Close()
	addrs, err := addresses(pod, link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("Failed to list all addrs: %w", err)
	}
	rules, err := dump(func() ([]netlink.Rule, error) { return pod.RuleList(netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("Failed to list all rules to tidy: %w", err)
	}
	var errs []error
	for _, r := range rules {
		ours := func(a netlink.Addr) bool { return r.Src != nil && r.Src.IP.Equal(a.IP) }
		if conf.Table != nil && r.Table != *conf.Table || !slices.ContainsFunc(addrs, ours) {
			continue
		}
		if err := pod.RuleDel(&r); err != nil && !errors.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("Failed to delete rule: %w", err))
		}
	}
	return errors.Join(errs...)
}
