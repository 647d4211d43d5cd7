package builtin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/cni/netns"
)

// allowList holds regular expressions, one a line, of the sysctls that a tuning
// configuration may set. No file: all of "net".
const allowList = "/etc/cni/tuning/allowlist.conf"

// tuningConf is the configuration of the tuning plugin, as far as served.
type tuningConf struct {
	common
	DataDir  string            `json:"dataDir"`
	Sysctl   map[string]string `json:"sysctl"`
	MAC      string            `json:"mac"`
	Promisc  bool              `json:"promisc"`
	MTU      int               `json:"mtu"`
	TxQLen   *int              `json:"txQLen"`
	Allmulti *bool             `json:"allmulti"`
	IPAM     json.RawMessage   `json:"ipam"`
	DNS      json.RawMessage   `json:"dns"`
	Runtime  struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`
}

func (c *call) tuningConf() (*tuningConf, error) {
	conf := &tuningConf{DataDir: "/run/cni/tuning"}
	if err := decode(c.stdin, conf); err != nil {
		return nil, err
	}
	if err := c.plainArgs(conf.common); err != nil {
		return nil, err
	}
	if conf.Runtime.MAC != "" {
		conf.MAC = conf.Runtime.MAC
	}
	return conf, nil
}

// sysctls returns the files under /proc/sys and what to write there.
func (conf *tuningConf) sysctls(c *call) (map[string]string, error) {
	if err := uniqueSysctls(c.stdin); err != nil {
		return nil, err
	}
	allowed, err := allowedSysctls()
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for key, value := range conf.Sysctl {
		if allowed != nil && !slices.ContainsFunc(allowed, func(r *regexp.Regexp) bool { return r.MatchString(key) }) {
			return nil, fmt.Errorf("Sysctl %s is not allowed. Only the following sysctls are allowed: %v", key, allowed)
		}
		name := strings.Replace(strings.ReplaceAll(key, ".", "/"), "IFNAME", c.ifName, 1)
		file := filepath.Join("/proc/sys", name)
		if !strings.HasPrefix(file, "/proc/sys/net/") {
			return nil, fmt.Errorf("invalid net sysctl key: %q", key)
		}
		files[file] = value
	}
	return files, nil
}

// uniqueSysctls refuses a key that is there twice, of which one would be lost.
func uniqueSysctls(stdin []byte) error {
	var conf struct {
		Sysctl json.RawMessage `json:"sysctl"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil || !isSet(conf.Sysctl) {
		return err
	}
	seen := map[string]bool{}
	d := json.NewDecoder(bytes.NewReader(conf.Sysctl))
	if _, err := d.Token(); err != nil { // the brace
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if _, err := d.Token(); err != nil {
			return err
		}
		name := fmt.Sprint(key)
		if seen[name] {
			return errors.New("duplicated sysctl keys are not allowed")
		}
		seen[name] = true
	}
	return nil
}

func allowedSysctls() ([]*regexp.Regexp, error) {
	b, err := os.ReadFile(allowList)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read allowed sysctls: %w", err)
	}
	out := []*regexp.Regexp{}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		r, err := regexp.Compile(line)
		if err != nil {
			return nil, fmt.Errorf("read allowed sysctls: %w", err)
		}
		out = append(out, r)
	}
	return out, nil
}

// link returns what is to be set on the pod's interface.
func (conf *tuningConf) link() linkState {
	s := linkState{MAC: conf.MAC, MTU: conf.MTU, Allmulti: conf.Allmulti, TxQLen: conf.TxQLen}
	if conf.Promisc {
		s.Promisc = &conf.Promisc
	}
	return s
}

