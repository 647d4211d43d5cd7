package ipam

import (
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// directory is what this process knows of the addresses of a network. Without it
// each pod that comes or goes would read the files of all others. Only who has the
// turn may use it.
//
// Others keep addresses in the same directory: whoever has the lock makes and
// deletes files, and writes to none of another's. Either changes the directory's
// time. That of the kernel may stand still for some milliseconds, so that two
// changes get the same; hence the directory is given a time with random nanoseconds
// when it is left, as a signature that a change by anybody takes away.
type directory struct {
	path    string
	turn    chan struct{}       // full while somebody here has it open
	holders map[string][]string // names of files by what is in them; nil: not known
	signed  unix.Stat_t         // identity of the directory with those
}

// identity is what tells a directory from what it was before; ok is false when it
// cannot be had.
func (d *directory) identity() (id unix.Stat_t, ok bool) {
	var st unix.Stat_t
	if err := unix.Stat(d.path, &st); err != nil {
		return id, false
	}
	return unix.Stat_t{Dev: st.Dev, Ino: st.Ino, Mtim: st.Mtim, Ctim: st.Ctim}, true
}

// recall forgets what is known when the directory has changed since it was signed.
func (d *directory) recall() {
	if d.holders == nil {
		return
	}
	if now, ok := d.identity(); !ok || now != d.signed {
		d.holders = nil
	}
}

// sign marks the directory. Where that cannot be done, as on a file system whose
// times are coarse, nothing is known the next time.
func (d *directory) sign() {
	mark := unix.NsecToTimespec(time.Now().Truncate(time.Second).UnixNano() + rand.Int64N(int64(time.Second)))
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mark}
	err := unix.UtimesNanoAt(unix.AT_FDCWD, d.path, times, 0)
	id, ok := d.identity()
	if err != nil || !ok || id.Mtim != mark {
		d.holders = nil
		return
	}
	d.signed = id
}
