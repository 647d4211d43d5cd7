package cni

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func dnsConfig() *runtimeapi.DNSConfig {
	return &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"example.org"}, Options: []string{"ndots:2"}}
}

// A port that a process of the node serves is refused, and the process is named;
// one that a client has by chance is not taken.
func TestHostPortOfAProcess(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	any6, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer any6.Close()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	// Without SO_REUSEADDR, as connect alone leaves it.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 0) })
	}}
	client, err := d.DialContext(context.Background(), "tcp4", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	port := func(a net.Addr) int32 {
		switch a := a.(type) {
		case *net.TCPAddr:
			return int32(a.Port)
		case *net.UDPAddr:
			return int32(a.Port)
		}
		return 0
	}
	const tcpP, udpP, sctpP = runtimeapi.Protocol_TCP, runtimeapi.Protocol_UDP, runtimeapi.Protocol_SCTP
	for _, c := range []struct {
		name  string
		at    net.Addr
		proto runtimeapi.Protocol
		ip    string
		taken bool
	}{
		{"all addresses", tcp.Addr(), tcpP, "", true},
		{"all of the family", tcp.Addr(), tcpP, "0.0.0.0", true},
		{"the address", tcp.Addr(), tcpP, "127.0.0.1", true},
		{"another address", tcp.Addr(), tcpP, "127.0.0.2", false},
		{"an address of nobody", tcp.Addr(), tcpP, "192.0.2.77", false},
		{"another protocol", tcp.Addr(), sctpP, "", false},
		{"both families", any6.Addr(), tcpP, "127.0.0.1", true},
		{"udp", udp.LocalAddr(), udpP, "", true},
		{"a client's port", client.LocalAddr(), tcpP, "", false},
	} {
		err := portsFree([]*runtimeapi.PortMapping{{ContainerPort: 80}, {ContainerPort: 80, HostPort: port(c.at), Protocol: c.proto, HostIp: c.ip}})
		if !c.taken {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, w := range []string{fmt.Sprint(port(c.at)), strings.ToLower(c.proto.String()), fmt.Sprintf("process %d", os.Getpid())} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v does not say %q", c.name, err, w)
			}
		}
	}
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	r := request()
	r.Config.PortMappings = []*runtimeapi.PortMapping{{HostPort: port(tcp.Addr()), ContainerPort: 80}}
	if _, err := b.Attach(t.Context(), r); !errdefs.IsFailedPrecondition(err) || b.calls(t) != "" {
		t.Errorf("attach: %v, calls %q", err, b.calls(t))
	}
}
