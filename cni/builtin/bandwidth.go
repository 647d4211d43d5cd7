package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"syscall"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/berth-dev/berth/cni/builtin/fw"
)

// Limits are rates in bits per second and bursts in bits, seen from the pod; 0
// is no limit. Exported, as encoding/json cannot make an embedded one otherwise.
type Limits struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// bandwidthConf is the configuration of the bandwidth plugin, as far as served.
type bandwidthConf struct {
	common
	*Limits
	IPAM    json.RawMessage `json:"ipam"`
	DNS     json.RawMessage `json:"dns"`
	Runtime struct {
		Bandwidth *Limits `json:"bandwidth"`
	} `json:"runtimeConfig"`

	prev     *types100.Result
	in, out  *netlink.Tbf // to and from the pod; nil for no limit
	redirect string       // device that what comes from the pod is led through
}

func (c *call) bandwidthConf() (*bandwidthConf, error) {
	conf := &bandwidthConf{}
	if err := decode(c.stdin, conf); err != nil {
		return nil, err
	}
	if conf.Limits == nil {
		if conf.Limits = conf.Runtime.Bandwidth; conf.Limits == nil {
			conf.Limits = &Limits{}
		}
	}
	var err error
	if conf.in, err = shaper(conf.IngressRate, conf.IngressBurst); err != nil {
		return nil, err
	}
	if conf.out, err = shaper(conf.EgressRate, conf.EgressBurst); err != nil {
		return nil, err
	}
	const prefix, length = "bwp", 15
	conf.redirect = prefix + fw.Hash(length-len(prefix), c.name+c.containerID)
	conf.prev, err = c.previous(conf.PrevResult)
	return conf, err
}

// shaper describes a token bucket the way the reference plugin sizes it, with
// a queue of 25 ms besides the burst.
func shaper(rate, burst uint64) (*netlink.Tbf, error) {
	const latency = 0.025 // seconds
	switch {
	case burst == 0 && rate != 0:
		return nil, errors.New("if rate is set, burst must also be set")
	case rate == 0 && burst != 0:
		return nil, errors.New("if burst is set, rate must also be set")
	case burst/8 >= math.MaxUint32:
		return nil, errors.New("burst cannot be more than 4GB")
	case rate == 0:
		return nil, nil
	case rate < 8:
		return nil, fmt.Errorf("rate of %d bits per second is too low", rate)
	}
	bytesPerSecond, size := rate/8, uint32(burst/8)
	fill := uint32(float64(size) * netlink.TIME_UNITS_PER_SEC / float64(bytesPerSecond))
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytesPerSecond,
		Limit:      uint32(float64(bytesPerSecond)*latency) + size,
		Buffer:     uint32(float64(fill) * netlink.TickInUsec()),
	}, nil
}

func (s *Set) bandwidthAdd(_ context.Context, c *call) (*types100.Result, error) {
	conf, err := c.bandwidthConf()
	if err != nil {
		return nil, err
	}
	if conf.prev == nil {
		return nil, errors.New("must be called as chained plugin")
	}
	if conf.in == nil && conf.out == nil {
		return conf.prev, nil
	}
	node, err := openNode()
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	defer node.Close()
	port, err := nodeEnd(node, c, conf.prev)
	if err != nil {
		return nil, err
	}
	if conf.in != nil {
		if err := shape(node, port, conf.in); err != nil {
			return nil, err
		}
	}
	if conf.out != nil {
		ifb, err := conf.slow(node, port)
		if err != nil {
			return nil, errors.Join(err, deleteLink(node, conf.redirect))
		}
		conf.prev.Interfaces = append(conf.prev.Interfaces, &types100.Interface{Name: conf.redirect, Mac: ifb.Attrs().HardwareAddr.String()})
	}
	return conf.prev, nil
}

