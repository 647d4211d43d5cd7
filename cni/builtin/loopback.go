package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"net"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

const loopbackName = "lo"

func loopbackConf(c *call) (*types100.Result, error) {
	var conf struct {
		common
		Runtime json.RawMessage `json:"runtimeConfig"` // has nothing for a loopback
		IPAM    json.RawMessage `json:"ipam"`
		DNS     json.RawMessage `json:"dns"`
	}
	if err := decode(c.stdin, &conf); err != nil {
		return nil, err
	}
	return c.previous(conf.PrevResult)
}

func loopbackAdd(_ context.Context, c *call) (*types100.Result, error) {
	prev, err := loopbackConf(c)
	if err != nil {
		return nil, err
	}
	h, err := openPod(c.netns)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	lo, err := h.LinkByName(loopbackName)
	if err != nil {
		return nil, err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return nil, err
	}
	if prev != nil {
		return prev, nil
	}
	res := &types100.Result{Interfaces: []*types100.Interface{{Name: loopbackName, Mac: "00:00:00:00:00:00", Sandbox: c.netns}}}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := addresses(h, lo, family)
		if err != nil {
			return nil, err
		}
		if len(addrs) > 0 {
			res.IPs = append(res.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: *addrs[0].IPNet})
		}
	}
	return res, nil
}

func loopbackDel(_ context.Context, c *call) error {
	if _, err := loopbackConf(c); err != nil {
		return err
	}
	h, err := openPod(c.netns)
	if errors.Is(err, errNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName(loopbackName)
	if err != nil {
		return err
	}
	return h.LinkSetDown(lo)
}

func loopbackCheck(_ context.Context, c *call) error {
	h, err := openPod(c.netns)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName(loopbackName)
	if err != nil {
		return err
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		return errors.New("loopback interface is down")
	}
	return nil
}
