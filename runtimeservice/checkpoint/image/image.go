// Package image reads what the images of a checkpoint would have CRIU do, and
// checks it against the OCI specification of the container that is to be restored.
//
// CRIU restores as root and does as its images say: it gives a process the
// credentials, the seccomp filter and the open files that they name, it mounts
// what they name, and it takes the mounts of the node itself for the container's
// when the namespaces in them are the node's. A checkpoint from elsewhere may be
// forged. What passes here gives a process no more than runc would give the
// container.
//
// Everything not known to be harmless is refused: image files, fields and types of
// open files that this package does not know, namespaces and mounts that the
// container made itself. CRIU 3.17 to 4.2 are known.
//
// Not checked:
//   - CRIU itself. It is written in C and trusts its images. What would have it write
//     over its own memory is refused where that is known: maps that overlap, names
//     longer than their place. Registers, timers, queues and the like are passed on
//     as they are.
//   - What lies in the file system. CRIU follows links while it still sees the
//     node's files: call CheckRoot as well, when the root file system is complete
//     and before CRIU runs. Volumes are not looked into.
//   - Files that a process has open are opened as root: whatever is mounted in the
//     container, with the right to write where the mount has it.
//   - What a seccomp filter says of arguments, and filters on other machines than
//     amd64 and arm64. A call that the profile never allows is denied by the filter.
//   - The state of sockets: addresses, ports and queued data.
//   - Limits of resources that the specification does not name.
//   - What CRIU does not restore: 3.17 knows no no_new_privs, and no version makes
//     the root file system read-only.
package image

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// Image is what the images say.
type Image struct {
	LSM       uint32 // that the processes had labels of
	Node      Namespaces
	Tasks     []Task
	Mounts    map[uint32][]Mount // by namespace
	Filters   []Filter
	Files     []File
	Lost      Lost
	Terminals []uint32          // their types
	Maps      map[uint32]IDMaps // by user namespace
	External  map[string]string // keys of namespaces, by their image
	Trees     map[uint32]Tree   // what temporary file systems hold, by device
	Cgroups   Cgroups
}

// Security modules.
const (
	LSMNone = iota
	LSMSELinux
	LSMAppArmor
)

// Namespaces are IDs within the images.
type Namespaces struct {
	PID, Net, IPC, UTS, Mount, User, Cgroup, Time uint32
}

// Task is a process.
type Task struct {
	PID, Parent uint32
	Dead        bool // it has ended, and nobody has waited for it
	Namespaces  *Namespaces
	OOMScoreAdj int32
	Limits      []Limit
	Threads     []Thread
}

// Limit is a resource limit; they are in the order of their numbers.
type Limit struct{ Soft, Hard uint64 }

// Thread is a thread of a process; the first one is the process itself.
type Thread struct {
	TID     uint32
	Creds   *Creds
	Seccomp uint32 // mode
	Filter  uint32 // number of the last filter
	Nice    int32
	Policy  uint32
	Prio    uint32
}

// Creds are credentials.
type Creds struct {
	UID, GID   IDs
	Groups     []uint32
	Caps       Caps
	SecureBits uint32
	NoNewPrivs bool
	Label      string // profile of AppArmor, context of SELinux
	SockLabel  string // context of sockets it makes
}

// IDs are those of a user or group.
type IDs struct{ Real, Effective, Saved, FS uint32 }

// Caps are sets of capabilities, a bit for each.
type Caps struct{ Inheritable, Permitted, Effective, Bounding, Ambient uint64 }

// Filter is a seccomp filter. A thread has one and all before it.
type Filter struct {
	Program []byte
	Before  *uint32
	Flags   uint32
}

// Mount is a mount.
type Mount struct {
	ID, Parent, Dev   uint32
	Type              uint32
	Root, Point       string
	Source            string
	Flags, SuperFlags uint32
	Peers             Peers
	Key               string // by which the runtime names its source
	Odd               bool   // restored by a plugin, as before CRIU 1.6, deleted, or of a type by name
}

// Peers are the groups in which a mount is shared.
type Peers struct{ Shared, Master uint32 }

// File is an open file.
type File struct {
	ID, Type  uint32
	Path, Dir string // of a regular file, or what a socket is bound to
	Mount     int32
	Elsewhere bool     // the runtime has it, by the path as a key
	Socket    Socket   // if it is one
	Watched   []string // paths it hears of
	Handles   []uint32 // devices on which it hears of files that are not named by a path
}

// Socket is what matters of a socket.
type Socket struct {
	Family, Type, Protocol uint32

	From, To int    // words of an address
	Flags    uint32 // CRIU's, of Unix sockets
	Mark     uint32
	Device   string
	Groups   bool // it hears groups of a netlink
}

// Lost are the open files that have no name any more, and modes of those that are
// made again, by their numbers.
type Lost struct {
	Files  []Remap
	Ghosts map[uint32]uint32
}

// Remap says where a file is that has no name any more.
type Remap struct{ File, Is, Type uint32 }

// IDMaps are the mappings of a user namespace.
type IDMaps struct{ UIDs, GIDs []IDMap }

// IDMap is a line of a mapping.
type IDMap struct{ Inside, Outside, Count uint32 }

// Bounds of what is read. The pages of memory are not read at all.
const (
	maxNames  = 200_000
	maxFile   = 16 << 20
	maxTotal  = 64 << 20
	maxTasks  = 32_768 // threads too
	maxMounts = 4096
	maxFiles  = 100_000
)

// errEnough ends the reading of a file.
var errEnough = errors.New("enough")

