package harness

import (
	"io"
	"net"
	"os"
	"testing"
)

func TestIntegrationSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces")
	}
	s, err := NewSpace()
	if err != nil {
		t.Skip(err)
	}
	defer s.Close()
	here, _ := os.Readlink("/proc/self/ns/net")
	there, err := os.Readlink(s.NetNS())
	if err != nil || there == here {
		t.Fatalf("the network namespace is %s (%v), ours is %s", there, err, here)
	}
	l, err := ListenIn(s.NetNS())()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.Copy(c, c)
		c.Close()
	}()
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the listener is reachable outside of its namespace")
	}
	local, stop, err := Forward(s.NetNS(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	c, err := net.Dial("tcp", local)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("ahoy")); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "ahoy" {
		t.Errorf("echo through the namespace: %q, %v", b, err)
	}
	out, err := s.Command(t.Context(), "readlink", "/proc/self/ns/net").Output()
	if err != nil || string(out) != there+"\n" {
		t.Errorf("command runs in %s (%v), want %s", out, err, there)
	}
}
