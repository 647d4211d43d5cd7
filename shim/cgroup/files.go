package cgroup

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of a control file. cgroup.procs of a group with
// a hundred thousand processes fits.
const maxFile = 1 << 20

func fsType(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, err
	}
	return int64(st.Type), nil
}

func isLink(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

func isDir(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func exists(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil
}

// open retries EINTR, which Go's preemption signals cause.
func open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func readFile(path string) (string, error) {
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 512)
	for len(buf) < maxFile {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		buf = buf[:len(buf)+n]
	}
	return string(buf), nil
}

func writeFile(path, text string) error {
	fd, err := open(path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(text))
		if err != unix.EINTR {
			return err
		}
	}
}

// readDir returns the names in a directory without "." and "..".
func readDir(path string) ([]string, error) {
	fd, err := open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// subdirs returns the groups directly below dir; none when dir is missing.
func subdirs(dir string) []string {
	names, err := readDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range names {
		// Control files have a dot in their names, or are these few.
		if p := dir + "/" + n; isDir(p) {
			out = append(out, p)
		}
	}
	return out
}

// number reads the value of a "key value" line; 0, false when missing.
func number(text, key string) (uint64, bool) {
	for _, line := range strings.Split(text, "\n") {
		k, v, ok := strings.Cut(line, " ")
		if !ok || k != key {
			continue
		}
		var n uint64
		for i := 0; i < len(v); i++ {
			if v[i] < '0' || v[i] > '9' {
				return 0, false
			}
			n = n*10 + uint64(v[i]-'0')
		}
		return n, v != ""
	}
	return 0, false
}

func parsePids(text string, out []int) []int {
	n, any := 0, false
	for i := 0; i < len(text); i++ {
		if c := text[i]; c >= '0' && c <= '9' {
			n, any = n*10+int(c-'0'), true
			continue
		}
		if any && n > 0 {
			out = append(out, n)
		}
		n, any = 0, false
	}
	if any && n > 0 {
		out = append(out, n)
	}
	return out
}

// gone reports errors that mean the group is not there (any more).
func gone(err error) bool {
	return err == syscall.ENOENT || err == syscall.ENODEV || err == syscall.ENOTDIR
}
