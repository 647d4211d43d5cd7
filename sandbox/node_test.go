package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni"
	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

const conflist = `{"cniVersion":"1.0.0","name":"berth-test","plugins":[
 {"type":"bridge","bridge":"berthtest0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":%q,
  "ranges":[[{"subnet":"10.199.0.0/16"}],[{"subnet":"fd00:199::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}`

// node is a manager with everything under it, in directories of its own.
type node struct {
	*Manager
	db      *store.DB
	dir     string
	ipam    string
	conf    string
	bin     string
	builtin []string // plugin types served in-process
	network *cni.Manager
}

func pluginDir(t testing.TB) string {
	for _, d := range []string{os.Getenv("BERTH_TEST_CNI_BIN"), "../bin/cni", "/opt/cni/bin", "/usr/lib/cni"} {
		if _, err := os.Stat(filepath.Join(d, "portmap")); d != "" && err == nil {
			abs, err := filepath.Abs(d)
			if err != nil {
				t.Fatal(err)
			}
			return abs
		}
	}
	t.Skip("no CNI plugins: set BERTH_TEST_CNI_BIN to their directory")
	return ""
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and cgroups")
	}
	dir := t.TempDir()
	n := &node{dir: dir, ipam: filepath.Join(dir, "ipam"), conf: filepath.Join(dir, "net.d"), bin: pluginDir(t)}
	for _, d := range []string{n.conf, filepath.Join(dir, "run")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What does not outlive a boot is in memory, as /run is.
	if err := unix.Mount("run", filepath.Join(dir, "run"), "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(dir, "run"), 0); err != nil {
			t.Error(err)
		}
	})
	n.writeConf(t)
	n.open(t)
	t.Cleanup(func() { n.db.Close() })
	return n
}

func (n *node) writeConf(t testing.TB) {
	t.Helper()
	err := os.WriteFile(filepath.Join(n.conf, "10-test.conflist"), fmt.Appendf(nil, conflist, n.ipam), 0o644)
	if err != nil {
		t.Fatal(err)
	}
}

// open makes the parts anew, as a daemon does that was started again.
func (n *node) open(t testing.TB) {
	t.Helper()
	if n.db != nil {
		if err := n.db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if n.db, err = store.Open(store.Config{Dir: filepath.Join(n.dir, "state")}); err != nil {
		t.Fatal(err)
	}
	if n.network, err = cni.New(cni.Config{ConfDir: n.conf, BinDirs: []string{n.bin},
		CacheDir: filepath.Join(n.dir, "state", "cni"), Timeout: 60 * time.Second,
		Builtin: n.builtin, KeepLinks: len(n.builtin) > 0}); err != nil {
		t.Fatal(err)
	}
	mode, err := cgroup.Detect()
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n.Manager, err = New(Config{RunDir: filepath.Join(n.dir, "run"), StateDir: filepath.Join(n.dir, "state"), ShimBinary: self},
		Deps{Store: n.db, Network: n.network, Debts: n.network, Cgroups: mode})
	if err != nil {
		t.Fatal(err)
	}
}

func newRecord(change func(*runtimeapi.PodSandboxConfig)) store.Sandbox {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	c := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: hex.EncodeToString(b[:4])},
		Hostname: "web-0",
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	if change != nil {
		change(c)
	}
	return store.Sandbox{ID: hex.EncodeToString(b), Config: c}
}

// assertNothing fails when anything of a sandbox is left on the node.
func (n *node) assertNothing(t *testing.T, id string) {
	t.Helper()
	for _, p := range []string{n.at.nsDir(id), n.at.filesDir(id), n.at.stateDir(id),
		filepath.Join(n.dir, "state/cni/intents", id), "/sys/fs/cgroup/pids/berth/" + id, "/sys/fs/cgroup/memory/berth/" + id} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", p, err)
		}
	}
	files, err := filepath.Glob(n.ipam + "/berth-test/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), id) {
			t.Errorf("address %s is still reserved", f)
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(b), id) {
		t.Errorf("mounts of the sandbox are left (%v)", err)
	}
	if rules, err := exec.Command("iptables-save").Output(); err == nil && strings.Contains(string(rules), id) {
		t.Errorf("packet filter rules are left:\n%s", rules)
	}
	holders, err := findHolders()
	if err != nil || holders[id] != 0 {
		t.Errorf("holder is left: %v, %v", holders, err)
	}
	if ops := n.db.Ops(); len(ops) != 0 {
		t.Errorf("journal: %v", ops)
	}
}

func (n *node) stopAndRemove(t *testing.T, id string) {
	t.Helper()
	for range 2 {
		if err := n.Stop(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	rec, err := n.db.Sandbox(id)
	if err != nil || rec.Facts.StoppedAt.IsZero() || rec.Facts.Network.Attached {
		t.Fatalf("after stop: %+v, %v", rec.Facts, err)
	}
	for range 2 {
		if err := n.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.db.Sandbox(id); !errdefs.IsNotFound(err) {
		t.Errorf("record is left: %v", err)
	}
	n.assertNothing(t, id)
}

// ips0 is the node's address on the bridge.
func ips0(*testing.T) string { return "10.199.0.1" }

// serve answers on port 80 inside a network namespace until the test ends.
func serve(t *testing.T, path string) {
	t.Helper()
	var l net.Listener
	if err := netns.Do(path, func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			c.Close()
		}
	}()
}

func ask(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; { // duplicate address detection takes a while
		c, err := net.DialTimeout("tcp", addr, 10*time.Second)
		if err == nil {
			hello(t, c)
			return
		}
		if time.Now().After(end) {
			t.Errorf("dial %s: %v", addr, err)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func hello(t *testing.T, c net.Conn) {
	t.Helper()
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("%s answered %q, %v", c.RemoteAddr(), b, err)
	}
}

// recover does what the daemon does at a start.
func (n *node) recover(t testing.TB) {
	t.Helper()
	ids := map[string]bool{}
	for _, o := range n.db.Ops() {
		if _, ours := Unfinished(o); ours {
			ids[o.Subject] = true
		}
	}
	for id := range ids {
		if err := n.Resume(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	all, err := n.Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if err := n.Settle(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
	}
}
