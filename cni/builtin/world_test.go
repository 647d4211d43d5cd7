package builtin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/cni/netns"
)

// world is a node, with a host outside that it is connected to.
type world struct {
	t       testing.TB
	dir     string
	outside string // network namespace
	pods    []string
}

const (
	nodeV4, outsideV4 = "192.0.2.1", "192.0.2.2"
	nodeV6, outsideV6 = "2001:db8::1", "2001:db8::2"
)

func newWorld(t testing.TB) *world {
	w := &world{t: t, dir: t.TempDir()}
	for end := time.Now().Add(time.Minute); w.sh("ip -o link | grep -c veth || true") != "0\n" && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond) // links of the world before, whose namespaces end when the kernel likes
	}
	w.outside = w.namespace("outside")
	w.sh("ip link set lo up")
	for _, s := range []string{"net/ipv4/ip_forward=0", "net/ipv6/conf/all/forwarding=0", "net/ipv6/conf/default/accept_dad=0"} {
		name, value, _ := strings.Cut(s, "=")
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.sh("ip link add up0 type veth peer name up1")
	w.sh("mount --bind " + w.outside + " " + w.file("outside.ns") + " && ip link set up1 netns " + w.file("outside.ns"))
	t.Cleanup(func() { w.sh("umount " + w.file("outside.ns")) })
	w.sh("ip link set up0 up; ip addr add " + nodeV4 + "/24 dev up0; ip addr add " + nodeV6 + "/64 nodad dev up0")
	w.in(w.outside, "ip link set up1 up; ip addr add "+outsideV4+"/24 dev up1; ip addr add "+outsideV6+"/64 nodad dev up1")
	w.in(w.outside, "ip route add default via "+nodeV4+"; ip route add default via "+nodeV6)
	t.Cleanup(w.wipe)
	return w
}

