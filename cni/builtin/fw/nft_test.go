package fw

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
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
				if _, err := drop(other, []*nftables.Chain{chain}, func(c string) bool { return c == "passing" }); err != nil {
					return err
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}()
	for range 50 {
		rules, err := rulesOf(conn, chain)
		must(t, err)
		seen := map[string]int{}
		for _, r := range rules {
			seen[commentOf(r)]++
		}
		for i := range count {
			if n := seen[fmt.Sprint("kept ", i)]; n != 1 {
				t.Fatalf("rule %d is listed %d times", i, n)
			}
		}
	}
	close(stop)
	must(t, <-done)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
