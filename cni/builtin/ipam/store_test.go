package ipam

import (
	"net/netip"
	"os"
	"path/filepath"
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
