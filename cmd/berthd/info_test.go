package main

import "testing"

func TestFileSystemOf(t *testing.T) {
	const mounts = `22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:25 / /var/lib rw - xfs /dev/sdb1 rw
31 22 0:26 / /var/lib/berth2 rw - btrfs /dev/sdc1 rw
32 30 0:27 / /var/lib/with\040blank rw,relatime shared:1 - zfs pool rw
33 30 0:28 / /var/lib rw - tmpfs over rw
`
	for path, want := range map[string]string{
		"/": "ext4", "/srv": "ext4", "/var/lib": "tmpfs", "/var/lib/berth": "tmpfs", "/var/lib/berth2/x": "btrfs", "/var/lib/with blank/x": "zfs",
	} {
		if got := fileSystemOf(mounts, path); got != want {
			t.Errorf("%s is on %s, want %s", path, got, want)
		}
	}
	if got := fileSystemOf("", "/"); got != "" {
		t.Errorf("without mounts: %q", got)
	}
}
