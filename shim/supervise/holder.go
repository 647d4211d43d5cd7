package supervise

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// confined tells the holder's second life from its first. The command line
	// can't: it names the pod, and is unreadable where there is no /proc.
	confined = "BERTH_HOLDER"
	nobody   = 65534
	// readyFD is where whoever launches a holder hears of it, if it is open.
	readyFD = 3
	// holderRoot is covered, in the holder's own mount namespace, by what
	// becomes its root. It has to be a directory that every host has.
	holderRoot = "/proc"
)

// hold is the holder's first life: it gives up all it has on the node and
// executes itself anew, so that nothing of the first life is left, neither in
// memory nor in other threads. Containers of the pod see this process: what it
// could reach, they could, through /proc/1.
func hold(args []string) {
	runtime.LockOSThread()
	what, err := confine(args)
	if err == nil {
		return // not reached
	}
	text := "confine holder: " + what + ": " + err.Error()
	_, _ = unix.Write(readyFD, []byte(text))
	say(2, text)
	syscall.Exit(1)
}

// confine does it and does not return if all is well; else it says what failed.
func confine(args []string) (string, error) {
	exe, err := sealedSelf()
	if err != nil {
		return "open own program", err
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"start session", func() error { _, err := unix.Setsid(); return ignore(err, unix.EPERM) }},
		// Here and not by the clone that made this process: who makes an IPC
		// namespace owns the root of its /dev/mqueue, and at the clone that would
		// still be the node's root, which a user namespace knows as nobody.
		{"make an IPC namespace", func() error { return unix.Unshare(unix.CLONE_NEWIPC) }},
		{"replace descriptors", plainDescriptors},
		{"leave the node's mounts", emptyRoot},
		{"drop privileges", dropPrivileges},
		{"execute own program", func() error { return execConfined(exe, args) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return s.what, err
		}
	}
	return "", nil
}

func ignore(err, harmless error) error {
	if err == harmless {
		return nil
	}
	return err
}

// sealedSelf opens this program through a read-only mount of its own that is
// attached nowhere. Whoever opens /proc/1/exe gets that mount, and can't write
// to the program even once nobody executes it. Kernels that can't make such a
// mount (before 5.12) get a sealed copy.
func sealedSelf() (int, error) {
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", flags)
	if err == nil {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID,
			Propagation: unix.MS_PRIVATE}
		if err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err == nil {
			return fd, nil
		}
		_ = unix.Close(fd)
	}
	return sealedCopy()
}

func sealedCopy() (int, error) {
	src, err := openFile("/proc/self/exe", unix.O_RDONLY, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(src)
	fd, err := unix.MemfdCreate("berth-shim", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	for {
		n, err := unix.Sendfile(fd, src, nil, 1<<30)
		if err != nil && err != unix.EINTR {
			return -1, err
		}
		if err == nil && n == 0 {
			return fd, seal(fd)
		}
	}
}

func seal(fd int) error {
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, all)
	return err
}

// plainDescriptors makes 0, 1 and 2 an empty file that is nobody else's:
// /dev/null would be the node's inode, modes and all, for containers to change.
func plainDescriptors() error {
	fd, err := unix.MemfdCreate("null", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	for to := range 3 {
		if err := unix.Dup2(fd, to); err != nil {
			return err
		}
	}
	return seal(fd)
}

// emptyRoot leaves the process with an empty read-only root in a mount
// namespace that has nothing else: no mount of the node or of a container can
// be reached through it, or kept busy by it.
func emptyRoot() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("none", holderRoot, "tmpfs", flags, "size=4k,nr_inodes=2,mode=555"); err != nil {
		return err
	}
	if err := unix.Chdir(holderRoot); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// dropPrivileges is for this thread, which is the only one after the exec.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	for c := uintptr(0); ; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err == unix.EINVAL && c > 0 {
			break
		} else if err != nil {
			return err
		}
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	// By system call: the library's functions would do it to every thread.
	for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, nobody, nobody, nobody},
		{unix.SYS_SETRESUID, nobody, nobody, nobody}} {
		// EINVAL: a small user namespace has no such user; its root is nobody outside.
		if _, _, e := unix.RawSyscall(call[0], call[1], call[2], call[3]); e != 0 && e != unix.EINVAL {
			return e
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}

// execConfined starts the second life. The command line stays: the daemon
// knows its holders by it.
func execConfined(exe int, args []string) error {
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings([]string{confined + "=1", "GOMAXPROCS=1"})
	if err != nil {
		return err
	}
	if err := unix.CloseRange(readyFD+1, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	empty, err := unix.BytePtrFromString("")
	if err != nil {
		return err
	}
	for {
		// EAGAIN: another thread of the runtime was just being made.
		_, _, e := unix.Syscall6(unix.SYS_EXECVEAT, uintptr(exe), uintptr(unsafe.Pointer(empty)),
			uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])), unix.AT_EMPTY_PATH, 0)
		if e != unix.EAGAIN && e != unix.EINTR {
			return e
		}
	}
}

func sigprocmask(block *uint64) error {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, uintptr(unsafe.Pointer(block)), 0, 8, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// sigaction is the kernel's struct, of which only the handler is used.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// siginfo is the head of the kernel's struct for a signal from a process.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	_                     [108]byte
}

// holdOn is the holder's second life. Ignoring SIGCHLD makes the kernel reap
// for it; ignoring is done by system call because package os/signal keeps a
// thread. SIGTERM is ignored, too, and waited for: one from outside the
// namespace, as at the node's shutdown, ends the holder; a container's doesn't.
// With its default action one that comes while the wait is not on would be given
// to a thread of Go's runtime, none of which blocks it, and the kernel would then
// end the process, though it is the first of a PID namespace: a container could
// do that. Ignored, it is only lost then: between two waits, or when a thread of
// the runtime is given it. Who needs the holder to end kills it.
// SIGURG, which lets the scheduler interrupt computing threads, is not needed
// here and would interrupt the wait.
func holdOn() {
	runtime.LockOSThread()
	var set uint64 = 1 << (unix.SIGTERM - 1)
	if unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) != nil || sigprocmask(&set) != nil {
		syscall.Exit(1)
	}
	for sig := uintptr(1); sig <= 64; sig++ {
		act := sigaction{handler: 1}
		_ = rtSigaction(sig, &act) // the kernel refuses it for SIGKILL and SIGSTOP
	}
	_, _ = unix.Write(readyFD, []byte{0})
	_ = unix.CloseRange(3, ^uint(0), 0)
	for {
		var info siginfo
		n, _, _ := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)),
			uintptr(unsafe.Pointer(&info)), 0, 8, 0, 0)
		// A sender outside the namespace has no pid in it. Codes from 0 up are
		// the kernel's to give; a process can't forge them.
		if unix.Signal(n) == unix.SIGTERM && info.code >= 0 && info.pid == 0 {
			syscall.Exit(0)
		}
	}
}
