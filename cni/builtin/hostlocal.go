package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berth-dev/berth/cni/builtin/ipam"
)

// hostLocal is the configuration of the address plugin host-local.
type hostLocal struct {
	Type    string         `json:"type"`
	Routes  []*types.Route `json:"routes"`
	DataDir string         `json:"dataDir"`
	Ranges  [][]ipam.Range `json:"ranges"`
	ipam.Range
}

func (c *call) hostLocalConf() (*hostLocal, error) {
	var outer struct {
		IPAM    json.RawMessage `json:"ipam"`
		Args    json.RawMessage `json:"args"`
		Runtime struct {
			Ranges [][]ipam.Range  `json:"ipRanges"`
			IPs    json.RawMessage `json:"ips"`
		} `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(c.stdin, &outer); err != nil {
		return nil, refuse("the address configuration is not served in-process: %v", err)
	}
	if isSet(outer.Runtime.IPs) {
		return nil, refuse("the configuration asks for an address")
	}
	if !isSet(outer.IPAM) {
		return nil, refuse("the configuration lacks ipam")
	}
	if err := c.plainArgs(common{Args: outer.Args}); err != nil {
		return nil, err
	}
	conf := &hostLocal{}
	if err := decode(outer.IPAM, conf); err != nil {
		return nil, err
	}
	if conf.Subnet != "" {
		conf.Ranges = append([][]ipam.Range{{conf.Range}}, conf.Ranges...)
	}
	conf.Ranges = append(outer.Runtime.Ranges, conf.Ranges...)
	if conf.DataDir == "" {
		conf.DataDir = "/var/lib/cni/networks"
	}
	v4, v6, err := ipam.Complete(conf.Ranges)
	if errors.Is(err, ipam.ErrMapped) {
		return nil, refuse("%v", err)
	}
	if ok, _ := version.GreaterThanOrEqualTo(c.version, "0.3.0"); err == nil && !ok && max(v4, v6) > 1 {
		err = fmt.Errorf("CNI version %s does not support more than 1 address per family", c.version)
	}
	return conf, err
}

func (c *call) holder() ipam.Holder { return ipam.Holder{ContainerID: c.containerID, IfName: c.ifName} }

// withAddresses calls fn with the configuration and the network's store.
func (s *Set) withAddresses(ctx context.Context, c *call, fn func(*hostLocal, *ipam.Store) error) error {
	conf, err := c.hostLocalConf()
	if err != nil {
		return err
	}
	return s.stores.With(ctx, conf.DataDir, c.name, func(st *ipam.Store) error { return fn(conf, st) })
}

func (s *Set) hostLocalAdd(ctx context.Context, c *call) (res *types100.Result, err error) {
	err = s.withAddresses(ctx, c, func(conf *hostLocal, st *ipam.Store) error {
		res = &types100.Result{Routes: conf.Routes}
		held, err := st.HeldBy(c.holder())
		if err != nil {
			return err
		}
		for i, set := range conf.Ranges {
			ip, err := allocate(c, st, held, i, set)
			if err == nil {
				res.IPs = append(res.IPs, ip)
				continue
			}
			err = fmt.Errorf("failed to allocate for range %d: %w", i, err)
			if i > 0 { // give back what was taken, and only that
				err = errors.Join(err, st.Release(c.holder()))
			}
			return err
		}
		return nil
	})
	return res, err
}

func allocate(c *call, st *ipam.Store, held []netip.Addr, index int, set []ipam.Range) (*types100.IPConfig, error) {
	for _, r := range set {
		for _, ip := range held {
			if r.Contains(ip) {
				return nil, fmt.Errorf("%s has been allocated to %s, duplicate allocation is not allowed", ip, c.containerID)
			}
		}
	}
	ip, r, err := st.Allocate(set, index, c.holder())
	if err != nil {
		return nil, err
	}
	return &types100.IPConfig{
		Address: net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(r.Bits(), ip.BitLen())},
		Gateway: r.Gateway().AsSlice(),
	}, nil
}

func (s *Set) hostLocalDel(ctx context.Context, c *call) error {
	return s.withAddresses(ctx, c, func(_ *hostLocal, st *ipam.Store) error { return st.Release(c.holder()) })
}

func (s *Set) hostLocalCheck(ctx context.Context, c *call) error {
	return s.withAddresses(ctx, c, func(_ *hostLocal, st *ipam.Store) error {
		held, err := st.HeldBy(c.holder())
		if err == nil && len(held) == 0 {
			err = fmt.Errorf("host-local: Failed to find address added by container %s", c.containerID)
		}
		return err
	})
}

// hostLocalGC releases the addresses of this network whose holders are not
// among the valid attachments.
func (s *Set) hostLocalGC(ctx context.Context, c *call) error {
	valid, err := c.validAttachments()
	if err != nil {
		return err
	}
	keep := make([]ipam.Holder, len(valid))
	for i, v := range valid {
		keep[i] = ipam.Holder{ContainerID: v.ContainerID, IfName: v.IfName}
	}
	return s.withAddresses(ctx, c, func(_ *hostLocal, st *ipam.Store) error { return st.ReleaseAllBut(keep) })
}

// validAttachments lists what a GC call says is in use. A call without the list
// must not release anything.
func (c *call) validAttachments() ([]types.GCAttachment, error) {
	var conf struct {
		Valid *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(c.stdin, &conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read valid attachments: "+err.Error(), "")
	}
	if conf.Valid == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "GC without cni.dev/valid-attachments", "")
	}
	return *conf.Valid, nil
}
