package supervise

import (
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of any file.
const maxFile = 256 << 10

func rtSigaction(sig uintptr, act *sigaction) error {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(act)), 0, 8, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

func openFile(path string, flags int, mode uint32) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

func closeFD(fd *int) {
	if *fd >= 0 {
		_ = unix.Close(*fd)
	}
	*fd = -1
}

func readFile(path string) ([]byte, error) {
	fd, err := openFile(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readFD(fd)
}

func readFD(fd int) ([]byte, error) {
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
			return nil, err
		}
		if n == 0 {
			break
		}
		buf = buf[:len(buf)+n]
	}
	return buf, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// writeFile replaces a file as a whole. With sync it is durable, name and all,
// when this returns.
func writeFile(path string, b []byte, sync bool) error {
	tmp := path + ".tmp"
	fd, err := openFile(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = writeAll(fd, b)
	if err == nil && sync {
		err = retry(func() error { return unix.Fsync(fd) })
	}
	_ = unix.Close(fd)
	if err == nil {
		err = unix.Rename(tmp, path)
	}
	if err != nil {
		_ = unix.Unlink(tmp)
		return err
	}
	if !sync {
		return nil
	}
	return syncDir(parent(path))
}

func syncDir(dir string) error {
	fd, err := openFile(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return retry(func() error { return unix.Fsync(fd) })
}

func parent(path string) string {
	switch i := strings.LastIndexByte(path, '/'); i {
	case -1:
		return "."
	case 0:
		return "/"
	default:
		return path[:i]
	}
}

func mkdirAll(dir string) error {
	err := unix.Mkdir(dir, 0o755)
	if err == unix.ENOENT && len(dir) > 1 {
		if err = mkdirAll(parent(dir)); err == nil {
			err = unix.Mkdir(dir, 0o755)
		}
	}
	if err == unix.EEXIST {
		return nil
	}
	return err
}

// memfd makes a file without a name, and the path by which a child opens it.
func memfd(name string) (fd int, path string, err error) {
	fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, "", err
	}
	return fd, fdPath(fd), nil
}

func fdPath(fd int) string {
	return "/proc/" + strconv.Itoa(unix.Getpid()) + "/fd/" + strconv.Itoa(fd)
}

// content reads a memfd from its beginning.
func content(fd int) []byte {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil
	}
	b, _ := readFD(fd)
	return b
}

// childEnv is the environment without what tunes this program's own runtime.
func childEnv() []string {
	var env []string
	for _, e := range syscall.Environ() {
		if !strings.HasPrefix(e, "GOGC=") && !strings.HasPrefix(e, "GOMAXPROCS=") &&
			!strings.HasPrefix(e, "GOMEMLIMIT=") && !strings.HasPrefix(e, "GODEBUG=") {
			env = append(env, e)
		}
	}
	return env
}

// listenUnix binds a socket to a name in the working directory; a path of any
// length would not fit a socket address.
func listenUnix(name string, kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	_ = unix.Unlink(name)
	old := unix.Umask(0o177)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: name})
	unix.Umask(old)
	if err == nil {
		err = unix.Listen(fd, 64)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// takeConsole accepts one connection on a console socket and returns the pty
// master that the runtime sends over it. Nothing here waits: the runtime has
// ended when this is called.
func takeConsole(listener int) (int, error) {
	conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return -1, err
	}
	defer unix.Close(conn)
	name, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4*4))
	_, n, _, _, err := unix.Recvmsg(conn, name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	fds := parseRights(oob[:n])
	if len(fds) == 0 {
		return -1, syscall.ENOMSG
	}
	for _, extra := range fds[1:] {
		_ = unix.Close(extra)
	}
	return fds[0], nil
}

func parseRights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var out []int
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err == nil {
			out = append(out, fds...)
		}
	}
	return out
}
