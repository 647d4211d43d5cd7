package cni

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const goodList = `{"cniVersion":"1.1.0","name":"net-a","plugins":[{"type":"fake","capabilities":{"portMappings":true}}]}`

// addOK prints a result on ADD and notes every command in calls.
const addOK = `#!/bin/sh
echo "$CNI_COMMAND $CNI_ARGS" >>"$0.calls"
cat >"$0.stdin.$CNI_COMMAND"
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/x"}],
"ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.7/24","interface":1},{"address":"fd00::7/64","interface":1}]}'
exit 0
`

type bench struct {
	*Manager
	conf, bin string
}

func newBench(t *testing.T, files map[string]string, plugin string) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{conf: filepath.Join(dir, "net.d"), bin: filepath.Join(dir, "bin")}
	for _, d := range []string{b.conf, b.bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(t, filepath.Join(b.conf, name), text, 0o644)
	}
	if plugin != "" {
		write(t, filepath.Join(b.bin, "fake"), plugin, 0o755)
	}
	var err error
	b.Manager, err = New(Config{ConfDir: b.conf, BinDirs: []string{filepath.Join(dir, "none"), b.bin},
		CacheDir: filepath.Join(dir, "cache"), Timeout: 3 * time.Second, StatusTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) calls(t *testing.T) string {
	t.Helper()
	out, err := os.ReadFile(filepath.Join(b.bin, "fake.calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var verbs []string
	for l := range strings.Lines(string(out)) {
		if v, _, _ := strings.Cut(l, " "); v != "STATUS" && v != "VERSION" {
			verbs = append(verbs, v)
		}
	}
	return strings.Join(verbs, " ")
}

func request() Request {
	return Request{SandboxID: "abc", NetNS: "/run/x", CgroupPath: "/pod", Config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"},
		PortMappings: []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: runtimeapi.Protocol_UDP, HostIp: "127.0.0.1"}, {ContainerPort: 9}},
	}}
}

func TestAttachDetach(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	res, err := b.Attach(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"10.0.0.7", "fd00::7"}, res.IPs); d != "" {
		t.Error(d)
	}
	stdin, err := os.ReadFile(filepath.Join(b.bin, "fake.stdin.ADD"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		RuntimeConfig struct{ PortMappings []portMapping }
	}
	if err := json.Unmarshal(stdin, &got); err != nil {
		t.Fatal(err)
	}
	want := []portMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "udp", HostIP: "127.0.0.1"}}
	if d := cmp.Diff(want, got.RuntimeConfig.PortMappings); d != "" {
		t.Error(d)
	}
	out, _ := os.ReadFile(filepath.Join(b.bin, "fake.calls"))
	if w := "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u"; !strings.Contains(string(out), w) {
		t.Errorf("CNI_ARGS: %s", out)
	}
	if err := b.Check(t.Context(), request()); err != nil {
		t.Error(err)
	}
	// The configuration goes away: the note still knows the network.
	if err := os.Remove(filepath.Join(b.conf, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Detach(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
	}
	if c := b.calls(t); c != "ADD CHECK DEL" {
		t.Errorf("calls: %s", c)
	}
	stdin, _ = os.ReadFile(filepath.Join(b.bin, "fake.stdin.DEL"))
	if !strings.Contains(string(stdin), "prevResult") || !strings.Contains(string(stdin), `"hostPort":80`) {
		t.Errorf("DEL got %s", stdin)
	}
}

func TestAttachFailures(t *testing.T) {
	for _, c := range []struct{ name, plugin, want string }{
		{"error document", "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\necho '{\"code\":11,\"msg\":\"full\",\"details\":\"10.0.0.0/24\"}'; exit 1\n", "full; 10.0.0.0/24"},
		{"says nothing", "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nexit 3\n", "exit status 3"},
		{"garbage", "#!/bin/sh\ncat >/dev/null\necho '<html>'\n", "unmarshal"},
		{"null", "#!/bin/sh\ncat >/dev/null\necho null\n", "no address"},
		{"nothing printed", "#!/bin/sh\ncat >/dev/null\n", "unexpected end"},
		{"stderr", "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\necho no bridge >&2; exit 1\n", "no bridge"},
		{"killed", "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nkill -9 $$\n", "killed"},
		{"hangs with a child", "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & wait\n", "did not end in time"},
		{"not executable", "", `plugin "fake" is not in`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, map[string]string{"10-a.conflist": goodList}, c.plugin)
			_, err := b.Attach(t.Context(), request())
			if err == nil {
				t.Fatal("attached")
			}
			for _, w := range []string{c.want, "net-a", "10-a.conflist"} {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v: does not say %q", err, w)
				}
			}
			// Only a plugin that is missing cannot be told to undo.
			_, statErr := os.Stat(b.intentPath("abc"))
			if owed := statErr == nil; owed != (c.plugin == "") {
				t.Errorf("detach is owed: %v; %v", owed, err)
			}
		})
	}
}

