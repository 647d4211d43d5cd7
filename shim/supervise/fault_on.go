//go:build faults

package supervise

import "golang.org/x/sys/unix"

// faultFile, beside the directory of the containers, names the point where the
// next shim that comes there ends.
const faultFile = "../../shim.fault"

// fault kills the shim with SIGKILL once the fault file names this point.
func fault(point string) {
	if want, err := readFile(faultFile); err != nil || string(want) != point || unix.Unlink(faultFile) != nil {
		return
	}
	_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	select {} // nothing must run on
}
