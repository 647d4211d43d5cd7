package ipam

import (
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

// BenchmarkHeldBy looks for the addresses of one holder among those of others.
func BenchmarkHeldBy(b *testing.B) {
	dir := b.TempDir()
	var all Stores
	err := all.With(b.Context(), dir, "n", func(s *Store) error {
		for i := range 100 {
			if _, err := s.reserve(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), Holder{strings.Repeat("c", 60) + strconv.Itoa(i), "eth0"}); err != nil {
				return err
			}
		}
		b.ReportAllocs()
		for b.Loop() {
			if ips, err := s.HeldBy(Holder{strings.Repeat("c", 60) + "7", "eth0"}); err != nil || len(ips) != 1 {
				return fmt.Errorf("%v %v", ips, err)
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
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