// wipe takes away what a network leaves on a node on purpose.
func (w *world) wipe() {
	w.sh("ip link del up0; ip link del cnitest0 2>/dev/null; nft flush ruleset; true")
	for _, p := range append(w.pods, w.outside) {
		if err := netns.UnpinAll(filepath.Dir(p)); err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) file(name string) string {
	path := filepath.Join(w.dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	f.Close()
	return path
}

// namespaceFor makes a namespace that only end takes away.
func (w *world) namespaceFor(name string) string {
	w.t.Helper()
	pins, err := netns.Create(netns.Spec{Dir: filepath.Join(w.dir, name), Kinds: []string{netns.Net}})
	if err != nil {
		w.t.Fatal(err)
	}
	return pins[netns.Net]
}

func (w *world) end(ns string) {
	w.t.Helper()
	if err := netns.UnpinAll(filepath.Dir(ns)); err != nil {
		w.t.Error(err)
	}
}

func (w *world) namespace(name string) string {
	w.t.Helper()
	return w.namespaceFor(name)
}

func (w *world) pod(name string) string {
	p := w.namespace(name)
	w.pods = append(w.pods, p)
	return p
}

func (w *world) sh(script string) string {
	w.t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func (w *world) in(ns, script string) string {
	w.t.Helper()
	out, err := exec.Command("nsenter", "--net="+ns, "sh", "-c", script).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// normal replaces what differs between two equal runs.
func normal(text string) string {
	for _, r := range [][2]string{
		{`veth[0-9a-f]{8}`, "vethX"},
		{`@(if\d+|vethX|eth0)`, "@peer"},
		{`bwp[0-9a-f]{12}`, "bwpX"},
		{`qdisc tbf [0-9a-f]+: `, "qdisc tbf H: "},
		{`(?m)^\d+: `, ""},
		{`([0-9a-f]{2}:){5}[0-9a-f]{2}`, "MAC"},
		{`fe80::[0-9a-f:]+`, "LL"},
		{`/[^ "]*/(a|b)/net`, "POD"},
		{` +`, " "},
		{`link-netns(id)? \S+`, ""},
		{`(valid_lft|preferred_lft) \S+`, ""},
		{`\\`, ""},
	} {
		text = regexp.MustCompile(r[0]).ReplaceAllString(text, r[1])
	}
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool {
		return strings.TrimSpace(l) == "" || strings.HasPrefix(l, "Error: Peer netns")
	}), "\n")
}

const show = `ip -o link | grep -v 'up[01]'; ip -o addr | grep -v 'up[01]'; ip route show table all | grep -v 'up[01]' | sort; ip -6 route show table all | grep -v 'up[01]' | sort
for s in net/ipv4/ip_forward net/ipv6/conf/all/forwarding; do echo $s $(cat /proc/sys/$s); done
for l in $(ip -o link | sed -E 's/^[0-9]+: ([^:@]+).*/\1/' | grep -v up0); do for s in ipv4/conf/$l/arp_notify ipv4/conf/$l/route_localnet ipv6/conf/$l/accept_dad ipv6/conf/$l/accept_ra ipv6/conf/$l/disable_ipv6 ipv6/conf/$l/keep_addr_on_down; do echo $s $(cat /proc/sys/net/$s); done; done
tc qdisc show 2>/dev/null | grep -v 'noqueue\|pfifo\|up0'; for d in $(ip -o link | sed -E 's/^[0-9]+: ([^:@]+).*/\1/'); do tc filter show dev $d parent ffff: 2>/dev/null; done; ip rule; ip -6 rule
for l in $(ip -o link | sed -E 's/^[0-9]+: ([^:@]+).*/\1/' | grep -v up0); do cat /proc/sys/net/ipv4/conf/$l/arp_filter; done
bridge -d link show 2>/dev/null | grep -o 'hairpin [a-z]*\|isolated [a-z]*' || true`

// unsettled is what the kernel changes a little later by itself.
var unsettled = regexp.MustCompile(`tentative|(veth[0-9a-f]+|eth0)@.*NO-CARRIER`)

// describe waits until no address is tentative and pairs have their carrier, then
// describes node and pods.
func (w *world) describe(pods ...string) string {
	for range 100 {
		all := w.sh("ip addr")
		for _, p := range pods {
			all += w.in(p, "ip addr")
		}
		if !unsettled.MatchString(all) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	out := "node\n" + normal(w.sh(show))
	for _, p := range pods {
		out += "\npod\n" + normal(w.in(p, show))
	}
	return out
}

// serve answers TCP and UDP on a port of a namespace with the peer's address.
func (w *world) serve(ns string, port int) {
	w.t.Helper()
	err := netns.Do(ns, func() error {
		l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return err
		}
		p, err := net.ListenPacket("udp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return errors.Join(err, l.Close())
		}
		w.t.Cleanup(func() { l.Close(); p.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		go func() {
			b := make([]byte, 16)
			for {
				_, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = p.WriteTo([]byte(from.(*net.UDPAddr).IP.String()), from)
			}
		}()
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// patience is for one try to get through. One that is too short shows only
// where something is wrong or the machine is busy: it is tried again.
const patience = 700 * time.Millisecond

// dial connects from a namespace ("" is the node) and returns whom the server saw.
func dial(ns, network, addr string) string {
	said := dialOnce(ns, network, addr)
	if strings.HasPrefix(said, "no ") {
		said = dialOnce(ns, network, addr)
	}
	return said
}

func dialOnce(ns, network, addr string) string {
	var c net.Conn
	open := func() (err error) {
		c, err = net.DialTimeout(network, addr, patience)
		return err
	}
	var err error
	if ns == "" {
		err = open()
	} else {
		err = netns.Do(ns, open)
	}
	if err != nil {
		return "no connection"
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		_, _ = c.Write([]byte("x"))
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err != nil && n == 0 {
		return "no answer"
	}
	return "from " + string(b[:n])
}

// eventually waits for what the kernel does a little later.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.t.Errorf("not true after a minute: %s", what)
}
