package builtin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// ipStore is the directory of a network's addresses, locked. For each address
// in use there is a file of its name that holds the container's ID and the
// interface; last_reserved_ip.N holds the address given last from range set N.
type ipStore struct {
	dir  string
	lock *os.File
}

const (
	lineBreak  = "\r\n"
	lastPrefix = "last_reserved_ip."
)

// openStore waits for the lock that the reference plugin takes too.
func openStore(ctx context.Context, dataDir, network string) (*ipStore, error) {
	dir := filepath.Join(dataDir, network)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make address directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock addresses: %w", err)
	}
	for wait := time.Millisecond / 4; ; wait = min(2*wait, 8*time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &ipStore{dir: dir, lock: f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock addresses in %s: %w", dir, err), f.Close())
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another plugin keeps the addresses in %s locked: %w", dir, context.Cause(ctx)), f.Close())
		}
	}
}

// close lets the lock go.
func (s *ipStore) close() { ignore(s.lock.Close()) }

// each calls fn with every address in use and its holder.
func (s *ipStore) each(fn func(path, holder string) error) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read address in use: %w", err)
		}
		if err := fn(path, strings.TrimSpace(string(b))); err != nil {
			return err
		}
	}
	return nil
}

// isHolder knows the form of old versions too, which lacks the interface.
func isHolder(text, id, ifName string) bool { return text == id+lineBreak+ifName || text == id }

// heldBy lists the addresses of one interface.
func (s *ipStore) heldBy(id, ifName string) (ips []netip.Addr, err error) {
	err = s.each(func(path, holder string) error {
		if isHolder(holder, id, ifName) {
			ip, err := netip.ParseAddr(filepath.Base(path))
			ips = append(ips, ip)
			return err
		}
		return nil
	})
	return ips, err
}

// release gives the addresses of one interface back.
func (s *ipStore) release(id, ifName string) error {
	return s.each(func(path, holder string) error {
		if !isHolder(holder, id, ifName) {
			return nil
		}
		return remove(path)
	})
}

func (s *ipStore) releaseAllBut(valid []types.GCAttachment) error {
	return s.each(func(path, holder string) error {
		for _, v := range valid {
			if isHolder(holder, v.ContainerID, v.IfName) {
				return nil
			}
		}
		return remove(path)
	})
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release address: %w", err)
	}
	return nil
}

// allocate takes the next free address of a range set.
func (s *ipStore) allocate(set []ipRange, index int, id, ifName string) (ip netip.Addr, r ipRange, err error) {
	var last netip.Addr
	lastFile := filepath.Join(s.dir, lastPrefix+strconv.Itoa(index))
	if b, err := os.ReadFile(lastFile); err == nil {
		if last, err = netip.ParseAddr(strings.TrimSpace(string(b))); err != nil {
			last = netip.Addr{} // damaged: only the order suffers
		}
	}
	found := false
	candidates(set, last, func(a netip.Addr, in ipRange) bool {
		found, err = s.reserve(a, id, ifName)
		ip, r = a, in
		return !found && err == nil
	})
	switch {
	case err != nil:
		return ip, r, err
	case !found:
		texts := make([]string, len(set))
		for i, r := range set {
			texts[i] = r.String()
		}
		return ip, r, fmt.Errorf("no IP addresses available in range set: %s", strings.Join(texts, ","))
	}
	if err := os.WriteFile(lastFile, []byte(ip.String()), 0o600); err != nil {
		return ip, r, errors.Join(fmt.Errorf("note last address: %w", err), remove(filepath.Join(s.dir, ip.String())))
	}
	return ip, r, nil
}

// reserve takes one address; false means that it is in use.
func (s *ipStore) reserve(ip netip.Addr, id, ifName string) (bool, error) {
	path := filepath.Join(s.dir, ip.String())
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_EXCL|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reserve address: %w", err)
	}
	_, err = f.WriteString(id + lineBreak + ifName)
	if err = errors.Join(err, f.Close()); err != nil {
		return false, errors.Join(fmt.Errorf("reserve address %s: %w", ip, err), remove(path))
	}
	return true, nil
}