func tuningAdd(_ context.Context, c *call) (*types100.Result, error) {
	conf, prev, err := c.tuningChained()
	if err != nil {
		return nil, err
	}
	files, err := conf.sysctls(c)
	if err != nil {
		return nil, err
	}
	err = netns.Do(c.netns, func() error {
		for _, file := range slices.Sorted(maps.Keys(files)) {
			if err := os.WriteFile(file, []byte(files[file]), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || conf.link() == (linkState{}) {
		return prev, err
	}
	pod, err := openPod(c.netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	link, err := pod.LinkByName(c.ifName)
	if err != nil {
		return nil, fmt.Errorf("failed to get %q: %w", c.ifName, err)
	}
	if err := conf.backup(c, conf.link().before(link)); err != nil {
		return nil, err
	}
	if err := conf.link().apply(pod, link); err != nil {
		return nil, err
	}
	for _, i := range prev.Interfaces {
		if conf.MAC != "" && i.Name == c.ifName {
			i.Mac = conf.MAC
		}
	}
	return prev, nil
}

// tuningChained reads the configuration of a call that needs a result before.
func (c *call) tuningChained() (*tuningConf, *types100.Result, error) {
	conf, err := c.tuningConf()
	if err != nil {
		return nil, nil, err
	}
	prev, err := c.previous(conf.PrevResult)
	if err == nil && prev == nil {
		err = errors.New("Required prevResult missing")
	}
	return conf, prev, err
}

func tuningCheck(_ context.Context, c *call) error {
	conf, _, err := c.tuningChained()
	if err != nil {
		return err
	}
	files, err := conf.sysctls(c)
	if err != nil {
		return err
	}
	err = netns.Do(c.netns, func() error {
		for file, want := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if have := strings.TrimSuffix(string(b), "\n"); have != want {
				return fmt.Errorf("Error: Tuning configured value of %s is %s, current value is %s", file, want, have)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	pod, err := openPod(c.netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	link, err := pod.LinkByName(c.ifName)
	if err != nil {
		return fmt.Errorf("Cannot find container link %s: %w", c.ifName, err)
	}
	want := conf.link()
	want.Promisc = &conf.Promisc
	return want.compare(link)
}

// tuningDel sets the pod's interface back, in case it outlives the pod.
func tuningDel(_ context.Context, c *call) error {
	conf, err := c.tuningConf()
	if err != nil {
		return err
	}
	before, err := conf.readBackup(c)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pod, err := openPod(c.netns)
	if errors.Is(err, errNoNamespace) {
		return conf.dropBackup(c)
	}
	if err != nil {
		return err
	}
	defer pod.Close()
	link, err := pod.LinkByName(c.ifName)
	if err == nil {
		err = before.apply(pod, link)
	}
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("restore %q: %w", c.ifName, err)
	}
	return conf.dropBackup(c)
}

// linkState are the properties of an interface that are, or are to be, set.
// In this form the reference plugin keeps those from before.
type linkState struct {
	MAC      string `json:"mac,omitempty"`
	Promisc  *bool  `json:"promisc,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	Allmulti *bool  `json:"allmulti,omitempty"`
	TxQLen   *int   `json:"txQLen,omitempty"`
}

// stateOf returns all properties of an interface.
func stateOf(link netlink.Link) linkState {
	a := link.Attrs()
	promisc, allmulti, length := a.Promisc != 0, a.RawFlags&unix.IFF_ALLMULTI != 0, a.TxQLen
	return linkState{a.HardwareAddr.String(), &promisc, a.MTU, &allmulti, &length}
}

// before returns what the interface has where s sets something.
func (s linkState) before(link netlink.Link) linkState {
	have := stateOf(link)
	if s.MAC == "" {
		have.MAC = ""
	}
	if s.MTU == 0 {
		have.MTU = 0
	}
	if s.Promisc == nil {
		have.Promisc = nil
	}
	if s.Allmulti == nil {
		have.Allmulti = nil
	}
	if s.TxQLen == nil {
		have.TxQLen = nil
	}
	return have
}

func (s linkState) apply(h *netlink.Handle, link netlink.Link) error {
	var errs []error
	if s.MAC != "" {
		mac, err := net.ParseMAC(s.MAC)
		if err != nil {
			return fmt.Errorf("invalid args %v for MAC addr: %w", s.MAC, err)
		}
		errs = append(errs, h.LinkSetHardwareAddr(link, mac))
	}
	if s.Promisc != nil {
		errs = append(errs, either(*s.Promisc, h.SetPromiscOn, h.SetPromiscOff)(link))
	}
	if s.MTU != 0 {
		errs = append(errs, h.LinkSetMTU(link, s.MTU))
	}
	if s.Allmulti != nil {
		errs = append(errs, either(*s.Allmulti, h.LinkSetAllmulticastOn, h.LinkSetAllmulticastOff)(link))
	}
	if s.TxQLen != nil {
		errs = append(errs, h.LinkSetTxQLen(link, *s.TxQLen))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("set up %q: %w", link.Attrs().Name, err)
	}
	return nil
}

func either(on bool, yes, no func(netlink.Link) error) func(netlink.Link) error {
	if on {
		return yes
	}
	return no
}

// compare reports a property that the interface has not as s says.
func (s linkState) compare(link netlink.Link) error {
	want, err := json.Marshal(s)
	if err != nil {
		return err
	}
	have, err := json.Marshal(s.before(link))
	if err != nil {
		return err
	}
	if !bytes.Equal(want, have) {
		return fmt.Errorf("Error: Tuning configured %s is %s, currently it is %s", link.Attrs().Name, want, have)
	}
	return nil
}