func TestFailedAddIsFollowedByDel(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList},
		"#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >>$0.calls\n[ $CNI_COMMAND = DEL ]\n")
	if _, err := b.Attach(t.Context(), request()); err == nil {
		t.Fatal("attached")
	}
	if c := strings.Fields(b.calls(t)); !cmp.Equal(c, []string{"ADD", "DEL"}) {
		t.Errorf("calls: %v", c)
	}
}

func TestDetachToleratesUnknownContainer(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, addOK)
	if _, err := b.Attach(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(b.bin, "fake"), "#!/bin/sh\ncat >/dev/null\necho '{\"code\":3,\"msg\":\"no such sandbox\"}'; exit 1\n", 0o755)
	if err := b.Detach(t.Context(), request()); err != nil {
		t.Error(err)
	}
}

func TestStatus(t *testing.T) {
	status := func(body string) string {
		return "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = STATUS ] || exit 0\n" + body + "\n"
	}
	for _, c := range []struct {
		name   string
		files  map[string]string
		plugin string
		want   string // "" : ready
	}{
		{"empty directory", nil, addOK, "no network configuration in"},
		{"ready", map[string]string{"10-a.conflist": goodList}, addOK, ""},
		{"plugin missing", map[string]string{"10-a.conflist": goodList}, "", `plugin "fake" is not in`},
		{"only a bad file", map[string]string{"10-a.conflist": "{"}, addOK, "10-a.conflist"},
		{"bad file beside a good one", map[string]string{"05-bad.conflist": "{", "10-a.conflist": goodList}, addOK, ""},
		{"single conf", map[string]string{"10-a.conf": `{"cniVersion":"1.0.0","name":"x","type":"fake"}`}, addOK, ""},
		{"list named .conf", map[string]string{"10-a.conf": goodList}, addOK, "10-a.conf"},
		{"not ready", map[string]string{"10-a.conflist": goodList}, status(`echo '{"code":50,"msg":"agent is down"}'; exit 1`), "agent is down"},
		{"hangs", map[string]string{"10-a.conflist": goodList}, status("sleep 1000"), "no status within"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := newBench(t, c.files, c.plugin).Status(t.Context())
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want Unavailable with %q", err, c.want)
			}
		})
	}
}

func TestStatusFollowsTheDirectory(t *testing.T) {
	b := newBench(t, nil, addOK)
	if err := os.Remove(b.conf); err != nil {
		t.Fatal(err)
	}
	if err := b.Status(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("got %v", err)
	}
	real := t.TempDir()
	write(t, filepath.Join(real, "20-b.conflist"), strings.Replace(goodList, "net-a", "net-b", 1), 0o644)
	if err := os.Symlink(real, b.conf); err != nil {
		t.Fatal(err)
	}
	if err := b.Status(t.Context()); err != nil {
		t.Error(err)
	}
	write(t, filepath.Join(real, "10-a.conflist"), goodList, 0o644)
	if n := b.current().network; n == nil || n.Name != "net-a" {
		t.Errorf("first by name: %+v", n)
	}
}

func TestInProcessPlugin(t *testing.T) {
	b := newBench(t, map[string]string{"10-a.conflist": goodList}, "")
	b.exec.inProcess = map[string]Plugin{"fake": func(context.Context, []byte, []string) ([]byte, error) {
		return []byte(`{"cniVersion":"1.1.0","ips":[{"address":"10.1.1.1/24"}]}`), nil
	}}
	res, err := b.Attach(t.Context(), request())
	if err != nil || !cmp.Equal(res.IPs, []string{"10.1.1.1"}) {
		t.Errorf("%v, %v", res.IPs, err)
	}
}

func TestParseQuantity(t *testing.T) {
	for in, want := range map[string]int64{"1": 1, "10M": 10e6, "1.5Gi": 3 << 29, "2e6": 2e6, "1k": 1000, "0.5": 1, "100m": 1, ".5k": 500, "1P": 1e15} {
		if got, err := parseQuantity(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "M", "1X", "1 M", "9999E", "1e99", "0x10", "1/2", "--1"} {
		if got, err := parseQuantity(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}

func TestBandwidth(t *testing.T) {
	got, err := bandwidthOf(map[string]string{annotationIngress: "10M", "other": "x"})
	if err != nil || !cmp.Equal(got, &bandwidth{IngressRate: 10e6, IngressBurst: 1<<31 - 1}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := bandwidthOf(nil); got != nil || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := bandwidthOf(map[string]string{annotationEgress: "1"}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), annotationEgress) {
		t.Errorf("%v", err)
	}
}

func FuzzParseQuantity(f *testing.F) {
	f.Add("1.5Gi")
	f.Add("2e-6")
	f.Fuzz(func(t *testing.T, s string) { _, _ = parseQuantity(s) })
}

func FuzzPluginError(f *testing.F) {
	f.Add([]byte(`{"code":7,"msg":"x"}`), []byte("e"))
	f.Fuzz(func(t *testing.T, out, errOut []byte) {
		if pluginError(errors.New("exit"), out, errOut).Error() == "" {
			t.Error("says nothing")
		}
	})
}
