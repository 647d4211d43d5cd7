package fw

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// TestIntegrationListsAreOfOneMoment lists a chain while somebody else adds and
// deletes rules in front of its own: each list has all of these, once.
func TestIntegrationListsAreOfOneMoment(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	runtime.LockOSThread() // stays locked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("cannot make a network namespace here:", err)
	}
	conn, err := connect()
	must(t, err)
	defer func() { must(t, conn.close()) }()
	other, err := connect()
	must(t, err)
	defer func() { must(t, other.close()) }()

	const count = 400
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "moment"})
	chain := conn.AddChain(&nftables.Chain{Table: table, Name: "all"})
	for i := range count {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, UserData: comment(fmt.Sprint("kept ", i))})
		if i%50 == 0 || i == count-1 {
			must(t, conn.Flush())
		}
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer ns.Close()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				for range 50 {
					other.InsertRule(&nftables.Rule{Table: table, Chain: chain, UserData: comment("passing")})
				}
				if err := other.Flush(); err != nil {
					return err
				}
				if _, err := drop(other, []*nftables.Chain{chain}, func(c []byte) bool { return string(c) == "passing" }); err != nil {
					return err
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
	}()
	for range 50 {
		rules, err := rulesOf(conn, chain)
		must(t, err)
		seen := map[string]int{}
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			seen[text]++
		}
		for i := range count {
			if n := seen[fmt.Sprint("kept ", i)]; n != 1 {
				t.Fatalf("rule %d is listed %d times", i, n)
			}
		}
		rules, err = rulesWhere(conn, chain, func(c []byte) bool { return bytes.HasPrefix(c, []byte("kept ")) })
		must(t, err)
		handles := map[uint64]bool{}
		for _, r := range rules {
			handles[r.Handle] = true
		}
		if len(rules) != count || len(handles) != count {
			t.Fatalf("%d rules with %d handles are found, want %d", len(rules), len(handles), count)
		}
	}
	close(stop)
	must(t, <-done)
}

func TestAttributes(t *testing.T) {
	attrs := []byte{5, 0, 1, 0, 'x', 0, 0, 0, 6, 0, 3, 0x80, 'a', 'b', 0, 0, 4, 0, 9, 0, 200, 0, 7, 0, 1}
	for kind, want := range map[uint16]string{1: "x", 3: "ab", 9: "", 7: "", 2: ""} {
		if got := attribute(attrs, kind); string(got) != want {
			t.Errorf("attribute %d: %q, want %q", kind, got, want)
		}
	}
	for raw, want := range map[string]string{
		"": "", "\x00": "", "\x00\x03ab\x00": "ab", "\x00\x02ab": "ab", "\x01\x01z\x00\x02ab": "ab", "\x00\x09ab": "", "\x01\xffz": "",
	} {
		if got := commentIn([]byte(raw)); string(got) != want {
			t.Errorf("comment in %q: %q, want %q", raw, got, want)
		}
	}
}

func TestMessages(t *testing.T) {
	put := func(size uint32, kind, flags uint16, data ...byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, size)
		b = binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(b, kind), flags)
		return append(binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(b, 7), 0), data...)
	}
	// The first message has a byte of padding to the second, the last has none.
	two := append(put(19, 3, 16, 1, 2, 3, 0), put(17, 2, 0, 9)...)
	m, rest, err := next(two)
	if err != nil || m.kind != 3 || m.flags != 16 || m.seq != 7 || string(m.data) != "\x01\x02\x03" {
		t.Errorf("first message: %v, %v", m, err)
	}
	if m, rest, err = next(rest); err != nil || m.kind != 2 || string(m.data) != "\x09" || len(rest) != 0 {
		t.Errorf("second message: %v, %v, and %d bytes", m, err, len(rest))
	}
	for _, bad := range [][]byte{two[:15], put(15, 3, 0), put(18, 3, 0, 1)} {
		if m, _, err := next(bad); !errors.Is(err, unix.EBADMSG) {
			t.Errorf("bytes %v are message %v, %v", bad, m, err)
		}
	}
	none, gone := make([]byte, 4), binary.NativeEndian.AppendUint32(nil, ^uint32(unix.ENOENT)+1)
	for _, data := range [][]byte{nil, none} {
		if err := (message{data: data}).failure(); err != nil {
			t.Errorf("an end without failure is %v", err)
		}
	}
	if err := (message{data: gone}).failure(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a failure is %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestIntegrationUnmasqueradeAfterAChange: rules that were replaced since they were
// found, by others of the same numbers even, are told from those.
func TestIntegrationUnmasqueradeAfterAChange(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	runtime.LockOSThread() // stays locked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("cannot make a network namespace here:", err)
	}
	var r Rules
	nets := []net.IPNet{{IP: net.IPv4(10, 0, 0, 1), Mask: net.CIDRMask(16, 32)}}
	mine, other := Attachment{"n", "eth0", "mine"}, Attachment{"n", "eth0", "other"}
	count := func(a Attachment) int {
		m, err := r.Masqueraded(a)
		must(t, err)
		return len(m.rules)
	}
	must(t, r.Masquerade(mine, nets))
	m, err := r.Masqueraded(mine)
	must(t, err)
	if !m.Exists() {
		t.Fatal("the rules are not found")
	}
	must(t, r.do("empty the table", func(conn *connection) error {
		table, _, _ := masqTable()
		conn.DelTable(table)
		return conn.Flush()
	}))
	must(t, r.Masquerade(other, nets))
	must(t, r.Masquerade(mine, append(nets, nets...)))
	if again, err := r.Masqueraded(other); err != nil || again.rules[0].Handle != m.rules[0].Handle {
		t.Fatalf("the other's rule was to have the number of the first: %v, %v", again.rules, err)
	}
	must(t, r.Unmasquerade(m))
	if n, others := count(mine), count(other); n != 0 || others != 1 {
		t.Errorf("%d rules are left, and %d of another", n, others)
	}
	// Nothing has changed since, and what is gone stays so.
	m, err = r.Masqueraded(other)
	must(t, err)
	must(t, r.Unmasquerade(m))
	must(t, r.Unmasquerade(m))
	if n := count(other); n != 0 {
		t.Errorf("%d rules of the other are left", n)
	}
}

// BenchmarkMasquerade sets up and removes the masquerading of one pod while that
// of others is there.
func BenchmarkMasquerade(b *testing.B) {
	for _, others := range []int{0, 100, 1000} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			runtime.LockOSThread() // stays locked: the thread ends with the benchmark
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				b.Skip("cannot make a network namespace here:", err)
			}
			var r Rules
			set := func(id string) {
				a := Attachment{Network: "n", IfName: "eth0", ContainerID: id}
				if err := r.Masquerade(a, []net.IPNet{{IP: net.IPv4(10, 0, 0, 1), Mask: net.CIDRMask(16, 32)}}); err != nil {
					b.Fatal(err)
				}
			}
			for i := range others {
				set(fmt.Sprint(i))
			}
			b.ReportAllocs()
			for b.Loop() {
				set("mine")
				m, err := r.Masqueraded(Attachment{Network: "n", IfName: "eth0", ContainerID: "mine"})
				if err != nil || !m.Exists() {
					b.Fatal(m, err)
				}
				if err := r.Unmasquerade(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
