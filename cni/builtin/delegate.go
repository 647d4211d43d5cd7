package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// ipamType reads which address plugin a configuration names; none is no error.
func ipamType(raw json.RawMessage) (string, error) {
	if !isSet(raw) {
		return "", nil
	}
	var ipam types.IPAM
	if err := json.Unmarshal(raw, &ipam); err != nil {
		return "", types.NewError(types.ErrDecodingFailure, "read address configuration: "+err.Error(), "")
	}
	return ipam.Type, nil
}

// delegate gives a call on to another plugin, the way plugins do for addresses.
func (s *Set) delegate(ctx context.Context, c *call, plugin string) ([]byte, error) {
	if s.Serves(plugin) {
		return s.Call(ctx, plugin, c.stdin, c.env)
	}
	return s.cfg.Exec(ctx, plugin, c.dirs, c.stdin, c.env)
}

// ipamAdd gets at least one address from the address plugin.
func (s *Set) ipamAdd(ctx context.Context, c *call, plugin string) (*types100.Result, error) {
	out, err := s.delegate(ctx, c, plugin)
	if err != nil {
		return nil, err
	}
	res, err := c.previous(out)
	if err == nil && (res == nil || len(res.IPs) == 0) {
		err = errors.New("IPAM plugin returned missing IP config")
	}
	if err != nil {
		return nil, errors.Join(err, s.undo(context.WithoutCancel(ctx), c, plugin, nil, false))
	}
	return res, nil
}

// undo takes back what a failed ADD did: the pod's interface when it was made,
// and the addresses.
func (s *Set) undo(ctx context.Context, c *call, ipam string, pod *netlink.Handle, made bool) error {
	var errs []error
	if made {
		errs = append(errs, deleteLink(pod, c.ifName))
	}
	if ipam != "" {
		_, err := s.delegate(ctx, c.as("DEL"), ipam)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// as returns the call with another command, for the address plugin.
func (c *call) as(command string) *call {
	d := *c
	d.env = []string{"CNI_COMMAND=" + command}
	for _, kv := range c.env {
		if !strings.HasPrefix(kv, "CNI_COMMAND=") {
			d.env = append(d.env, kv)
		}
	}
	d.command = command
	return &d
}

// familiesOf tells which families a result has addresses of.
func familiesOf(res *types100.Result) (v4, v6 bool) {
	for _, ip := range res.IPs {
		v4, v6 = v4 || ip.Address.IP.To4() != nil, v6 || ip.Address.IP.To4() == nil
	}
	return v4, v6
}

func networks(res *types100.Result) (nets []net.IPNet) {
	for _, ip := range res.IPs {
		nets = append(nets, ip.Address)
	}
	return nets
}

func dnsIsSet(d types.DNS) bool {
	return d.Nameservers != nil || d.Search != nil || d.Options != nil || d.Domain != ""
}
