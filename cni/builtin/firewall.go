package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"net"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/berth-dev/berth/cni/builtin/fw"
)

// firewallConf is the configuration of the firewall plugin, as far as served.
type firewallConf struct {
	common
	Backend string          `json:"backend"`
	Admin   string          `json:"iptablesAdminChainName"`
	Zone    string          `json:"firewalldZone"` // firewalld's, which is not served
	Ingress string          `json:"ingressPolicy"`
	IPAM    json.RawMessage `json:"ipam"`
	DNS     json.RawMessage `json:"dns"`
	Runtime json.RawMessage `json:"runtimeConfig"` // has nothing for the plugin

	prev *types100.Result
}

func (c *call) firewallConf() (*firewallConf, error) {
	conf := &firewallConf{Admin: "CNI-ADMIN"}
	if err := decode(c.stdin, conf); err != nil {
		return nil, err
	}
	if conf.Backend == "firewalld" {
		return nil, refuse("the configuration asks for firewalld")
	}
	if conf.Ingress != "" && conf.Ingress != "open" {
		return nil, refuse("the configuration asks for the ingress policy %s", conf.Ingress)
	}
	var err error
	conf.prev, err = c.previous(conf.PrevResult)
	return conf, err
}

// accept describes the rules for all addresses of the result.
func (conf *firewallConf) accept() fw.Accept {
	a := fw.Accept{Admin: conf.Admin, Firewalld: conf.Backend != "iptables"}
	if conf.prev != nil {
		for _, ip := range conf.prev.IPs {
			a.IPs = append(a.IPs, net.IP(ip.Address.IP))
		}
	}
	return a
}

// unserved turns the error for what only the program can do into ours.
func unserved(err error) error {
	if errors.Is(err, fw.ErrIPTables) {
		return refuse("%v", err)
	}
	return err
}

func (s *Set) firewallAdd(_ context.Context, c *call) (*types100.Result, error) {
	conf, err := c.firewallConf()
	if err != nil {
		return nil, err
	}
	if conf.prev == nil {
		return nil, errors.New("missing prevResult from earlier plugin")
	}
	return conf.prev, unserved(s.rules.Let(conf.accept()))
}

func (s *Set) firewallDel(_ context.Context, c *call) error {
	conf, err := c.firewallConf()
	if err != nil {
		return err
	}
	return unserved(s.rules.Unlet(conf.accept()))
}

func (s *Set) firewallCheck(_ context.Context, c *call) error {
	conf, err := c.firewallConf()
	if err != nil {
		return err
	}
	if conf.prev == nil {
		return errors.New("missing prevResult from earlier plugin")
	}
	return unserved(s.rules.Lets(conf.accept()))
}
