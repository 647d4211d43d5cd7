package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestAllocateTakesWhatACrashLeft: a file without a holder, which a crash between
// its making and its writing leaves, is nobody's address.
func TestAllocateTakesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	sets := [][]Range{{{Subnet: "10.0.0.0/24", Start: "10.0.0.9", End: "10.0.0.10"}}}
	if _, _, err := Complete(sets); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, holder := range map[string]string{"10.0.0.9": "other\r\neth0", "10.0.0.10": ""} {
		if err := os.WriteFile(filepath.Join(dir, "net", name), []byte(holder), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := Holder{"id", "eth0"}
	var stores Stores
	err := stores.With(t.Context(), dir, "net", func(s *Store) error {
		ip, _, err := s.Allocate(sets[0], 0, h)
		if err != nil || ip != netip.MustParseAddr("10.0.0.10") {
			t.Errorf("got %v, %v", ip, err)
		}
		if held, err := s.HeldBy(h); err != nil || len(held) != 1 {
			t.Errorf("held: %v, %v", held, err)
		}
		if ip, _, err := s.Allocate(sets[0], 0, Holder{"next", "eth0"}); err == nil {
			t.Errorf("address %v of another was given away", ip)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill has n addresses reserved by others.
func fill(t testing.TB, all *Stores, dir string, n int) {
	t.Helper()
	err := all.With(t.Context(), dir, "n", func(s *Store) error {
		for i := range n {
			if _, err := s.reserve(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Holder{strings.Repeat("c", 60) + strconv.Itoa(i), "eth0"}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkReserve takes and gives back an address, as an ADD and a DEL do, among
// those of 100 others.
func BenchmarkReserve(b *testing.B) {
	dir, h := b.TempDir(), Holder{strings.Repeat("d", 64), "eth0"}
	sets := [][]Range{{{Subnet: "10.0.0.0/16"}}}
	if _, _, err := Complete(sets); err != nil {
		b.Fatal(err)
	}
	var all Stores
	fill(b, &all, dir, 100)
	with := func(fn func(*Store) error) {
		if err := all.With(b.Context(), dir, "n", fn); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		with(func(s *Store) error {
			if ips, err := s.HeldBy(h); err != nil || len(ips) != 0 {
				return fmt.Errorf("%v %w", ips, err)
			}
			_, _, err := s.Allocate(sets[0], 0, h)
			return err
		})
		with(func(s *Store) error { return s.Release(h) })
	}
}

// TestOthersChangeTheStore: what another process does between two calls is seen,
// however soon after the first it comes, and whatever it leaves alike.
func TestOthersChangeTheStore(t *testing.T) {
	dir := t.TempDir()
	net := filepath.Join(dir, "n")
	h := Holder{"id", "eth0"}
	file := filepath.Join(net, "10.0.1.1")
	var all Stores
	held := func() (n int) {
		err := all.With(t.Context(), dir, "n", func(s *Store) error {
			ips, err := s.HeldBy(h)
			n = len(ips)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	write := func(text string) error { return os.WriteFile(file, []byte(text), 0o600) }
	fill(t, &all, dir, 3)
	for i := range 300 {
		for _, step := range []struct {
			what string
			do   func() error
			want int
		}{
			{"made", func() error { return write("id\r\neth0") }, 1},
			{"nothing", func() error { return nil }, 1},
			{"given to another", func() error { return errors.Join(os.Remove(file), write("id\r\neth1")) }, 0},
			{"given back, in the old form", func() error { return errors.Join(os.Remove(file), write("id\n")) }, 1},
			{"deleted", func() error { return os.Remove(file) }, 0},
			{"made, in a directory that was replaced", func() error {
				return errors.Join(os.Rename(net, net+"-old"), os.Mkdir(net, 0o755), write("id\r\neth0"))
			}, 1},
			{"put back, with its times", func() error { return errors.Join(os.RemoveAll(net), os.Rename(net+"-old", net)) }, 0},
		} {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			if n := held(); n != step.want {
				t.Fatalf("round %d: the address was %s, and %d are held, want %d", i, step.what, n, step.want)
			}
		}
	}
}

// TestOwnChangesNeedNoReading: after changes of its own a process reads no file.
func TestOwnChangesNeedNoReading(t *testing.T) {
	dir, h := t.TempDir(), Holder{"id", "eth0"}
	sets := [][]Range{{{Subnet: "10.0.0.0/24"}}}
	if _, _, err := Complete(sets); err != nil {
		t.Fatal(err)
	}
	var all Stores
	fill(t, &all, dir, 3)
	for i, fn := range []func(s *Store) error{
		func(s *Store) error { return s.Release(h) }, // reads
		func(s *Store) error { _, _, err := s.Allocate(sets[0], 0, h); return err },
		func(s *Store) error { return s.Release(h) },
		func(s *Store) error { return s.ReleaseAllBut(nil) },
		func(s *Store) error { _, _, err := s.Allocate(sets[0], 0, h); return err },
	} {
		err := all.With(t.Context(), dir, "n", func(s *Store) error {
			if i > 0 && s.holders == nil {
				t.Errorf("nothing is known before step %d", i)
			}
			return fn(s)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var fresh Stores
	for _, s := range []*Stores{&all, &fresh} {
		err := s.With(t.Context(), dir, "n", func(s *Store) error {
			ips, err := s.HeldBy(h)
			if len(ips) != 1 || len(s.holders) != 1 {
				t.Errorf("held: %v, in all %v", ips, s.holders)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// What a failure leaves is not known.
	_ = all.With(t.Context(), dir, "n", func(*Store) error { return errors.New("no") })
	if all.dirs[filepath.Join(dir, "n")].holders != nil {
		t.Error("something is known after a failure")
	}
}

// TestHeldByLongNames: a holder of any length is known again.
func TestHeldByLongNames(t *testing.T) {
	dir := t.TempDir()
	var all Stores
	for _, n := range []int{1, 200, 249, 250, 251, 5000} {
		h := Holder{strings.Repeat("c", n), "eth0"}
		err := all.With(t.Context(), dir, "n", func(s *Store) error {
			if _, err := s.reserve(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), h); err != nil {
				return err
			}
			ips, err := s.HeldBy(h)
			if len(ips) != 1 {
				return fmt.Errorf("addresses of a holder whose name has %d letters: %v, %w", n, ips, err)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
