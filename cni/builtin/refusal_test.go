package builtin

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// refusal is something that cannot be done.
type refusal struct {
	name, plugins string
	prepare       string // on the node
	pods          int    // that are attached before
	netns         string // instead of the pod's
	want          []string
	badConf       bool // so that no plugin can tell what is to be undone
}

// What cannot be done is refused in-process as the reference programs refuse it,
// in words that name the trouble, and nothing is left of it.
func TestIntegrationRefusals(t *testing.T) {
	bin := pluginDir(t)
	const bridge = `{"type":"bridge","bridge":"cnitest0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":%q,"subnet":"10.77.0.0/24"}}`
	for _, c := range []refusal{
		{name: "subnet exhausted", plugins: strings.Replace(bridge, `"subnet"`, `"rangeStart":"10.77.0.9","rangeEnd":"10.77.0.10","subnet"`, 1), pods: 2,
			want: []string{"no IP addresses available", "10.77.0.9-10.77.0.10"}},
		{name: "bridge with another address", plugins: bridge, prepare: "ip link add cnitest0 type bridge; ip addr add 10.77.0.200/24 dev cnitest0",
			want: []string{"cnitest0", "already has an IP address different from 10.77.0.1/24"}},
		{name: "bridge that is none", plugins: bridge, prepare: "ip link add cnitest0 type veth peer name cnitest1",
			want: []string{`"cnitest0" already exists but is not a bridge`}},
		{name: "namespace is gone", plugins: bridge, netns: "/nowhere/net", want: []string{"/nowhere/net"}},
		{name: "subnet too small", plugins: strings.Replace(bridge, "/24", "/31", 1), want: []string{"10.77.0.0/31", "too small"}, badConf: true},
		{name: "range outside", plugins: strings.Replace(bridge, `"subnet"`, `"rangeStart":"10.78.0.9","subnet"`, 1), want: []string{"10.78.0.9"}, badConf: true},
		{name: "port out of range", plugins: bridge + `,{"type":"portmap","capabilities":{"portMappings":true}}`, want: []string{"70000"}, badConf: true},
		{name: "portmap alone", plugins: `{"type":"portmap","capabilities":{"portMappings":true}}`, want: []string{"chained plugin"}, badConf: true},
	} {
		for _, way := range ways()[:2] {
			t.Run(c.name+"/"+way.name, func(t *testing.T) { c.run(t, bin, way) })
		}
	}
}

func (c refusal) run(t *testing.T, bin string, way way) {
	w := newWorld(t)
	if c.prepare != "" {
		w.sh(c.prepare)
	}
	data := filepath.Join(w.dir, "ipam")
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"suite","plugins":[%s]}`,
		strings.ReplaceAll(c.plugins, "%q", strconv.Quote(data))))
	if err != nil {
		t.Fatal(err)
	}
	lib := libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(w.dir, "cache"), way.add(t))
	conf := func(i int) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{ContainerID: fmt.Sprint("suite-pod-", i), NetNS: w.pod(fmt.Sprint("p", i)), IfName: "eth0", CapabilityArgs: map[string]any{}}
	}
	for i := range c.pods {
		if _, err := lib.AddNetworkList(t.Context(), list, conf(i)); err != nil {
			t.Fatal(err)
		}
	}
	look := func() string {
		return w.sh("ip -o link | grep -c veth; ip -o addr show dev cnitest0 2>/dev/null | grep -v inet6; nft list ruleset | grep suite-pod; true") + inUse(t, data)
	}
	before := look()
	last := conf(c.pods)
	if c.netns != "" {
		last.NetNS = c.netns
	}
	port := 20080
	if strings.HasPrefix(c.name, "port ") {
		port = 70000
	}
	last.CapabilityArgs["portMappings"] = []portMapping{{HostPort: port, ContainerPort: 80, Protocol: "tcp"}}
	_, err = lib.AddNetworkList(t.Context(), list, last)
	if err == nil {
		t.Fatal("added")
	}
	for _, want := range c.want {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	// Whoever called ADD follows up with DEL.
	if err := lib.DelNetworkList(t.Context(), list, last); err != nil && !c.badConf {
		t.Errorf("delete after it: %v", err)
	}
	after := look()
	for end := time.Now().Add(time.Minute); after != before && !c.badConf && time.Now().Before(end); after = look() {
		time.Sleep(20 * time.Millisecond) // the kernel ends namespaces, and links with them, when it likes
	}
	if after != before && !c.badConf {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	w.sh("ip link del cnitest0 2>/dev/null; true")
}

func inUse(t *testing.T, data string) (out string) {
	t.Helper()
	entries, _ := os.ReadDir(filepath.Join(data, "suite"))
	for _, e := range entries {
		if net.ParseIP(e.Name()) != nil {
			out += e.Name() + "\n"
		}
	}
	return out
}
