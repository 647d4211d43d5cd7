package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerInfo is what Berth, containerd and CRI-O all tell of a container in
// the verbose part of its status.
type containerInfo struct {
	PID  int            `json:"pid"`
	Spec map[string]any `json:"runtimeSpec"`
}

func parseInfo(r *runtimeapi.ContainerStatusResponse) (containerInfo, error) {
	var info containerInfo
	dec := json.NewDecoder(strings.NewReader(r.GetInfo()["info"]))
	dec.UseNumber() // limits of 64 bits stay what they are
	if err := dec.Decode(&info); err != nil || info.PID == 0 {
		return info, fmt.Errorf("the verbose status of container %s tells no pid (%v): this runtime's processes cannot be told apart", r.GetStatus().GetId(), err)
	}
	return info, nil
}

// bundle is a container's specification as the OCI runtime alone can run it
// again: with the same namespaces of the pod, on the same root file system.
type bundle struct {
	spec    map[string]any
	parent  string // control group of the container it is taken from, without its last element
	systemd bool   // the OCI runtime is to ask systemd for control groups
}

// newBundle takes over the specification of a running container, whose root
// file system is mounted at root.
func newBundle(info containerInfo, root string) (bundle, error) {
	spec := maps.Clone(info.Spec)
	linux, _ := spec["linux"].(map[string]any)
	process, _ := spec["process"].(map[string]any)
	old, _ := spec["root"].(map[string]any)
	if linux == nil || process == nil || old == nil {
		return bundle{}, fmt.Errorf("the runtime's verbose status has no whole runtimeSpec: leave the floor out with --oci-runtime ''")
	}
	old = maps.Clone(old)
	old["path"] = root
	spec["root"] = old
	group, _ := linux["cgroupsPath"].(string)
	b := bundle{spec: spec}
	if slice, _, found := strings.Cut(group, ":"); found {
		b.parent, b.systemd = slice, true
	} else {
		b.parent = path.Dir("/" + group)
	}
	return b, nil
}

// document is config.json of the container with that ID.
func (b bundle) document(id string) ([]byte, error) {
	linux := maps.Clone(b.spec["linux"].(map[string]any))
	linux["cgroupsPath"] = path.Join(b.parent, id)
	if b.systemd {
		linux["cgroupsPath"] = b.parent + ":berthctl-bench:" + id
	}
	spec := maps.Clone(b.spec)
	spec["linux"] = linux
	return json.Marshal(spec)
}

// rootOf finds where, in this mount namespace, the root file system of a
// process in a container is mounted: the mount of the same device.
func rootOf(procRoot string, pid int) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(procRoot, strconv.Itoa(pid), "root")+"/", &st); err != nil {
		return "", fmt.Errorf("look at the root of process %d: %w", pid, err)
	}
	raw, err := os.ReadFile(filepath.Join(procRoot, "self/mountinfo"))
	if err != nil {
		return "", err
	}
	if at := findMount(raw, fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))); at != "" {
		return at, nil
	}
	return "", fmt.Errorf("the root file system of process %d is not mounted here: run berthctl in the mount namespace of the daemon, or leave the floor out with --oci-runtime ''", pid)
}

// findMount is the mount point of the whole file system of a device, out of
// mountinfo (proc_pid_mountinfo(5)); "" when there is none.
func findMount(mountinfo []byte, device string) string {
	for line := range bytes.Lines(mountinfo) {
		f := strings.Fields(string(line))
		if len(f) > 4 && f[2] == device && f[3] == "/" {
			return unescape(f[4])
		}
	}
	return ""
}

// unescape undoes the kernel's \040 and the like.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
