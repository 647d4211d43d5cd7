package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Programs are the programs a throw-away node needs.
type Programs struct {
	Bin  string // directory of berthd and berth-shim
	Runc string
	CNI  string // directory of the CNI plugins
}

// Find looks for the programs: bin when given, else <module>/bin; runc and the
// plugins also by BERTH_TEST_RUNC and BERTH_TEST_CNI_BIN, then in PATH and
// the directories distributions use.
func Find(bin string) (Programs, error) {
	p := Programs{Bin: bin}
	if p.Bin == "" {
		root, err := moduleRoot()
		if err != nil {
			return p, err
		}
		p.Bin = filepath.Join(root, "bin")
	}
	var err error
	if p.Bin, err = filepath.Abs(p.Bin); err != nil {
		return p, err
	}
	path, _ := exec.LookPath("runc")
	p.Runc = first(os.Getenv("BERTH_TEST_RUNC"), filepath.Join(p.Bin, "runc"), path)
	for _, d := range []string{os.Getenv("BERTH_TEST_CNI_BIN"), filepath.Join(p.Bin, "cni"), "/opt/cni/bin", "/usr/lib/cni"} {
		if d != "" && exists(filepath.Join(d, "bridge")) {
			p.CNI = d
			break
		}
	}
	return p, nil
}

// Missing lists, in words, what this machine lacks to run a node; berthd says
// whether Berth's own programs count.
func (p Programs) Missing(berthd bool) []string {
	var out []string
	if os.Geteuid() != 0 {
		out = append(out, "root: namespaces, mounts and cgroups need it")
	}
	if berthd {
		for _, b := range []string{"berthd", "berth-shim"} {
			if !exists(filepath.Join(p.Bin, b)) {
				out = append(out, fmt.Sprintf("%s: run `make build`", filepath.Join(p.Bin, b)))
			}
		}
	}
	if p.Runc == "" {
		out = append(out, fmt.Sprintf("runc: neither in %s nor in PATH", p.Bin))
	}
	if p.CNI == "" {
		out = append(out, fmt.Sprintf("CNI plugins (bridge, host-local, portmap): not in %s, /opt/cni/bin, /usr/lib/cni", filepath.Join(p.Bin, "cni")))
	}
	for _, tool := range []string{"unshare", "nsenter", "ip", "iptables", "sh", "cat"} {
		if _, err := exec.LookPath(tool); err != nil {
			out = append(out, tool+": not in PATH")
		}
	}
	if len(out) == 0 {
		if err := exec.Command("unshare", "--net", "--mount", "true").Run(); err != nil {
			out = append(out, "namespaces: the kernel or the container around us refuses to make them (unshare --net --mount)")
		}
	}
	return out
}

// path is PATH with the programs' directories first.
func (p Programs) path() string {
	return strings.Join([]string{p.Bin, filepath.Dir(p.Runc), os.Getenv("PATH")}, ":")
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if exists(filepath.Join(d, "go.mod")) {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod above %s", dir)
		}
	}
}

func first(paths ...string) string {
	for _, p := range paths {
		if p != "" && exists(p) {
			return p
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
