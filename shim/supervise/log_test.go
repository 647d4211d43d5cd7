package supervise

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// TestNoTornRecord: however many short writes precede a failure, whole records
// are all that is left, and what is not is counted.
func TestNoTornRecord(t *testing.T) {
	const records = "t stdout F one\nt stdout F two\nt stdout F three\n"
	for _, c := range []struct {
		name   string
		shorts []int // bytes that calls take before one fails
		kept   int
	}{
		{"at once", nil, 0},
		{"short", []int{20}, 15},
		{"short at the end of a record", []int{15}, 15},
		{"short twice", []int{5, 17}, 15},
		{"short twice within a record", []int{5, 5}, 0},
		{"short three times", []int{15, 15, 3}, 30},
		{"nothing fails", []int{5, 17, 100}, len(records)},
	} {
		path := filepath.Join(t.TempDir(), "log")
		l, err := openLog(&wire.Create{LogPath: path})
		if err != nil {
			t.Fatal(err)
		}
		const before = "t stdout F before\n"
		l.write([]byte(before))
		shorts := c.shorts
		l.writeBy(func(b []byte) (int, error) {
			if len(shorts) == 0 {
				return -1, unix.ENOSPC
			}
			n := min(shorts[0], len(b))
			shorts = shorts[1:]
			return unix.Write(l.fd, b[:n])
		}, []byte(records))
		closeFD(&l.fd)
		want := syscall.Errno(0)
		if c.kept < len(records) {
			want = unix.ENOSPC
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != before+records[:c.kept] || l.dropped != int64(len(records)-c.kept) || l.errno != want {
			t.Errorf("%s: %q, %d dropped, %v, %v", c.name, got, l.dropped, l.errno, err)
		}
	}
}
