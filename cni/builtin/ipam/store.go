package ipam

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
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Holder is what an address is held for: an interface of a container.
type Holder struct{ ContainerID, IfName string }

// Stores gives access to the address directories of networks. The zero value is
// ready. Safe for concurrent use, also with plugin programs.
type Stores struct {
	mu   sync.Mutex
	dirs map[string]*directory // by path
}

// Store is the directory of a network's addresses, locked. For each address in
// use there is a file of its name that holds the container's ID and the
// interface; last_reserved_ip.N holds the address given last from range set N.
type Store struct {
	*directory
	lock  *os.File
	buf   [256]byte // a holder and one byte more
	fresh bool      // what is known is new
	sound bool      // and can be relied on
}

const (
	lineBreak  = "\r\n"
	lastPrefix = "last_reserved_ip."
)

// With calls fn with the store of a network, which nobody else, here or in
// another process, has open meanwhile.
func (s *Stores) With(ctx context.Context, dataDir, network string, fn func(*Store) error) error {
	st, err := s.open(ctx, filepath.Join(dataDir, network))
	if err != nil {
		return err
	}
	defer st.close()
	err = fn(st)
	st.sound = err == nil
	return err
}

// open waits first for its turn in this process, which wakes it at once, and
// then for the lock that the reference plugin takes too, which it has to poll.
func (s *Stores) open(ctx context.Context, path string) (*Store, error) {
	s.mu.Lock()
	if s.dirs == nil {
		s.dirs = map[string]*directory{}
	}
	d, ok := s.dirs[path]
	if !ok {
		d = &directory{path: path, turn: make(chan struct{}, 1)}
		s.dirs[path] = d
	}
	s.mu.Unlock()
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the addresses in %s: %w", path, context.Cause(ctx))
	}
	f, err := lock(ctx, path)
	if err != nil {
		<-d.turn
		return nil, err
	}
	d.recall()
	return &Store{directory: d, lock: f}, nil
}

func lock(ctx context.Context, dir string) (*os.File, error) {
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
			return f, nil
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

func (s *Store) close() {
	switch {
	case !s.sound:
		s.holders = nil
	case s.fresh:
		s.sign()
	}
	s.lock.Close()
	<-s.turn
}

// read finds out who holds the addresses in use, unless that is known.
func (s *Store) read() error {
	if s.holders != nil {
		return nil
	}
	entries, err := os.ReadDir(s.path)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	holders := map[string][]string{}
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		b, err := s.holder(filepath.Join(s.path, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read address in use: %w", err)
		}
		text := strings.TrimSpace(string(b))
		holders[text] = append(holders[text], e.Name())
	}
	s.holders, s.fresh = holders, true
	return nil
}

// holder reads a short file with three system calls and without a buffer of its
// own: there is one for each pod. The result lasts until the next call.
func (s *Store) holder(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.ReadFile(path) // says what failed, or tries again
	}
	n, err := unix.Read(fd, s.buf[:])
	_ = unix.Close(fd)
	if err != nil || n == len(s.buf) {
		return os.ReadFile(path)
	}
	return s.buf[:n], nil
}

// texts are what a holder's files may hold: those of old versions lack the interface.
func (h Holder) texts() [2]string {
	return [2]string{h.ContainerID + lineBreak + h.IfName, h.ContainerID}
}

// HeldBy lists the addresses of a holder.
func (s *Store) HeldBy(h Holder) (ips []netip.Addr, err error) {
	if err := s.read(); err != nil {
		return nil, err
	}
	for _, text := range h.texts() {
		for _, name := range s.holders[text] {
			ip, err := netip.ParseAddr(name)
			if err != nil {
				return nil, err
			}
			ips = append(ips, ip)
		}
	}
	return ips, nil
}

// Release gives the addresses of a holder back.
func (s *Store) Release(h Holder) error {
	if err := s.read(); err != nil {
		return err
	}
	for _, text := range h.texts() {
		if err := s.release(text); err != nil {
			return err
		}
	}
	return nil
}

// ReleaseAllBut gives the addresses of all other holders back.
func (s *Store) ReleaseAllBut(valid []Holder) error {
	if err := s.read(); err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, v := range valid {
		for _, text := range v.texts() {
			keep[text] = true
		}
	}
	for text := range s.holders {
		if keep[text] {
			continue
		}
		if err := s.release(text); err != nil {
			return err
		}
	}
	return nil
}

// release deletes the files that hold a text.
func (s *Store) release(text string) error {
	for _, name := range s.holders[text] {
		if err := remove(filepath.Join(s.path, name)); err != nil {
			return err
		}
		s.fresh = true
	}
	delete(s.holders, text)
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release address: %w", err)
	}
	return nil
}

// Allocate takes the next free address of a range set and tells its range.
func (s *Store) Allocate(set []Range, index int, h Holder) (ip netip.Addr, r Range, err error) {
	var last netip.Addr
	lastFile := filepath.Join(s.path, lastPrefix+strconv.Itoa(index))
	if b, err := os.ReadFile(lastFile); err == nil {
		if last, err = netip.ParseAddr(strings.TrimSpace(string(b))); err != nil {
			last = netip.Addr{} // damaged: only the order suffers
		}
	}
	found := false
	candidates(set, last, func(a netip.Addr, in Range) bool {
		found, err = s.reserve(a, h)
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
		return ip, r, errors.Join(fmt.Errorf("note last address: %w", err), remove(filepath.Join(s.path, ip.String())))
	}
	return ip, r, nil
}

// reserve takes one address; false means that it is in use.
func (s *Store) reserve(ip netip.Addr, h Holder) (bool, error) {
	path := filepath.Join(s.path, ip.String())
	const flags = os.O_WRONLY | os.O_EXCL | os.O_CREATE
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		// Under the lock a file without a holder is what a crash has left.
		st, statErr := os.Stat(path)
		if statErr != nil || st.Size() > 0 {
			return false, nil
		}
		// It is replaced, not written to, for others to see that the directory changed.
		if err := remove(path); err != nil {
			return false, err
		}
		s.holders = nil
		f, err = os.OpenFile(path, flags, 0o600)
	}
	if err != nil {
		return false, fmt.Errorf("reserve address: %w", err)
	}
	text := h.texts()[0]
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return false, errors.Join(fmt.Errorf("reserve address %s: %w", ip, err), remove(path))
	}
	if s.holders != nil {
		s.holders[text] = append(s.holders[text], ip.String())
		s.fresh = true
	}
	return true, nil
}
