package main

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProgramSpans(t *testing.T) {
	const maps = `00400000-01113000 r-xp 00000000 fe:00 123                     /usr/bin/berthd (deleted)
01113000-01f61000 r--p 00d13000 fe:00 123                     /usr/bin/berthd (deleted)
01f61000-01ff1000 rw-p 01b61000 fe:00 123                     /usr/bin/berthd (deleted)
01ff1000-04040000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r--s 00000000 fe:00 124                 /usr/bin/berthd (deleted)
7f0000001000-7f0000002000 r-xp 00000000 00:00 0                   [vdso]
7f0000002000-7f0000003000 r--p 00000000 fe:00 9                   /usr/bin/other
`
	want := []span{{0x400000, 0x1113000}, {0x1113000, 0x1f61000}}
	if d := cmp.Diff(want, programSpans(maps, "/usr/bin/berthd (deleted)"), cmp.AllowUnexported(span{})); d != "" {
		t.Error(d)
	}
}

// residentFile is RssFile of this process, in KiB.
func residentFile(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "RssFile:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUnmapProgram(t *testing.T) {
	before := residentFile(t)
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after > before/2 {
		t.Errorf("%d of %d KiB of files are still resident", after, before)
	}
}
