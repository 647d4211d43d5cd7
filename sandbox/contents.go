package sandbox

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// resolvConf renders a DNS configuration; empty when it says nothing, and the
// node's file applies.
func resolvConf(d *runtimeapi.DNSConfig) []byte {
	var b strings.Builder
	if s := d.GetSearches(); len(s) > 0 {
		b.WriteString("search " + strings.Join(s, " ") + "\n")
	}
	for _, s := range d.GetServers() {
		b.WriteString("nameserver " + s + "\n")
	}
	if o := d.GetOptions(); len(o) > 0 {
		b.WriteString("options " + strings.Join(o, " ") + "\n")
	}
	return []byte(b.String())
}

// podHosts renders /etc/hosts of a pod with its own network.
func podHosts(hostname string, ips []string) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range ips {
		b.WriteString(ip + "\t" + hostname + "\n")
	}
	return []byte(b.String())
}
