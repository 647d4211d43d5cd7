package supervise

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/cgroup"
)

// oomWatch is what is known of kills for memory in the container's group. A
// group of systemd's is removed as soon as its last process is gone, often before
// the shim knows of the end, and then nobody can read any more what became of it.
type oomWatch struct {
	base  uint64 // kills in the group before the container began
	above uint64 // the same of the group above, which counts those below it too
	seen  bool   // there have been more in the container's
	known bool   // its group was read after the end, so that seen is certain
	asked bool   // a client had the container killed
}

// codeKilled is the exit code of who was killed, and of a shell whose last
// program was.
const codeKilled = 137

// watchOOM takes the counters of the beginning, and has the kernel tell of kills
// in a group of systemd's as they happen: what cannot be watched is read at the
// end alone.
func (s *shim) watchOOM() {
	group := s.c.launch.Cgroup
	s.c.oom.base, _ = s.groups.OOMKills(group)
	s.c.oom.above, _ = s.groups.OOMKills(parent(group))
	file := s.groups.OOMEvents(group)
	if !s.c.rt.SystemdCgroup || file == "" {
		return
	}
	fd, err := openFile(file, unix.O_RDONLY, 0)
	if err != nil {
		return
	}
	watch := func(uint32) {
		// Only what reads the file gets to hear of the next change.
		_, err := unix.Seek(fd, 0, unix.SEEK_SET)
		text, err2 := readFD(fd)
		if err != nil || err2 != nil {
			s.loop.drop(&fd)
			return
		}
		if n, ok := cgroup.ParseOOMKills(string(text)); ok && n > s.c.oom.base {
			s.c.oom.seen = true
			s.loop.drop(&fd)
		}
	}
	if s.loop.add(fd, unix.EPOLLPRI, watch) != nil {
		closeFD(&fd)
	}
}

// lookForOOM reads the counter when the container has ended. The kernel tells of
// changes some milliseconds late, so a group may be gone before. Then a container
// that was killed, and not by a client, is taken for one of the kills that were
// counted above it meanwhile.
func (s *shim) lookForOOM() {
	o := &s.c.oom
	if n, ok := s.groups.OOMKills(s.c.launch.Cgroup); ok {
		o.known = true
		o.seen = o.seen || n > o.base
		return
	}
	if o.seen || o.known || o.asked || !s.c.rt.SystemdCgroup || s.c.exit.Code != codeKilled {
		return
	}
	n, ok := s.groups.OOMKills(parent(s.c.launch.Cgroup))
	o.seen = ok && n > o.above
}

// scored calls f while this process has the container's oom_score_adj. What f
// starts inherits it: not every runtime gives it to the processes of an exec, and
// the shim's own is close to "never kill".
func (s *shim) scored(f func()) {
	const own = "/proc/self/oom_score_adj"
	set := func(score []byte) error {
		fd, err := openFile(own, unix.O_WRONLY, 0)
		if err == nil {
			err = writeAll(fd, score)
			closeFD(&fd)
		}
		return err
	}
	was, err := readFile(own)
	score, err2 := readFile("/proc/" + strconv.FormatInt(s.c.launch.PID, 10) + "/oom_score_adj")
	if err != nil || err2 != nil || string(was) == string(score) || set(score) != nil {
		f()
		return
	}
	f()
	if err := set(was); err != nil {
		say(2, "restore oom_score_adj: "+err.Error())
	}
}
