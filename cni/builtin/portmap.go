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
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/cni/builtin/fw"
)

// portmapConf is the configuration of the portmap plugin, as far as served.
type portmapConf struct {
	common
	Backend      string          `json:"backend"`
	SNAT         *bool           `json:"snat"`
	ConditionsV4 []string        `json:"conditionsV4"`
	ConditionsV6 []string        `json:"conditionsV6"`
	IPAM         json.RawMessage `json:"ipam"`
	DNS          json.RawMessage `json:"dns"`
	Runtime      struct {
		Ports []portMapping `json:"portMappings"`
	} `json:"runtimeConfig"`

	prev *types100.Result
	pod  []net.IPNet // the pod's first address of each family
}

// portMapping leads a port of the node to a port of the pod.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

func (p portMapping) number() byte {
	return map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[p.Protocol]
}

// forwarding describes the rules of the pod.
func (conf *portmapConf) forwarding(c *call) fw.Forwarding {
	// The reference plugin's nftables backend does not care for neighbours, so
	// neither do we when that was asked for by name.
	f := fw.Forwarding{ContainerID: c.containerID, SNAT: conf.SNAT == nil || *conf.SNAT, Neighbours: conf.Backend == ""}
	for _, p := range conf.Runtime.Ports {
		f.Ports = append(f.Ports, fw.Port{Protocol: p.number(), Host: uint16(p.HostPort), Pod: uint16(p.ContainerPort), HostIP: net.ParseIP(p.HostIP)})
	}
	return f
}

func (c *call) portmapConf() (*portmapConf, error) {
	conf := &portmapConf{}
	if err := decode(c.stdin, conf); err != nil {
		return nil, err
	}
	if conf.Backend != "" && conf.Backend != "nftables" || len(conf.ConditionsV4)+len(conf.ConditionsV6) > 0 {
		return nil, refuse("the configuration asks for a backend or conditions")
	}
	for _, p := range conf.Runtime.Ports {
		for _, port := range []int{p.HostPort, p.ContainerPort} {
			if port <= 0 || port > 65535 {
				return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("Invalid port number: %d", port), "")
			}
		}
		if p.number() == 0 || p.HostIP != "" && net.ParseIP(p.HostIP) == nil {
			return nil, refuse("port mapping %s %q is not served", p.Protocol, p.HostIP)
		}
	}
	var err error
	if conf.prev, err = c.previous(conf.PrevResult); err != nil || conf.prev == nil {
		return conf, err
	}
	conf.pod = podAddresses(conf.prev, c.ifName)
	return conf, nil
}

// podAddresses picks the first address of each family on the pod's interface.
func podAddresses(res *types100.Result, ifName string) []net.IPNet {
	var out []net.IPNet
	seen := map[bool]bool{}
	for _, ip := range res.IPs {
		v4 := ip.Address.IP.To4() != nil
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(res.Interfaces) {
			if at := res.Interfaces[*i]; at.Name != ifName || at.Sandbox == "" {
				continue
			}
		}
		if !seen[v4] {
			seen[v4] = true
			out = append(out, ip.Address)
		}
	}
	return out
}

func (s *Set) portmapAdd(_ context.Context, c *call) (*types100.Result, error) {
	conf, err := c.portmapConf()
	if err != nil {
		return nil, err
	}
	if conf.prev == nil {
		return nil, errors.New("must be called as chained plugin")
	}
	if len(conf.Runtime.Ports) == 0 {
		return conf.prev, nil
	}
	f := conf.forwarding(c)
	for _, pod := range conf.pod {
		if err := s.rules.Forward(f, pod); err != nil {
			return nil, err
		}
		// Connections that went elsewhere before would go on to do so.
		forgetUDP(f.Ports, pod.IP.To4() != nil)
		if pod.IP.To4() != nil && f.SNAT {
			if err := routeLocalnet(pod.IP); err != nil {
				return nil, err
			}
		}
	}
	return conf.prev, nil
}

// routeLocalnet lets connections to 127.0.0.1 of the node reach the pod.
func routeLocalnet(pod net.IP) error {
	h, err := openNode()
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	routes, err := h.RouteGet(pod)
	if err != nil {
		return nil // nothing leads to the pod from here
	}
	for _, r := range routes {
		link, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue
		}
		if err := setSysctl("net/ipv4/conf/"+link.Attrs().Name+"/route_localnet", "1"); err != nil {
			return fmt.Errorf("unable to enable route_localnet: %w", err)
		}
		return nil
	}
	return nil
}

func forgetUDP(ports []fw.Port, v4 bool) {
	family := netlink.InetFamily(unix.AF_INET6)
	if v4 {
		family = unix.AF_INET
	}
	for _, p := range ports {
		if p.Protocol != unix.IPPROTO_UDP || !p.Applies(v4) {
			continue
		}
		f := &netlink.ConntrackFilter{}
		ignore(f.AddProtocol(unix.IPPROTO_UDP))
		ignore(f.AddPort(netlink.ConntrackOrigDstPort, p.Host))
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
		ignore(err)
	}
}

func (s *Set) portmapDel(_ context.Context, c *call) error {
	conf, err := c.portmapConf()
	if err != nil {
		return err
	}
	if len(conf.Runtime.Ports) == 0 {
		return nil
	}
	found, err := s.rules.Unforward(c.containerID)
	if err != nil || found {
		return err
	}
	return s.refuseIPTables("CNI-DN-" + fw.Hash(21, c.name+c.containerID))
}

func (s *Set) portmapCheck(_ context.Context, c *call) error {
	conf, err := c.portmapConf()
	if err != nil {
		return err
	}
	if conf.prev == nil {
		return errors.New("Required prevResult missing")
	}
	if len(conf.Runtime.Ports) == 0 {
		return nil
	}
	for _, pod := range conf.pod {
		err := s.rules.Forwarded(conf.forwarding(c), pod.IP.To4() != nil)
		if err == nil {
			continue
		}
		if no := s.refuseIPTables("CNI-DN-" + fw.Hash(21, c.name+c.containerID)); no != nil {
			return no
		}
		return err
	}
	return nil
}