// Read reads the images in a directory.
func Read(dir string) (*Image, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	r := &reader{root: root, names: map[string]entry{}, left: maxTotal, img: &Image{
		Mounts: map[uint32][]Mount{}, Lost: Lost{Ghosts: map[uint32]uint32{}}, Maps: map[uint32]IDMaps{}, External: map[string]string{}, Trees: map[uint32]Tree{},
	}}
	if err := r.all(); err != nil {
		return nil, fmt.Errorf("images of the checkpoint: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return r.img, nil
}

type reader struct {
	root  *os.Root
	names map[string]entry
	left  int64 // bytes that may yet be read
	img   *Image
	count int // of threads
}

// entry is a file in the directory: what kind of image it is, and its number.
type entry struct {
	kind int
	id   uint64
}

// image is what is done with the files of a kind: %u stands for their number, %x
// for one in hexadecimal. Those without a function only have to be there.
type image struct {
	name string
	read func(r *reader, id uint32, b []byte) error
	head bool                                          // its beginning is enough
	open func(r *reader, id uint32, f io.Reader) error // instead of read, for what is large
}

func images() []image {
	return []image{
		{name: "inventory.img", read: (*reader).inventory},
		{name: "pstree.img", read: (*reader).pstree},
		{name: "seccomp.img", read: (*reader).seccomp},
		{name: "files.img", read: (*reader).files},
		{name: "remap-fpath.img", read: (*reader).remaps},
		{name: "ghost-file-%x.img", read: (*reader).ghost, head: true},
		{name: "tty-info.img", read: (*reader).terminals},
		{name: "cgroup.img", read: (*reader).cgroups},
		{name: "mm-%u.img", read: (*reader).memory},
		{name: "mountpoints-%u.img", read: (*reader).mounts},
		{name: "netns-%u.img", read: (*reader).netns},
		{name: "pidns-%u.img", read: (*reader).pidns},
		{name: "userns-%u.img", read: (*reader).userns},
		{name: "descriptors.json", read: (*reader).descriptors},
		{name: "tmpfs-dev-%u.tar.gz.img", open: (*reader).tree},
		// Read with the processes that they are of.
		{name: "core-%u.img"}, {name: "ids-%u.img"},
		// Memory, and data that goes back into what it came from.
		{name: "fs-%u.img"}, {name: "fdinfo-%u.img"}, {name: "pagemap-%u.img"}, {name: "pagemap-shmem-%u.img"},
		{name: "pages-%u.img"}, {name: "memfd.img"}, {name: "filelocks.img"}, {name: "pipes-data.img"}, {name: "fifo-data.img"},
		{name: "sk-queues.img"}, {name: "tcp-stream-%x.img"}, {name: "tty-data.img"}, {name: "timens-%u.img"}, {name: "utsns-%u.img"},
		{name: "ipcns-var-%u.img"}, {name: "ipcns-shm-%u.img"}, {name: "ipcns-msg-%u.img"}, {name: "ipcns-sem-%u.img"},
		// About the machine of the dump, and what it counted.
		{name: "cpuinfo.img"}, {name: "stats-dump"},
	}
}

// all lists the directory, reads what stands by itself, then the processes.
func (r *reader) all() error {
	dir, err := r.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	kinds := images()
	for {
		names, err := dir.Readdirnames(1000)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if len(r.names) >= maxNames {
				return fmt.Errorf("more than %d files", maxNames)
			}
			if err := r.known(kinds, name); err != nil {
				return err
			}
		}
	}
	for _, must := range []string{"inventory.img", "pstree.img", "files.img", "descriptors.json"} {
		if _, ok := r.names[must]; !ok {
			return fmt.Errorf("there is no %s", must)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.names)) {
		at := r.names[name]
		if err := r.content(kinds[at.kind], name, at.id); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return r.tasks()
}

// known notes a file by its name, or refuses it: CRIU would look for files of
// older kinds, which say the same in other words, and for what only plugins and
// namespaces of the network have.
func (r *reader) known(kinds []image, name string) error {
	st, err := r.root.Lstat(name)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%q is not a regular file", name)
	}
	for i, k := range kinds {
		before, after, numbered := strings.Cut(k.name, "%")
		if !numbered {
			if name == k.name {
				r.names[name] = entry{kind: i}
				return nil
			}
			continue
		}
		base := 10
		if after[0] == 'x' {
			base = 16
		}
		digits, ok := strings.CutPrefix(name, before)
		if ok {
			digits, ok = strings.CutSuffix(digits, after[1:])
		}
		if !ok {
			continue
		}
		id, err := strconv.ParseUint(digits, base, 64)
		if err == nil && strconv.FormatUint(id, base) == digits {
			r.names[name] = entry{i, id}
			return nil
		}
	}
	return fmt.Errorf("no container needs the image %q", name)
}

// content reads what a file of a kind says.
func (r *reader) content(k image, name string, id uint64) error {
	if k.read == nil && k.open == nil {
		return nil
	}
	if id > math.MaxUint32 {
		return fmt.Errorf("its number is too large")
	}
	if k.read != nil {
		b, err := r.file(name, k.head)
		if err != nil {
			return err
		}
		return k.read(r, uint32(id), b)
	}
	f, _, err := r.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return k.open(r, uint32(id), f)
}

func (r *reader) open(name string) (*os.File, int64, error) {
	f, err := r.root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// file returns the content of a file, or its beginning.
func (r *reader) file(name string, head bool) ([]byte, error) {
	f, size, err := r.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if head {
		size = min(size, 64<<10)
	}
	if size > maxFile || size > r.left {
		return nil, fmt.Errorf("it is too large: %d bytes", size)
	}
	r.left -= size
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	return b, nil
}
