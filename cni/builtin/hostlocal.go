package builtin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// hostLocal is the configuration of the address plugin host-local.
type hostLocal struct {
	Type    string         `json:"type"`
	Routes  []*types.Route `json:"routes"`
	DataDir string         `json:"dataDir"`
	Ranges  [][]ipRange    `json:"ranges"`
	ipRange
}

func (c *call) hostLocalConf() (*hostLocal, error) {
	var outer struct {
		IPAM    json.RawMessage `json:"ipam"`
		Args    json.RawMessage `json:"args"`
		Runtime struct {
			Ranges [][]ipRange     `json:"ipRanges"`
			IPs    json.RawMessage `json:"ips"`
		} `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(c.stdin, &outer); err != nil {
		return nil, refuse("the address configuration is not served in-process: %v", err)
	}
	if outer.IPAM == nil || outer.Runtime.IPs != nil {
		return nil, refuse("the address configuration is not served in-process")
	}
	if err := c.plainArgs(common{Args: outer.Args}); err != nil {
		return nil, err
	}
	conf := &hostLocal{}
	if err := decode(outer.IPAM, conf); err != nil {
		return nil, err
	}
	if conf.Subnet != "" {
		conf.Ranges = append([][]ipRange{{conf.ipRange}}, conf.Ranges...)
	}
	conf.Ranges = append(outer.Runtime.Ranges, conf.Ranges...)
	if conf.DataDir == "" {
		conf.DataDir = "/var/lib/cni/networks"
	}
	return conf, c.checkRanges(conf.Ranges)
}

// checkRanges completes the ranges and refuses those that overlap.
func (c *call) checkRanges(sets [][]ipRange) error {
	if len(sets) == 0 {
		return fmt.Errorf("no IP ranges specified")
	}
	var all []ipRange
	var v4, v6 int
	for i, set := range sets {
		if len(set) == 0 {
			return fmt.Errorf("invalid range set %d: empty range set", i)
		}
		for j := range set {
			if err := set[j].complete(); err != nil {
				return fmt.Errorf("invalid range set %d: %w", i, err)
			}
			if set[j].first.Is4() != set[0].first.Is4() {
				return fmt.Errorf("invalid range set %d: mixed address families", i)
			}
			if k := slices.IndexFunc(all, set[j].overlaps); k >= 0 {
				return fmt.Errorf("range %s overlaps with %s", set[j], all[k])
			}
			all = append(all, set[j])
		}
		if set[0].first.Is4() {
			v4++
		} else {
			v6++
		}
	}
	if ok, _ := version.GreaterThanOrEqualTo(c.version, "0.3.0"); !ok && max(v4, v6) > 1 {
		return fmt.Errorf("CNI version %s does not support more than 1 address per family", c.version)
	}
	return nil
}

func hostLocalAdd(ctx context.Context, c *call) (*types100.Result, error) {
	conf, err := c.hostLocalConf()
	if err != nil {
		return nil, err
	}
	s, err := openStore(ctx, conf.DataDir, c.name)
	if err != nil {
		return nil, err
	}
	defer s.close()
	held, err := s.heldBy(c.containerID, c.ifName)
	if err != nil {
		return nil, err
	}
	res := &types100.Result{Routes: conf.Routes}
	for i, set := range conf.Ranges {
		for _, ip := range held {
			if slices.ContainsFunc(set, func(r ipRange) bool { return r.contains(ip) }) {
				return nil, s.undo(c, len(res.IPs), fmt.Errorf(
					"failed to allocate for range %d: %s has been allocated to %s, duplicate allocation is not allowed", i, ip, c.containerID))
			}
		}
		ip, r, err := s.allocate(set, i, c.containerID, c.ifName)
		if err != nil {
			return nil, s.undo(c, len(res.IPs), fmt.Errorf("failed to allocate for range %d: %w", i, err))
		}
		res.IPs = append(res.IPs, &types100.IPConfig{Address: ipNet(ip, r.subnet.Bits()), Gateway: r.gateway.AsSlice()})
	}
	return res, nil
}

// undo gives back what a failed allocation had taken, and only that.
func (s *ipStore) undo(c *call, taken int, err error) error {
	if taken == 0 {
		return err
	}
	if e := s.release(c.containerID, c.ifName); e != nil {
		return fmt.Errorf("%w; and releasing: %w", err, e)
	}
	return err
}

func hostLocalDel(ctx context.Context, c *call) error {
	conf, err := c.hostLocalConf()
	if err != nil {
		return err
	}
	s, err := openStore(ctx, conf.DataDir, c.name)
	if err != nil {
		return err
	}
	defer s.close()
	return s.release(c.containerID, c.ifName)
}

func hostLocalCheck(ctx context.Context, c *call) error {
	conf, err := c.hostLocalConf()
	if err != nil {
		return err
	}
	s, err := openStore(ctx, conf.DataDir, c.name)
	if err != nil {
		return err
	}
	defer s.close()
	held, err := s.heldBy(c.containerID, c.ifName)
	if err == nil && len(held) == 0 {
		err = fmt.Errorf("host-local: Failed to find address added by container %s", c.containerID)
	}
	return err
}

// hostLocalGC releases the addresses of this network whose holders are not
// among the valid attachments.
func hostLocalGC(ctx context.Context, c *call) error {
	conf, err := c.hostLocalConf()
	if err != nil {
		return err
	}
	valid, err := c.validAttachments()
	if err != nil {
		return err
	}
	s, err := openStore(ctx, conf.DataDir, c.name)
	if err != nil {
		return err
	}
	defer s.close()
	return s.releaseAllBut(valid)
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

// ipRange is a range of addresses of one subnet. Gateway and ends have defaults.
type ipRange struct {
	Start   string `json:"rangeStart"`
	End     string `json:"rangeEnd"`
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway"`

	subnet               netip.Prefix
	first, last, gateway netip.Addr
}

func (r ipRange) String() string { return r.first.String() + "-" + r.last.String() }

func (r ipRange) contains(ip netip.Addr) bool {
	return ip.Is4() == r.first.Is4() && r.first.Compare(ip) <= 0 && ip.Compare(r.last) <= 0
}

func (r ipRange) overlaps(o ipRange) bool {
	return r.contains(o.first) || r.contains(o.last) || o.contains(r.first) || o.contains(r.last)
}