// nodeEnd returns the node's end of the pod's interface, which must be one that
// the result before names.
func nodeEnd(node *netlink.Handle, c *call, prev *types100.Result) (netlink.Link, error) {
	pod, err := openPod(c.netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	inside, err := pod.LinkByName(c.ifName)
	if err != nil {
		return nil, fmt.Errorf("look up %q: %w", c.ifName, err)
	}
	if inside.Type() != "veth" || inside.Attrs().ParentIndex <= 0 {
		return nil, fmt.Errorf("container interface %s has no veth peer", c.ifName)
	}
	port, err := node.LinkByIndex(inside.Attrs().ParentIndex)
	if err != nil {
		return nil, fmt.Errorf("veth peer with index %d is not in host ns: %w", inside.Attrs().ParentIndex, err)
	}
	for _, i := range prev.Interfaces {
		if i.Sandbox == "" && i.Name == port.Attrs().Name {
			return port, nil
		}
	}
	return nil, errors.New("no veth peer of container interface found in host ns")
}

func shape(h *netlink.Handle, link netlink.Link, how *netlink.Tbf) error {
	q := *how
	q.LinkIndex = link.Attrs().Index
	if err := h.QdiscAdd(&q); err != nil {
		return fmt.Errorf("create qdisc of %q: %w", link.Attrs().Name, err)
	}
	return nil
}

// slow leads what comes from the pod through a device where it waits: packets
// wait on their way out of a device only.
func (conf *bandwidthConf) slow(h *netlink.Handle, port netlink.Link) (netlink.Link, error) {
	err := h.LinkAdd(&netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: conf.redirect, Flags: net.FlagUp, MTU: port.Attrs().MTU}})
	if err != nil {
		return nil, fmt.Errorf("add link %q: %w", conf.redirect, err)
	}
	ifb, err := h.LinkByName(conf.redirect)
	if err != nil {
		return nil, fmt.Errorf("get ifb device: %w", err)
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: port.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := h.QdiscAdd(ingress); err != nil {
		return nil, fmt.Errorf("create ingress qdisc: %w", err)
	}
	err = h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: port.Attrs().Index, Parent: ingress.Handle, Priority: 1, Protocol: syscall.ETH_P_ALL},
		ClassId:     netlink.MakeHandle(1, 1),
		RedirIndex:  ifb.Attrs().Index,
		Actions:     []netlink.Action{&netlink.MirredAction{MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: ifb.Attrs().Index}},
	})
	if err != nil {
		return nil, fmt.Errorf("add filter: %w", err)
	}
	return ifb, shape(h, ifb, conf.out)
}

// bandwidthDel removes the device; all else goes with the pod's interface.
func (s *Set) bandwidthDel(_ context.Context, c *call) error {
	conf, err := c.bandwidthConf()
	if err != nil {
		return err
	}
	node, err := openNode()
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer node.Close()
	return deleteLink(node, conf.redirect)
}

func (s *Set) bandwidthCheck(_ context.Context, c *call) error {
	conf, err := c.bandwidthConf()
	if err != nil {
		return err
	}
	if conf.prev == nil {
		return errors.New("must be called as a chained plugin")
	}
	node, err := openNode()
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer node.Close()
	port, err := nodeEnd(node, c, conf.prev)
	if err != nil {
		return err
	}
	if conf.in != nil {
		if err := checkShape(node, port, conf.in); err != nil {
			return err
		}
	}
	if conf.out == nil {
		return nil
	}
	ifb, err := node.LinkByName(conf.redirect)
	if err != nil {
		return fmt.Errorf("get ifb device: %w", err)
	}
	return checkShape(node, ifb, conf.out)
}

func checkShape(h *netlink.Handle, link netlink.Link, want *netlink.Tbf) error {
	all, err := dump(func() ([]netlink.Qdisc, error) { return h.QdiscList(link) })
	if err != nil {
		return fmt.Errorf("list qdiscs of %q: %w", link.Attrs().Name, err)
	}
	for _, q := range all {
		if have, ok := q.(*netlink.Tbf); ok {
			if have.Rate != want.Rate || have.Limit != want.Limit || have.Buffer != want.Buffer {
				return fmt.Errorf("limits of %q are not those configured", link.Attrs().Name)
			}
			return nil
		}
	}
	return fmt.Errorf("Failed to find qdisc of %q", link.Attrs().Name)
}
